//! When blocks began, had their turn and ended, as they note it themselves (`kernels/timeline.cuh`): in graphs and started early, as in any
//! step.

use std::{ffi::CString, time::Duration};

use cudarc::driver::{result, sys};
use tessera_ops::Error;

use super::{Gpu, words};

/// Blocks that there is room for.
pub(super) const BLOCKS_MAX: usize = 1 << 22;

/// Numbers of a block: when it began, had its turn and ended, in nanoseconds; blocks of its launch; sixteen letters of the kernel's name.
const BLOCK_NUMBERS: usize = 6;

/// The kernel that stands behind the last one of a step.
const END: &str = "spin";

/// A launch, as its blocks noted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Its kernel; between the end of a step and the next kernel it is `host`.
    pub kernel: String,
    /// Its blocks.
    pub blocks: usize,
    /// From its turn to the next launch's.
    pub time: Duration,
    /// When half of its blocks had begun, from its turn on, in nanoseconds: before it, if they were started early.
    pub begun_nanos: i64,
    /// When half of them had ended.
    pub half_ended_nanos: i64,
    /// When all had ended.
    pub ended_nanos: i64,
}

/// Memory that blocks write to: a count, and as many blocks, `BLOCKS_MAX` at most.
pub(super) struct Timeline(sys::CUdeviceptr);

impl Timeline {
    /// Takes the memory, in the current context.
    pub(super) fn take() -> Result<Timeline, result::DriverError> {
        // SAFETY: a context is current; the memory is given back by `free`.
        let pointer = unsafe { result::malloc_sync((1 + BLOCKS_MAX * BLOCK_NUMBERS) * size_of::<u64>())? };
        let timeline = Timeline(pointer);
        timeline.clear()?;
        Ok(timeline)
    }

    /// Tells a module's kernels where it is.
    pub(super) fn show_to(&self, module: sys::CUmodule) -> Result<(), result::DriverError> {
        let name = CString::from(c"timeline");
        // SAFETY: the module is loaded, and its symbol is one pointer.
        unsafe {
            let (symbol, bytes) = result::module::get_global(module, name)?;
            assert_eq!(bytes, size_of::<sys::CUdeviceptr>(), "a kernel's timeline is a pointer");
            result::memcpy_htod_sync(symbol, &[self.0])
        }
    }

    fn clear(&self) -> Result<(), result::DriverError> {
        // SAFETY: the memory begins with its count.
        unsafe { result::memcpy_htod_sync(self.0, &[0u64]) }
    }

    /// All blocks so far. No kernel runs.
    fn read(&self) -> Result<Vec<[u64; BLOCK_NUMBERS]>, result::DriverError> {
        let mut count = [0u64];
        // SAFETY: the memory begins with its count.
        unsafe { result::memcpy_dtoh_sync(&mut count, self.0)? };
        let mut blocks = vec![0u64; BLOCK_NUMBERS * (count[0] as usize).min(BLOCKS_MAX)];
        if !blocks.is_empty() {
            // SAFETY: behind the count there is room for so many blocks.
            unsafe { result::memcpy_dtoh_sync(&mut blocks, self.0 + size_of::<u64>() as u64)? };
        }
        Ok(blocks.as_chunks().0.to_vec())
    }

