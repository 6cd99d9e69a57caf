//! Projections: dense, grouped and routed ones are the same kernels over other columns. Rows of each role have their own launches.

use std::{cell::OnceCell, ops::Range, sync::Arc};

use tessera_ops::{
    Role,
    numerics::{ACTIVATION_BLOCK, segment_count},
};

use super::{
    layout::Layout,
    many::{self, Numbers},
    pack::PackedMatrix,
    prefill::{self, Halves, halves},
    select::Packed,
    tile::{CodesTile, FloatsTile, Launch, MMA_COLUMNS, WARP},
    wide_tile::Tile,
};
use crate::{
    driver::{Arg, Args, Gpu, Memory},
    kernels::Module,
    roles::Roles,
    routes::{List, Routes},
    rowwise,
    tensor::Tensor,
};

/// Warps of a block that quantizes: one a block of activations.
const QUANTIZE_WARPS: usize = 8;

/// Bytes of a block's scale and sums.
const SCALE_BYTES: usize = 8;

/// Bytes of what weights with minima take of a block.
const MINIMA_BYTES: usize = 16;

/// No block of a launch.
pub(crate) const NO_BLOCK: usize = u32::MAX as usize;

/// Rows of a tensor as codes: (rows, width / 32) blocks, rows by eights.
pub(crate) struct Codes {
    rows: usize,
    blocks: usize,
    codes: Memory,
    scales: Memory,
    minima: Memory,
}

/// The columns of a projection: which rows of the input meet which matrix of a stack.
#[derive(Clone, Copy)]
pub(crate) enum Columns<'a> {
    /// All rows meet the one matrix.
    Dense,
    /// Each matrix meets its slice of all rows.
    Grouped,
    /// Each matrix meets the places routed to it; a row of the input serves this many of them.
    Routed { routes: &'a Routes, places_each: usize },
}

/// Rows of one role: what a launch multiplies.
#[derive(Clone)]
pub(crate) struct Share<'a> {
    pub(crate) role: Role,
    /// Rows of the input.
    pub(crate) x: Range<usize>,
    /// Rows of the result.
    pub(crate) y: Range<usize>,
    /// The places of each expert, and how many a row of the input serves.
    pub(crate) places: Option<(&'a List, usize)>,
    /// The expert of each place.
    pub(crate) chosen: Option<Arg<'a>>,
    /// Whether each matrix has its slice of a row.
    pub(crate) is_sliced: bool,
    /// Matrices that share the input, and so a launch.
    pub(crate) joined: usize,
}

impl<'a> Columns<'a> {
    /// Launches of an input.
    pub(crate) fn shares(&self, x: &Tensor) -> Vec<Share<'a>> {
        let is_sliced = matches!(self, Columns::Grouped);
        match *self {
            Columns::Dense | Columns::Grouped => {
                let share = |role, rows: Range<usize>| Share {
                    role,
                    x: rows.clone(),
                    y: rows,
                    places: None,
                    chosen: None,
                    is_sliced,
                    joined: 1,
                };
                x.roles.runs().iter().map(|run| share(run.role, run.rows.clone())).collect()
            }
            Columns::Routed { routes, places_each } => {
                let share = |list: &'a List| {
                    let rows_of = |each: usize| list.rows.start * each..list.rows.end * each;
                    let y = rows_of(routes.slots);
                    let chosen = Some(Arg::From(&routes.chosen, y.start * size_of::<u32>()));
                    let (x, places) = (rows_of(routes.slots / places_each), Some((list, places_each)));
                    Share { role: list.role, x, y, places, chosen, is_sliced, joined: 1 }
                };
                routes.lists.iter().map(share).collect()
            }
        }
    }

    /// Holds the shapes to each other; gives the rows of the result and their roles.
    fn result_rows(&self, x: &Tensor, matrix: &PackedMatrix) -> (usize, Roles) {
        let slices = if matches!(self, Columns::Grouped) { matrix.segments } else { 1 };
        assert_eq!(x.width, slices * matrix.depth, "a row of activations is as long as a row of weights");
        match *self {
            Columns::Dense => {
                assert_eq!(matrix.segments, 1, "one matrix");
                (x.rows, x.roles.clone())
            }
            Columns::Grouped => (x.rows, x.roles.clone()),
            Columns::Routed { routes, places_each } => {
                assert_eq!(x.rows * places_each, routes.tokens * routes.slots, "each token has its routes");
                assert_eq!(routes.experts, matrix.segments, "each expert has its matrix");
                (routes.tokens * routes.slots, routes.roles.times(routes.slots))
            }
        }
    }
}

