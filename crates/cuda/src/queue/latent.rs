//! What comes of a block's input before attention over latent rows: the row that is kept, inputs of compressed rows and what they complete,
//! and narrow queries, as one launch (`kernels/latent/arrive.cu`).
//!
//! All is recognised by what launches read and write alone; no bit changes, and every tensor holds at the end what it would have held.

use cudarc::driver::sys;
use tessera_ops::{KvFormat, kv::RowFormat};

use super::{
    ARGS_MAX, Call,
    heads::{norm, rope},
};
use crate::{
    kernels::{Module, RowForm},
    latent::{ARRIVE_NUMBERS, ARRIVE_THREADS},
};

/// Parameters of `kernels/latent/store.cu`.
mod store {
    pub(super) const X: usize = 0;
    pub(super) const PAGES: usize = 1;
    pub(super) const STEP: [usize; 2] = [2, 3];
    pub(super) const RING: usize = 4;
}

/// Parameters of `round_fp8` in `kernels/rounding/rounding.cu`.
mod round {
    pub(super) const X: usize = 0;
    pub(super) const WIDTH: usize = 1;
    pub(super) const FEATURES: usize = 2;
}

/// Parameters of `kernels/latent/compress.cu`.
mod compress {
    pub(super) const INPUTS: usize = 0;
    pub(super) const PAGES: usize = 1;
    pub(super) const APE: usize = 2;
    pub(super) const NORM: usize = 3;
    pub(super) const STEP: [usize; 2] = [5, 6];
    pub(super) const INPUT_WIDTH: usize = 7;
    pub(super) const RING: usize = 8;
    pub(super) const RATIO: usize = 9;
    pub(super) const OVERLAP: usize = 10;
    /// Frequencies, pairs, their layout, magnitude and epsilon: what two of them must share.
    pub(super) const SHARED: [usize; 5] = [4, 11, 12, 13, 14];
    pub(super) const ROUNDING: usize = 15;
    pub(super) const ROUNDED: usize = 16;
    pub(super) const FACTOR: usize = 17;
}

/// Compressions of a launch, at most.
const COMPRESSIONS_MAX: usize = 2;

/// How many of the last calls may become one with what comes next.
pub(super) fn open(calls: &[Call]) -> usize {
    let is_part = |call: &&Call| ["store_rows", "rotate", "round_fp8", "compress"].contains(&call.entry);
    // The norm of a row, which its rotation takes in, behind the stores of inputs.
    let norms = match calls {
        [.., store, norm] => usize::from((store.entry, norm.entry) == ("store_rows", "rms_norm")),
        _ => 0,
    };
    let parts = calls[..calls.len() - norms].iter().rev().take_while(is_part).count();
    (norms + parts).min(3 + 2 * COMPRESSIONS_MAX)
}

/// The calls that become one.
struct Arrival<'a> {
    rope: &'a Call,
    round: Option<&'a Call>,
    store: &'a Call,
    /// The store of inputs, and what is compressed from them.
    compressions: Vec<(&'a Call, &'a Call)>,
    query: &'a Call,
    /// How many they are.
    count: usize,
}

/// The last calls as one launch, if they are what it does: it, and how many there are.
pub(super) fn arrived(calls: &[Call], find: &dyn Fn(Module) -> Option<sys::CUfunction>) -> Option<(Call, usize)> {
    let all = Arrival::of(calls)?;
    if !all.is_one() {
        return None;
    }
    let rows = all.store.grid[0];
    let args = all.args();
    let module = Module::Arrive;
    let call = Call {
        module,
        entry: module.entries()[0],
        function: find(module)?,
        grid: [rows, 2 + all.compressions.len() as u32, 1],
        threads: ARRIVE_THREADS as u32,
        shared_bytes: 0,
        cluster: 1,
        args: std::array::from_fn(|i| args.get(i).copied().unwrap_or(0)),
        count: args.len(),
        touched: vec![],
        beside: None,
    };
    Some((call, all.count))
}

