//! What the host sends to a step, as one launch.

use super::{Call, order};
use crate::tensor::each;

/// Parts that a launch of `receive` in `kernels/elementwise/elementwise.cu` takes.
pub(crate) const RECEIVED_MAX: usize = 8;

/// Its parameters: where each part goes, where the first comes from, and how many numbers each has.
const TO: usize = 0;
const FROM: usize = RECEIVED_MAX;
const COUNTS: usize = FROM + 1;

/// Numbers of 32 bits that a thread takes.
const PIECE: u64 = 4;

/// Whether it fetches what was sent, and no more.
pub(super) fn fetches(call: &Call) -> bool {
    call.entry == "receive"
}

/// What was sent one behind the other.
pub(super) fn joined(last: &Call, next: &Call) -> Option<Call> {
    if !fetches(next) {
        return None;
    }
    let counts = |call: &Call| <[u64; RECEIVED_MAX]>::try_from(&call.args[COUNTS..COUNTS + RECEIVED_MAX]).ok();
    let (of_last, of_next) = (counts(last)?, counts(next)?);
    let pieces: u64 = of_last.iter().map(|count| count.div_ceil(PIECE)).sum();
    let parts = of_last.iter().filter(|count| **count > 0).count();
    // Of two parts in one place, the first was given up.
    let can = parts < RECEIVED_MAX
        && of_next[1..] == [0; RECEIVED_MAX - 1]
        && next.args[FROM] == last.args[FROM] + pieces * PIECE * size_of::<u32>() as u64
        && order::are_apart(last, next);
    can.then(|| {
        let mut both = last.clone();
        (both.args[TO + parts], both.args[COUNTS + parts]) = (next.args[TO], of_next[0]);
        both.grid[0] = each((pieces + of_next[0].div_ceil(PIECE)) as usize).grid[0] as u32;
        both
    })
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    /// A part of so many numbers, from a place to another.
    fn sent(from: u64, to: u64, count: u64) -> Call {
        let mut args = [0; ARGS_MAX];
        (args[TO], args[FROM], args[COUNTS]) = (to, from, count);
        Call {
            module: Module::Elementwise,
            entry: "receive",
            function: std::ptr::dangling_mut(),
            grid: [each(count.div_ceil(PIECE) as usize).grid[0] as u32, 1, 1],
            threads: 256,
            shared_bytes: 0,
            cluster: 1,
            args,
            count: COUNTS + RECEIVED_MAX,
            touched: vec![Touch { bytes: [to, to + 4 * count], writes: true, is_list: false }],
            beside: None,
        }
    }

    fn left(calls: &[Call]) -> Vec<Call> {
        let mut queue = Queue::default();
        calls.iter().for_each(|call| assert!(!queue.push(call.clone(), &|_| None)));
        queue.held
    }

    #[test]
    fn what_is_sent_one_behind_the_other_is_one_launch() {
        // Of 7, 1 and 4,000 numbers: 2, 1 and 1,000 pieces of 16 bytes.
        let three = [sent(0x1000, 0x9000, 7), sent(0x1020, 0xa000, 1), sent(0x1030, 0xb000, 4000)];
        let [all] = &left(&three)[..] else { panic!("one launch") };
        assert_eq!((&all.args[..4], all.grid[0]), (&[0x9000, 0xa000, 0xb000, 0][..], 4));
        assert_eq!((&all.args[FROM..COUNTS + 4], all.touched.len()), (&[0x1000, 7, 1, 4000, 0][..], 3));
        for (other, why) in [
            (sent(0x1030, 0xa000, 1), "from elsewhere"),
            (sent(0x1020, 0x9018, 1), "to the same place"),
            (Call { entry: "add", ..sent(0x1020, 0xa000, 1) }, "something else"),
        ] {
            assert_eq!(left(&[three[0].clone(), other]).len(), 2, "{why}");
        }
        let nine: Vec<Call> = (0..9).map(|i| sent(0x1000 + 16 * i, 0x9000 + 0x100 * i, 4)).collect();
        let [eight, one] = &left(&nine)[..] else { panic!("the ninth begins anew") };
        assert_eq!((eight.args[TO + 7], one.args[TO], one.args[FROM]), (0x9700, 0x9800, 0x1080));
    }
}