impl Share<'_> {
    /// The most columns that one matrix can have: a token's slots are different experts, so an expert has at most the tokens.
    pub(crate) fn columns_max(&self) -> usize {
        self.places.map_or(self.x.len(), |(list, _)| list.rows.len())
    }

    /// Places that a row of the input serves.
    pub(crate) fn places_each(&self) -> usize {
        self.places.map_or(1, |(_, each)| each)
    }

    /// Columns: of all matrices together where they are routed, else of each.
    pub(crate) fn columns(&self) -> usize {
        self.x.len() * self.places_each()
    }

    /// Slices of a row of the input, of which each of so many matrices has one; or the one that all have.
    pub(crate) fn slices(&self, segments: usize) -> usize {
        if self.is_sliced { segments } else { 1 }
    }

    /// Runs of so many columns that hold all, at most: each matrix's columns begin with a run of their own.
    pub(crate) fn runs(&self, run: usize, segments: usize) -> usize {
        self.columns().div_ceil(run) + if self.places.is_some() { segments } else { 0 }
    }

    /// Columns that a matrix is expected to have: of experts, half again the mean.
    fn columns_expected(&self, segments: usize) -> usize {
        let places = self.columns();
        if self.places.is_some() {
            (places + places / 2).div_ceil(segments.max(1)).min(self.columns_max())
        } else {
            places
        }
    }

    /// Where each matrix's places begin, and the places.
    pub(crate) fn lists(&self) -> [Arg<'_>; 2] {
        self.places.map_or([Arg::Null, Arg::Null], |(l, _)| [Arg::Memory(&l.starts), Arg::Memory(&l.order)])
    }
}

/// The first of these rows on.
pub(crate) fn rows_of<'a>(tensor: &'a Tensor, rows: &Range<usize>) -> Arg<'a> {
    Arg::From(&tensor.memory, rows.start * tensor.width * size_of::<f32>())
}

impl Codes {
    /// Room for rows of `width` numbers.
    pub(crate) fn new(gpu: &Arc<Gpu>, rows: usize, width: usize) -> Codes {
        assert!(width.is_multiple_of(ACTIVATION_BLOCK), "quantized weights have whole blocks of inputs");
        let (padded, blocks) = (rows.next_multiple_of(MMA_COLUMNS), width / ACTIVATION_BLOCK);
        assert!(u32::try_from(padded * blocks).is_ok(), "kernels count blocks in 32 bits");
        let take = |bytes: usize| gpu.take(padded * blocks * bytes);
        Codes { rows, blocks, codes: take(ACTIVATION_BLOCK), scales: take(SCALE_BYTES), minima: take(MINIMA_BYTES) }
    }

    /// Blocks of a row.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// As kernels take them.
    pub(crate) fn args(&self) -> [Arg<'_>; 3] {
        [&self.codes, &self.scales, &self.minima].map(Arg::Memory)
    }
}

/// Quantizes rows of a tensor; fine ones to twice as many rows, the second half being what the first codes leave.
fn quantize(gpu: &Arc<Gpu>, x: &Tensor, of: Range<usize>, is_fine: bool) -> Codes {
    let codes = Codes::new(gpu, if is_fine { 2 * of.len() } else { of.len() }, x.width);
    let mut args = Args::of([rows_of(x, &of)]);
    args.extend(codes.args());
    args.extend([of.len(), codes.blocks, is_fine.into()].map(Arg::U32));
    let grid = [(of.len() * codes.blocks).div_ceil(QUANTIZE_WARPS), 1, 1];
    let launch = Launch { grid, threads: QUANTIZE_WARPS * WARP, shared_bytes: 0, groups: 1 };
    gpu.launch(Module::Quantize, "quantize", launch, &args);
    codes
}

/// A matrix with its bias.
pub(crate) type Biased<'a> = (&'a PackedMatrix, Option<&'a Memory>);

