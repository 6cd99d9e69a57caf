//! Activations in the form the kernels read: quantized once per token, in panels exactly as wide as a tile.
//!
//! A panel of C tokens holds, for each block of 32 features, `C x 32 codes | C scales | C scaled sums | C sums`: every
//! operand of a tile at a constant offset. Sub-blocks of 16 need sums of half a block; those lie in a second set of panels,
//! written only where some matrix asks for them.

use tessera_ops::numerics::ACTIVATION_CODE_MAX;

use super::tile::{BLOCK, TOKENS_MAX, halves_bytes, record_bytes};
use crate::{
    isa::{Isa, Kernel},
    simd::{LANES, Simd},
    threads::{SharedSlice, Threads},
};

/// Scratch memory of quantized activations, kept from step to step.
#[derive(Default)]
pub struct Activations {
    panels: Vec<Line>,
    halves: Vec<Line>,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]); // read and written through pointers

const LINE: usize = size_of::<Line>();

/// How tokens are cut into panels: near-equal widths, the wider ones first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// How many panels.
    pub(super) count: usize,
    /// Blocks of a row.
    blocks: usize,
    /// Tokens of a narrow panel; a wide one has one more.
    width: usize,
    /// How many panels are wide.
    wide: usize,
}

/// Neighbouring panels of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first panel.
    pub(super) first: usize,
    /// How many panels.
    pub(super) panels: usize,
    /// The first token.
    pub(super) start: usize,
    /// The width of each panel.
    pub(super) tokens: usize,
}

impl Plan {
    /// Panels of at most `tokens_max`, their count a multiple of `workers` (as far as there are tokens).
    pub(super) fn new(tokens: usize, depth: usize, tokens_max: usize, workers: usize) -> Plan {
        assert!((1..=TOKENS_MAX).contains(&tokens_max), "no tile is {tokens_max} tokens wide");
        assert!(tokens > 0, "a plan is for some tokens");
        let count = tokens.div_ceil(tokens_max).next_multiple_of(workers).min(tokens);
        Plan { count, blocks: depth / BLOCK, width: tokens / count, wide: tokens % count }
    }

    /// Panels `from..to`, the wide ones and the narrow ones (either may be none).
    pub(super) fn runs(&self, from: usize, to: usize) -> [Run; 2] {
        let run = |first: usize, end: usize, tokens: usize| Run {
            first,
            panels: end.saturating_sub(first),
            start: first * self.width + first.min(self.wide),
            tokens,
        };
        [run(from, to.min(self.wide), self.width + 1), run(from.max(self.wide), to, self.width)]
    }

    /// Cache lines of a panel of `tokens` tokens, where a block takes `bytes(tokens)`.
    fn lines(&self, tokens: usize, bytes: impl Fn(usize) -> usize) -> usize {
        (self.blocks * bytes(tokens)).div_ceil(LINE)
    }

    /// Cache lines before panel `index`.
    fn lines_before(&self, index: usize, bytes: impl Fn(usize) -> usize) -> usize {
        let (wide, narrow) = (self.lines(self.width + 1, &bytes), self.lines(self.width, &bytes));
        index.min(self.wide) * wide + index.saturating_sub(self.wide) * narrow
    }
}

/// The panels of one projection, to be filled and read by many workers.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) plan: Plan,
    panels: &'a SharedSlice<'a, Line>,
    /// Empty where no matrix needs halves.
    halves: &'a SharedSlice<'a, Line>,
    has_halves: bool,
}

impl Activations {
    /// Empty scratch.
    pub fn new() -> Activations {
        Activations::default()
    }

    /// Makes room for a plan. Room once made is kept, so that a warm step allocates nothing.
    pub(super) fn with_panels<R>(&mut self, plan: Plan, has_halves: bool, use_them: impl FnOnce(Panels<'_>) -> R) -> R {
        let grow = |lines: &mut Vec<Line>, count: usize| {
            if lines.len() < count {
                lines.resize(count, Line([0; LINE]));
            }
        };
        grow(&mut self.panels, plan.lines_before(plan.count, record_bytes));
        if has_halves {
            grow(&mut self.halves, plan.lines_before(plan.count, halves_bytes));
        }
        let (panels, halves) = (SharedSlice::new(&mut self.panels), SharedSlice::new(&mut self.halves));
        use_them(Panels { plan, panels: &panels, halves: &halves, has_halves })
    }
}

impl Panels<'_> {
    /// Where panel `index` starts.
    pub(super) fn panel(&self, index: usize) -> *mut u8 {
        self.panels.as_ptr().wrapping_add(self.plan.lines_before(index, record_bytes)).cast()
    }

    /// Where the halves of panel `index` start, if there are any.
    pub(super) fn halves(&self, index: usize) -> *mut u8 {
        self.halves.as_ptr().wrapping_add(self.plan.lines_before(index, halves_bytes)).cast()
    }