impl<'a> Arrival<'a> {
    /// The calls, by their kinds.
    fn of(calls: &'a [Call]) -> Option<Arrival<'a>> {
        let (query, before) = calls.split_last().filter(|(last, _)| last.entry == "rms_norm")?;
        let compressed = before.iter().rev().take_while(|c| c.entry == "compress").count();
        let (before, compressed) = before.split_at(before.len() - compressed);
        let (store, before) = before.split_last().filter(|(last, _)| last.entry == "store_rows")?;
        let (round, before) = match before.split_last() {
            Some((last, before)) if last.entry == "round_fp8" => (Some(last), before),
            _ => (None, before),
        };
        let (rope, before) = before.split_last().filter(|(last, _)| last.entry == "rotate")?;
        let inputs = &before[before.len().checked_sub(compressed.len())?..];
        let count = 3 + usize::from(round.is_some()) + 2 * compressed.len();
        let compressions = inputs.iter().zip(compressed).collect();
        let is_all = inputs.iter().all(|c| c.entry == "store_rows") && compressed.len() <= COMPRESSIONS_MAX;
        is_all.then_some(Arrival { rope, round, store, compressions, query, count })
    }

    /// Whether one launch does the same.
    fn is_one(&self) -> bool {
        let Module::StoreRows(form) = self.store.module else { return false };
        let (rows, width, x) = (self.store.grid[0], form.width as u64, self.store.args[store::X]);
        let (rope, query) = (&self.rope.args, &self.query.args);
        let is_row = kept(form).is_some()
            && form.width <= ARRIVE_THREADS
            && (rope[rope::HEADS], rope[rope::ROWS]) == (1, rows.into())
            && (rope[rope::Y], rope[rope::HEAD_DIM], rope[rope::CODES[0]]) == (x, width, 0)
            && rope[rope::WEIGHT] != 0;
        let is_rounded = self.round.is_none_or(|c| (c.args[round::X], c.args[round::WIDTH]) == (x, width));
        let is_query = query[norm::ADDED] == 0
            && query[norm::WIDTH] <= ARRIVE_NUMBERS as u64
            && query[norm::WIDTH].is_multiple_of(32)
            && self.query.grid[0] == rows;
        let steps = self
            .compressions
            .iter()
            .flat_map(|(s, c)| [store::STEP.map(|at| s.args[at]), compress::STEP.map(|at| c.args[at])]);
        let is_one_step = { steps }.all(|step| step == store::STEP.map(|at| self.store.args[at]));
        let compressions = self.compressions.iter().all(|(s, c)| is_compression(s, c, rows));
        let shared: Vec<_> = self.compressions.iter().map(|(_, c)| compress::SHARED.map(|at| c.args[at])).collect();
        let is_shared = shared.iter().all(|s| *s == shared[0]);
        is_row && is_rounded && is_query && is_one_step && compressions && is_shared && self.is_apart()
    }

    /// Whether nothing is read where something is written: what was freed is given out again at once.
    fn is_apart(&self) -> bool {
        let query = [norm::Y, norm::CODES, norm::SCALES, norm::MINIMA].map(|at| self.query.args[at]);
        let written = [&query[..], &[self.rope.args[rope::Y]]].concat();
        let written: Vec<u64> = written.into_iter().filter(|at| *at != 0).collect();
        let mut read = vec![self.rope.args[rope::X], self.rope.args[rope::ANGLES], self.query.args[norm::X]];
        read.extend(self.compressions.iter().map(|(s, _)| s.args[store::X]));
        let differ = (1..written.len()).all(|i| !written[..i].contains(&written[i]));
        differ && !read.iter().any(|r| written.contains(r))
    }

    fn args(&self) -> Vec<u64> {
        let (rope, query) = (&self.rope.args, &self.query.args);
        let mut args = store::STEP.map(|at| self.store.args[at]).to_vec();
        args.extend([rope::X, rope::Y, rope::WEIGHT, rope::EPSILON, rope::ANGLES, rope::HEAD_DIM].map(|at| rope[at]));
        args.extend(rope::TURN.map(|at| rope[at]));
        args.push(self.round.map_or(0, |c| c.args[round::FEATURES]));
        args.extend([store::PAGES, store::RING].map(|at| self.store.args[at]));
        args.push(form_of(self.store).and_then(kept).unwrap_or(0));
        args.extend([norm::X, norm::WEIGHT, norm::Y, norm::CODES, norm::SCALES, norm::MINIMA].map(|at| query[at]));
        args.extend([norm::WIDTH, norm::EPSILON].map(|at| query[at]));
        let first = self.compressions.first().map_or([0; 5], |(_, c)| compress::SHARED.map(|at| c.args[at]));
        args.extend(first);
        for i in 0..COMPRESSIONS_MAX {
            args.extend(self.compressions.get(i).map_or([0; 14], |(s, c)| compression_args(s, c)));
        }
        args
    }
}

/// How a launch keeps rows.
fn form_of(call: &Call) -> Option<RowForm> {
    match call.module {
        Module::StoreRows(form) | Module::Compress(form) => Some(form),
        _ => None,
    }
}

/// What the kernel is told of how rows are kept (`Kept` of `kernels/latent/arrive.cu`), if it keeps them so.
fn kept(form: RowForm) -> Option<u64> {
    let (coded, scales) = match form.format {
        RowFormat::Plain(KvFormat::F16) => (0, 0),
        RowFormat::Plain(_) => return None,
        RowFormat::Packed(packing) => (packing.coded(form.width), packing.row(form.width).scales),
    };
    let parts = [form.number(), coded, scales, form.bytes()];
    parts.into_iter().rev().try_fold(0, |bits, part| Some(bits << 16 | u64::from(u16::try_from(part).ok()?)))
}

/// Whether inputs are stored, and these are what is compressed.
fn is_compression(store: &Call, compress: &Call, rows: u32) -> bool {
    let (Module::StoreRows(inputs), Module::Compress(output)) = (store.module, compress.module) else { return false };
    let is_same = [(store::PAGES, compress::INPUTS), (store::RING, compress::RING)];
    is_same.iter().all(|(a, b)| store.args[*a] == compress.args[*b])
        && inputs.format == RowFormat::Plain(KvFormat::F32)
        && inputs.width as u64 == 2 * compress.args[compress::INPUT_WIDTH]
        && kept(output).is_some()
        && (store.grid[0], compress.grid[0]) == (rows, rows)
        && output.width <= ARRIVE_THREADS
        // Rows of inputs lie without gaps.
        && inputs.bytes() == 4 * inputs.width
}

/// Parameters of one compression.
fn compression_args(store: &Call, compress: &Call) -> [u64; 14] {
    let Some(output) = form_of(compress) else { return [0; 14] };
    let a = &compress.args;
    let [inputs, pages, ape, norm] = [compress::INPUTS, compress::PAGES, compress::APE, compress::NORM].map(|at| a[at]);
    let [input_width, ring, ratio, overlap] =
        [compress::INPUT_WIDTH, compress::RING, compress::RATIO, compress::OVERLAP].map(|at| a[at]);
    let [rounding, rounded, factor] = [compress::ROUNDING, compress::ROUNDED, compress::FACTOR].map(|at| a[at]);
    let fresh = store.args[store::X];
    let (width, form) = (output.width as u64, kept(output).unwrap_or(0));
    [fresh, inputs, pages, ape, norm, width, input_width, ring, ratio, overlap, rounding, rounded, factor, form]
}

const _: () = assert!(2 + 13 + 8 + 5 + 14 * COMPRESSIONS_MAX <= ARGS_MAX);