/// Projections that share an input, which is brought into each arithmetic's form once.
pub(crate) fn project<const N: usize>(
    gpu: &Arc<Gpu>,
    x: &Tensor,
    matrices: [Biased<'_>; N],
    columns: Columns<'_>,
) -> [Tensor; N] {
    let mut results = matrices.map(|(matrix, _)| {
        let (rows, roles) = columns.result_rows(x, matrix);
        let slices = if matches!(columns, Columns::Grouped) { matrix.segments } else { 1 };
        Tensor::new(gpu, rows, slices * matrix.rows, roles)
    });
    for share in columns.shares(x) {
        let share = Share { joined: N, ..share };
        let operand = Operand::of(gpu, x, &matrices.map(|(m, _)| m), &share);
        for (matrix, y) in matrices.into_iter().zip(&mut results) {
            // The tile is that of the largest, so that the queue can make one launch of all.
            let alike = matrices.iter().filter(|(other, _)| other.form == matrix.0.form);
            let tile_rows = alike.map(|(other, _)| other.rows).max().unwrap_or(0);
            product_in_tile(gpu, x, &operand, (matrix, tile_rows), &share, y);
            // What slices give is multiplied next. Its codes are taken while those of the input lie elsewhere, so that both are one launch.
            let is_whole = share.is_sliced && share.y == (0..y.rows) && y.width.is_multiple_of(ACTIVATION_BLOCK);
            if is_whole && matches!(operand, Operand::Codes(_)) {
                y.codes = Some(Arc::new(quantize(gpu, y, share.y.clone(), false)));
            }
        }
    }
    results
}

/// Rows as codes, and where a tile wants them as numbers too.
pub(crate) struct CodesOperand {
    codes: Arc<Codes>,
    numbers: OnceCell<Numbers>,
}

impl CodesOperand {
    fn new(codes: Arc<Codes>) -> CodesOperand {
        CodesOperand { codes, numbers: OnceCell::new() }
    }
}

/// Rows of an input in the form that their arithmetic multiplies.
pub(crate) enum Operand {
    Halves(Halves),
    Codes(CodesOperand),
    /// As they are, by plain weights.
    Floats,
}

impl Operand {
    /// For all of these matrices, which have one depth.
    pub(crate) fn of(gpu: &Arc<Gpu>, x: &Tensor, matrices: &[&PackedMatrix], share: &Share<'_>) -> Operand {
        let wants_codes = matrices.iter().any(|m| matches!(m.form, Packed::Codes(_)));
        match (share.role, matrices.first()) {
            (Role::Prefill, Some(first)) => Operand::Halves(halves(gpu, x, first, share)),
            _ if wants_codes => {
                let ready = x.codes.clone().filter(|_| share.x == (0..x.rows));
                let codes = ready.unwrap_or_else(|| Arc::new(quantize(gpu, x, share.x.clone(), false)));
                Operand::Codes(CodesOperand::new(codes))
            }
            _ => Operand::Floats,
        }
    }
}

/// Writes one matrix's rows of a result.
pub(crate) fn product(
    gpu: &Arc<Gpu>,
    x: &Tensor,
    operand: &Operand,
    matrix: Biased<'_>,
    share: &Share<'_>,
    y: &Tensor,
) {
    product_in_tile(gpu, x, operand, (matrix, matrix.0.rows), share, y);
}

/// The same in the tile of a matrix of `tile_rows` rows.
fn product_in_tile(
    gpu: &Arc<Gpu>,
    x: &Tensor,
    operand: &Operand,
    ((matrix, bias), tile_rows): (Biased<'_>, usize),
    share: &Share<'_>,
    y: &Tensor,
) {
    match (operand, matrix.form) {
        (Operand::Halves(halves), _) => prefill::multiply(gpu, halves, matrix, bias, share, y),
        (Operand::Codes(codes), Packed::Codes(layout)) => {
            multiply(gpu, (Input::Codes(layout, codes), tile_rows), (matrix, bias), share, y);
        }
        _ => multiply(gpu, (Input::Floats(x), tile_rows), (matrix, bias), share, y),
    }
}

/// A projection in the fine arithmetic, where rows run in codes; 16 bits are fine enough.
pub(crate) fn project_fine(gpu: &Arc<Gpu>, x: &Tensor, matrix: &PackedMatrix, bias: Option<&Memory>) -> Tensor {
    let Packed::Codes(layout) = matrix.form else {
        let [y] = project(gpu, x, [(matrix, bias)], Columns::Dense);
        return y;
    };
    let (rows, roles) = Columns::Dense.result_rows(x, matrix);
    let y = Tensor::new(gpu, rows, matrix.rows, roles);
    for share in Columns::Dense.shares(x) {
        if share.role == Role::Prefill {
            prefill::multiply(gpu, &halves(gpu, x, matrix, &share), matrix, bias, &share, &y);
            continue;
        }
        let codes = CodesOperand::new(Arc::new(quantize(gpu, x, share.x.clone(), true)));
        let rows = codes.codes.rows;
        let parts = Tensor::new(gpu, rows, matrix.rows, Roles::all(Role::Decode, rows));
        let both = Share { x: 0..rows, y: 0..rows, ..share };
        multiply(gpu, (Input::Codes(layout, &codes), matrix.rows), (matrix, None), &both, &parts);
        rowwise::add_fine(gpu, &parts, bias, &y, share.y);
    }
    y
}

/// Has blocks of a narrow tile go on, to further columns of their expert, which few have, and to further rows: in so many turns.
fn go_on(launch: &mut Launch, tile: CodesTile, (rows, segments): (usize, usize), share: &Share<'_>) -> usize {
    if share.places.is_some() && tile.goes_on() {
        launch.grid[1] = share.columns_expected(segments).div_ceil(tile.columns());
    }
    let turns = tile.turns(*launch, rows, share.joined);
    launch.grid[0] = launch.grid[0].div_ceil(turns);
    turns
}

/// The input in the form that a matrix multiplies.
enum Input<'a> {
    Codes(Layout, &'a CodesOperand),
    Floats(&'a Tensor),
}

/// Places of `codes.cu` for what the queue lets follow: codes of the result, what is gated, the gate and its limit.
const NOTHING_FOLLOWS: [Arg<'static>; 6] = [Arg::Null, Arg::Null, Arg::Null, Arg::Null, Arg::U32(0), Arg::F32(0.0)];

/// Multiplies rows in the arithmetic of codes, or of plain weights; in the tile of a matrix of `tile_rows` rows.
fn multiply(
    gpu: &Arc<Gpu>,
    (input, tile_rows): (Input<'_>, usize),
    (matrix, bias): Biased<'_>,
    share: &Share<'_>,
    y: &Tensor,
) {
    let PackedMatrix { form, segments, rows, depth, .. } = *matrix;
    let (columns_max, split) = (share.columns_max(), segment_count(depth));
    // Blocks for each place, where experts are more.
    let (mut by_place, mut turns) = (None, 1);
    let (module, launch, row_length) = match &input {
        Input::Codes(layout, codes) => {
            // Of experts, no more than places are met, and each tile of their columns has the block of its first place.
            let places = share.columns();
            by_place = share.chosen.filter(|_| places < segments);
            let met = if by_place.is_some() { places } else { segments };
            // One expert of many is not one matrix: other tiles are compiled.
            let tile = matrix.tile(gpu, tile_rows, met.max(segments.min(2)), share.columns_expected(segments));
            let mut launch = match tile {
                Tile::Many(many) => {
                    let numbers = codes.numbers.get_or_init(|| Numbers::of(gpu, &codes.codes, matrix, share));
                    return many::multiply(gpu, (numbers, *layout, many), (matrix, bias), share, y);
                }
                Tile::Narrow(narrow) => narrow.launch(*layout, (rows, columns_max), segments, split),
                Tile::Wide(wide) => wide.launch(*layout, (rows, columns_max), segments),
            };
            launch.grid = [launch.grid[0], if by_place.is_some() { 1 } else { launch.grid[1] }, met];
            if let Tile::Narrow(narrow) = tile {
                turns = go_on(&mut launch, narrow, (rows, segments), share);
            }
            (Module::product(*layout, tile), launch, codes.codes.blocks)
        }
        Input::Floats(x) => {
            let Packed::Float(float) = form else { unreachable!("plain inputs meet plain weights") };
            let tile = FloatsTile::of(tile_rows * segments, columns_max);
            let shape = FloatsTile::shape(tile_rows * segments, depth);
            (Module::Floats(float, tile), tile.launch(float, (rows, columns_max), segments, shape), x.width)
        }
    };
    let (y_rows, weights) = (rows_of(y, &share.y), Arg::Memory(&matrix.memory));
    let (groups, is_sliced) = (launch.groups, usize::from(share.slices(segments) > 1));
    let mut args = Args::of([weights]);
    match &input {
        Input::Codes(_, codes) => {
            // The driver's queue puts further matrices of the same input into the places left free.
            args.extend([Arg::Null; 2].into_iter().chain(codes.codes.args()));
            args.extend([y_rows, Arg::Null, Arg::Null, bias.into(), Arg::Null, Arg::Null]);
            // Of one token, each place has its expert for itself: nothing has to be looked up in lists.
            let is_single = by_place.is_some() && columns_max == 1;
            args.extend(if is_single { [Arg::Null, Arg::Null] } else { share.lists() });
            args.extend([rows, 0, 0, NO_BLOCK, NO_BLOCK].map(Arg::U32));
            args.extend(
                [depth, share.x.len(), share.places_each(), row_length, split, groups, turns, is_sliced].map(Arg::U32),
            );
            args.push(by_place.unwrap_or(Arg::Null));
            args.extend(NOTHING_FOLLOWS.into_iter().filter(|_| matches!(module, Module::Codes(..))));
        }
        Input::Floats(x) => {
            let none = [Arg::Null; 3];
            args.extend(none.into_iter().chain([rows_of(x, &share.x), y_rows]));
            args.extend(none.into_iter().chain([bias.into()]).chain(none));
            args.extend(share.lists());
            args.extend([rows, 0, 0, 0, NO_BLOCK, NO_BLOCK, NO_BLOCK].map(Arg::U32));
            let (row_bits, group_bits) = FloatsTile::shape(tile_rows * segments, depth);
            let of_all = [depth, share.x.len(), share.places_each(), row_length, row_bits, group_bits, is_sliced];
            args.extend(of_all.map(Arg::U32));
        }
    }
    gpu.launch(module, module.entries()[0], launch, &args);
}