    /// Bytes from one panel of this width to the next, and from its halves to the next one's.
    pub(super) fn strides(&self, tokens: usize) -> (usize, usize) {
        (self.plan.lines(tokens, record_bytes) * LINE, self.plan.lines(tokens, halves_bytes) * LINE)
    }

    /// Quantizes blocks `blocks.0..blocks.1` of panels `from..to` of the rows `x` (tokens, depth).
    ///
    /// # Safety
    /// No other thread reads or writes these blocks of the panels meanwhile.
    unsafe fn quantize(&self, isa: Isa, x: &[f32], (from, to): (usize, usize), blocks: (usize, usize)) {
        let depth = self.plan.blocks * BLOCK;
        for run in self.plan.runs(from, to) {
            for i in 0..run.panels {
                let first = run.start + i * run.tokens;
                isa.run(Quantize {
                    x: &x[first * depth..(first + run.tokens) * depth],
                    tokens: run.tokens,
                    total_blocks: self.plan.blocks,
                    blocks,
                    panel: self.panel(run.first + i),
                    halves: self.has_halves.then(|| self.halves(run.first + i)),
                });
            }
        }
    }

    /// Quantizes panels `from..to`.
    ///
    /// # Safety
    /// No other thread reads or writes these panels meanwhile.
    pub(super) unsafe fn quantize_panels(&self, isa: Isa, x: &[f32], from: usize, to: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.quantize(isa, x, (from, to), (0, self.plan.blocks)) };
    }

    /// Quantizes all panels, spread over a pool.
    pub(super) fn quantize_all(&self, isa: Isa, x: &[f32], pool: &Threads, alone_max: usize) {
        if x.len() <= alone_max || pool.count() == 1 {
            // SAFETY: this thread alone has the panels.
            return unsafe { self.quantize_panels(isa, x, 0, self.plan.count) };
        }
        pool.run(&|share, shares| {
            let cut = |whole: usize, i: usize| whole * i / shares;
            if self.plan.count >= shares {
                // SAFETY: shares take disjoint panels.
                unsafe {
                    self.quantize_panels(isa, x, cut(self.plan.count, share), cut(self.plan.count, share + 1));
                }
            } else {
                // Tokens of one panel lie within a cache line of each other, so its blocks are shared out instead.
                let blocks = (cut(self.plan.blocks, share), cut(self.plan.blocks, share + 1));
                // SAFETY: shares take disjoint blocks.
                unsafe { self.quantize(isa, x, (0, self.plan.count), blocks) };
            }
        });
    }
}

/// Quantizes some blocks of a panel, bit for bit as [`tessera_ops::numerics::quantize_block`].
struct Quantize<'a> {
    /// (tokens, depth)
    x: &'a [f32],
    tokens: usize,
    total_blocks: usize,
    blocks: (usize, usize),
    panel: *mut u8,
    halves: Option<*mut u8>,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for token in 0..self.tokens {
            let depth = self.total_blocks * BLOCK;
            let row = &self.x[token * depth..(token + 1) * depth].as_chunks::<BLOCK>().0[self.blocks.0..self.blocks.1];
            for (block, x) in (self.blocks.0..).zip(row) {
                // SAFETY: panels hold `total_blocks` records, and halves where they are given.
                unsafe {
                    let record = self.panel.add(block * record_bytes(self.tokens));
                    let (scale, sums) = quantize_block(simd, x, record.add(token * BLOCK).cast());
                    let sum = sums[0] + sums[1];
                    let numbers = record.add(self.tokens * BLOCK).cast::<f32>().add(token);
                    numbers.write(scale);
                    numbers.add(self.tokens).write(scale * sum as f32);
                    numbers.add(2 * self.tokens).cast::<i32>().write(sum);
                    if let Some(halves) = self.halves {
                        let record = halves.add(block * halves_bytes(self.tokens)).cast::<f32>().add(token);
                        record.write(scale * sums[0] as f32);
                        record.add(self.tokens).write(scale * sums[1] as f32);
                        record.add(2 * self.tokens).cast::<i32>().write(sums[0]);
                        record.add(3 * self.tokens).cast::<i32>().write(sums[1]);
                    }
                }
            }
        }
    }
}