    /// Gives the memory back.
    pub(super) fn free(self) {
        // SAFETY: `take` made it, and no kernel is left that knows of it.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

impl Gpu {
    /// Each launch that runs in `work`, in the order of turns; none without a timeline.
    pub(crate) fn turns(&self, work: impl FnOnce()) -> Result<Vec<Turn>, Error> {
        self.wait()?;
        let Some(timeline) = &self.timeline else {
            work();
            return Ok(vec![]);
        };
        timeline.clear().map_err(|e| self.lost(words(e)))?;
        work();
        self.wait()?;
        Ok(turns(timeline.read().map_err(|e| self.lost(words(e)))?))
    }

    /// Lets a kernel that does nothing tell when a step has ended, where turns are noted.
    pub(super) fn note_end(&self) {
        if self.timeline.is_some()
            && let Some(end) = self.spin(0)
        {
            self.enqueue(&end, false);
        }
    }
}

/// The launches that blocks are of. Those of one have the same kernel and count, and turns before all of the next such launch.
fn turns(mut blocks: Vec<[u64; BLOCK_NUMBERS]>) -> Vec<Turn> {
    blocks.sort_by_key(|[_, turn, ..]| *turn);
    let mut launches: Vec<Vec<[u64; BLOCK_NUMBERS]>> = vec![];
    // The last launch of each kernel and count.
    let mut last = std::collections::HashMap::new();
    for block in blocks {
        let [.., count, first_letters, more_letters] = block;
        let place = last.entry((count, first_letters, more_letters)).or_insert(usize::MAX);
        match launches.get_mut(*place) {
            Some(launch) if (launch.len() as u64) < count => launch.push(block),
            _ => {
                *place = launches.len();
                launches.push(vec![block]);
            }
        }
    }
    let turn_of = |launch: &[[u64; BLOCK_NUMBERS]]| launch[0][1];
    let of_pair = |pair: &[Vec<[u64; BLOCK_NUMBERS]>]| {
        let (launch, turn) = (&pair[0], turn_of(&pair[0]));
        let sorted = |number: usize| {
            let mut times: Vec<i64> = launch.iter().map(|block| block[number] as i64 - turn as i64).collect();
            times.sort_unstable();
            times
        };
        let (begun, ended) = (sorted(0), sorted(2));
        Turn {
            kernel: kernel(&launch[0]),
            blocks: launch[0][3] as usize,
            time: Duration::from_nanos(turn_of(&pair[1]).saturating_sub(turn)),
            begun_nanos: begun[begun.len() / 2],
            half_ended_nanos: ended[ended.len() / 2],
            ended_nanos: ended[ended.len() - 1],
        }
    };
    launches.windows(2).map(of_pair).collect()
}

/// The kernel of a block.
fn kernel(block: &[u64; BLOCK_NUMBERS]) -> String {
    let letters = [block[4].to_le_bytes(), block[5].to_le_bytes()].concat();
    let name = String::from_utf8_lossy(&letters).trim_end_matches('\0').to_owned();
    if name == END { "host".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, count: u64, [begun, turn, ended]: [u64; 3]) -> [u64; BLOCK_NUMBERS] {
        let mut letters = [0; 16];
        letters[..name.len()].copy_from_slice(name.as_bytes());
        let word = |i: usize| u64::from_le_bytes(*letters[8 * i..].first_chunk().expect("eight letters"));
        [begun, turn, ended, count, word(0), word(1)]
    }

    #[test]
    fn blocks_become_launches_in_the_order_of_turns() {
        let product = |times| block("latent_s", 3, times);
        // As blocks end: of two launches of one kernel, the second is there before the first has ended, and one block comes late.
        let noted = vec![
            product([100, 120, 150]),
            product([90, 121, 160]),
            block("norm", 1, [110, 190, 200]),
            product([155, 156, 180]),
            product([170, 210, 240]),
            product([170, 211, 250]),
            product([171, 211, 245]),
            block("spin", 1, [230, 260, 261]),
            block("norm", 1, [400, 400, 410]),
        ];
        let told = turns(noted);
        let turn = |kernel: &str, blocks, nanos, begun_nanos, half_ended_nanos, ended_nanos| Turn {
            kernel: kernel.to_owned(),
            blocks,
            time: Duration::from_nanos(nanos),
            begun_nanos,
            half_ended_nanos,
            ended_nanos,
        };
        let expected = [
            turn("latent_s", 3, 70, -20, 40, 60),
            turn("norm", 1, 20, -80, 10, 10),
            turn("latent_s", 3, 50, -40, 35, 40),
            turn("host", 1, 140, -30, 1, 1),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn names_are_read_from_their_letters() {
        assert_eq!(kernel(&block("latent_spans", 1, [0; 3])), "latent_spans");
        assert_eq!(kernel(&block("spin", 1, [0; 3])), "host");
    }
}
