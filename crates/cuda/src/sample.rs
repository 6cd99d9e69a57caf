//! The likeliest tokens of rows of logits (`kernels/sample/best.cu`): what the host needs to draw one, where it does not need all logits.

use std::sync::Arc;

use tessera_ops::{Candidate, Error, ranking::BEST_MAX};

use crate::{
    driver::{Arg, Args, Gpu, Memory},
    kernels::Module,
    tensor::{Tensor, blocks},
};

/// Logits, or keys, that a block takes: few, since a sort of them takes longer than a further launch.
const ENTRIES: usize = 1024;

/// Its threads: each compares a pair.
const THREADS: usize = ENTRIES / 2;

/// What the kernel is compiled with.
pub(crate) fn constants() -> Vec<(&'static str, usize)> {
    vec![("ENTRIES", ENTRIES), ("THREADS", THREADS)]
}

/// Rows of a launch: what a grid takes.
const ROWS_MAX: usize = 65_535;

/// Appends the `count` likeliest of each row (or all there are), in order. Waits.
pub(crate) fn best(gpu: &Arc<Gpu>, logits: &Tensor, count: usize, out: &mut Vec<Candidate>) -> Result<(), Error> {
    let (rows, vocabulary) = (logits.rows, logits.width);
    assert!(count <= BEST_MAX && rows <= ROWS_MAX, "so many candidates of so many rows are found at once");
    let count = count.min(vocabulary);
    if rows * count == 0 {
        return Ok(());
    }
    let found = gpu.take_answer(rows * count * 2);
    let (mut before, mut width): (Option<Memory>, usize) = (None, vocabulary);
    loop {
        let parts = width.div_ceil(ENTRIES);
        let keys = (parts > 1).then(|| gpu.take(rows * parts * count * size_of::<u64>()));
        let mut args = Args::of([Arg::Memory(&logits.memory), before.as_ref().into(), keys.as_ref().into()]);
        args.push(Arg::Memory(&found));
        args.extend([vocabulary, width, count].map(Arg::U32));
        gpu.launch(Module::Best, "best", blocks([parts, rows, 1], THREADS), &args);
        if parts == 1 {
            break;
        }
        (before, width) = (keys, parts * count);
    }
    let mut numbers = vec![0u32; rows * count * 2];
    gpu.download(&found, 0, &mut numbers)?;
    let candidate = |pair: &[u32; 2]| Candidate { id: pair[0], logit: f32::from_bits(pair[1]) };
    out.extend(numbers.as_chunks::<2>().0.iter().map(candidate));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each launch must leave less than it takes.
    #[test]
    fn launches_come_to_an_end() {
        assert!(2 * BEST_MAX <= ENTRIES && ENTRIES.is_power_of_two() && ENTRIES * size_of::<u64>() <= 48 << 10);
    }
}