/// Writes the codes of a block; gives its scale, and the sums of the codes of its halves.
///
/// # Safety
/// `codes` is valid for writing 32 bytes.
#[inline(always)]
unsafe fn quantize_block<S: Simd>(simd: S, x: &[f32; BLOCK], codes: *mut i8) -> (f32, [i32; 2]) {
    let (halves, _) = x.as_chunks::<LANES>();
    let (low, high) = (simd.load(&halves[0]), simd.load(&halves[1]));
    let amax = f32::from_bits(simd.magnitude_bits_max(low, high));
    let inverse = ACTIVATION_CODE_MAX / amax;
    // Not so for zero (inverse infinite), subnormal (likewise), infinite (inverse zero) and NaN.
    let usual = inverse.is_finite() && amax.is_finite();
    let inverse = simd.splat(inverse);
    // SAFETY: the caller's 32 bytes.
    unsafe {
        if usual {
            let sums = [
                simd.store_codes(codes, simd.mul(low, inverse)),
                simd.store_codes(codes.add(LANES), simd.mul(high, inverse)),
            ];
            (amax / ACTIVATION_CODE_MAX, sums)
        } else {
            codes.write_bytes(0, BLOCK);
            (if amax.is_finite() { amax / ACTIVATION_CODE_MAX } else { f32::NAN }, [0; 2])
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_ops::numerics;

    use super::*;

    #[test]
    fn panels_cover_all_tokens_once() {
        for tokens in 1..200 {
            for (tokens_max, workers) in [(1, 1), (4, 1), (12, 1), (12, 2), (12, 5), (7, 3)] {
                let plan = Plan::new(tokens, 64, tokens_max, workers);
                for cut in [0, plan.count / 2, plan.count] {
                    let runs = [plan.runs(0, cut), plan.runs(cut, plan.count)].concat();
                    let (mut panel, mut token) = (0, 0);
                    for run in runs.iter().filter(|r| r.panels > 0) {
                        assert_eq!((run.first, run.start), (panel, token));
                        assert!((1..=tokens_max).contains(&run.tokens));
                        panel += run.panels;
                        token += run.panels * run.tokens;
                    }
                    assert_eq!((panel, token), (plan.count, tokens));
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    struct Case {
        x: Vec<f32>,
        tokens: usize,
    }

    fn case() -> impl Strategy<Value = Case> {
        let special = vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-42, -1e-38, f32::MAX, 0.5, 127.0];
        let block = prop_oneof![
            4 => prop::collection::vec(-50f32..50.0, BLOCK),
            1 => prop::collection::vec(prop::sample::select(special), BLOCK),
            1 => prop::collection::vec(-1e-40f32..1e-40, BLOCK),
            1 => Just(vec![0.0; BLOCK]),
        ];
        (1usize..=26, 1usize..=3).prop_flat_map(move |(tokens, blocks)| {
            prop::collection::vec(block.clone(), tokens * blocks).prop_map(move |x| Case { x: x.concat(), tokens })
        })
    }

    proptest! {
        #[test]
        fn panels_hold_the_contract_s_blocks(case in case(), threads in 1usize..=2) {
            let depth = case.x.len() / case.tokens;
            let pool = Threads::new(threads.try_into().unwrap());
            for isa in Isa::available() {
                let plan = Plan::new(case.tokens, depth, 12, 1);
                Activations::new().with_panels(plan, true, |panels| {
                    panels.quantize_all(isa, &case.x, &pool, 0);
                    for index in 0..plan.count {
                        check_panel(&panels, index, &case.x, depth);
                    }
                });
            }
        }
    }

    fn check_panel(panels: &Panels<'_>, index: usize, x: &[f32], depth: usize) {
        let run = panels.plan.runs(index, index + 1).into_iter().find(|r| r.panels == 1).unwrap();
        let c = run.tokens;
        for (token, block) in (0..c).flat_map(|t| (0..depth / BLOCK).map(move |b| (t, b))) {
            let at = (run.start + token) * depth + block * BLOCK;
            let want = numerics::quantize_block(&x[at..at + BLOCK]);
            let sums: Vec<i32> = want.codes.chunks(16).map(|h| h.iter().map(|q| i32::from(*q)).sum()).collect();
            let bits = |v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
            // SAFETY: the panel is filled, and records are read as they were written.
            unsafe {
                let record = panels.panel(index).add(block * record_bytes(c));
                assert_eq!(record.add(token * BLOCK).cast::<[i8; BLOCK]>().read(), want.codes);
                let numbers = record.add(c * BLOCK).cast::<f32>().add(token);
                assert_eq!(bits(numbers.read()), bits(want.scale));
                assert_eq!(bits(numbers.add(c).read()), bits(want.scale * (sums[0] + sums[1]) as f32));
                assert_eq!(numbers.add(2 * c).cast::<i32>().read(), sums[0] + sums[1]);
                let halves = panels.halves(index).add(block * halves_bytes(c)).cast::<f32>().add(token);
                for (h, sum) in sums.iter().enumerate() {
                    assert_eq!(bits(halves.add(h * c).read()), bits(want.scale * *sum as f32));
                    assert_eq!(halves.add((2 + h) * c).cast::<i32>().read(), *sum);
                }
            }
        }
    }
}
