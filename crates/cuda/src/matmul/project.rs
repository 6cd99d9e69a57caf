//! Launches of projections: dense, grouped and routed ones are the same kernels over other columns.

use std::sync::Arc;

use tessera_ops::numerics::{ACTIVATION_BLOCK, segment_count};

use super::{
    layout::Layout,
    pack::PackedMatrix,
    select::Packed,
    tile::{CodesTile, FloatsTile, Launch, MMA_COLUMNS, WARP},
};
use crate::{
    driver::{Arg, Gpu, Memory},
    kernels::Module,
    routes::Routes,
    tensor::Tensor,
};

/// Warps of a block that quantizes: one a block of activations.
const QUANTIZE_WARPS: usize = 8;

/// Bytes of a block's scale and sums.
const SCALE_BYTES: usize = 8;

/// Bytes of what weights with minima take of a block.
const MINIMA_BYTES: usize = 16;

/// A tensor as codes: (rows, width / 32) blocks, rows by eights.
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

/// Quantizes a tensor; a fine one to twice as many rows, the second half being what the first codes leave.
pub(crate) fn quantize(gpu: &Arc<Gpu>, x: &Tensor, is_fine: bool) -> Codes {
    assert!(x.width.is_multiple_of(ACTIVATION_BLOCK), "quantized weights have whole blocks of inputs");
    let (rows, blocks) = (if is_fine { 2 * x.rows } else { x.rows }, x.width / ACTIVATION_BLOCK);
    assert!(u32::try_from(rows.next_multiple_of(MMA_COLUMNS) * blocks).is_ok(), "kernels count blocks in 32 bits");
    let padded = rows.next_multiple_of(MMA_COLUMNS);
    let codes = Codes {
        rows,
        blocks,
        codes: gpu.take(padded * blocks * ACTIVATION_BLOCK),
        scales: gpu.take(padded * blocks * SCALE_BYTES),
        minima: gpu.take(padded * blocks * MINIMA_BYTES),
    };
    let args = [
        Arg::Memory(&x.memory),
        Arg::Memory(&codes.codes),
        Arg::Memory(&codes.scales),
        Arg::Memory(&codes.minima),
        Arg::U32(x.rows),
        Arg::U32(blocks),
        Arg::U32(is_fine.into()),
    ];
    let grid = [(x.rows * blocks).div_ceil(QUANTIZE_WARPS), 1, 1];
    let launch = Launch { grid, threads: QUANTIZE_WARPS * WARP, shared_bytes: 0, groups: 1 };
    gpu.launch(Module::Quantize, "quantize", launch, &args);
    codes
}

/// The input in the form that a matrix multiplies.
enum Input<'a> {
    Codes(Layout, &'a Codes),
    Floats(&'a Tensor),
}

/// Multiplies. `codes` are those of `x` where the matrix is quantized; with twice its rows, so has the result.
pub(crate) fn project(
    gpu: &Arc<Gpu>,
    x: &Tensor,
    codes: Option<&Codes>,
    matrix: &PackedMatrix,
    bias: Option<&Memory>,
    columns: Columns<'_>,
) -> Tensor {
    let PackedMatrix { form, segments, rows, depth, .. } = *matrix;
    let input = match (form, codes) {
        (Packed::Codes(layout), Some(codes)) => Input::Codes(layout, codes),
        (Packed::Float(_), _) => Input::Floats(x),
        (Packed::Codes(_), None) => unreachable!("whoever multiplies by codes has quantized the input"),
    };
    let (tokens, width) = match &input {
        Input::Codes(_, codes) => (codes.rows, codes.blocks * ACTIVATION_BLOCK),
        Input::Floats(x) => (x.rows, x.width),
    };
    let slices = if matches!(columns, Columns::Grouped) { segments } else { 1 };
    assert_eq!(width, slices * depth, "a row of activations is as long as a row of weights");
    let (y_rows, columns_max, lists) = match columns {
        Columns::Dense => {
            assert_eq!(segments, 1, "one matrix");
            (tokens, tokens, None)
        }
        Columns::Grouped => (tokens, tokens, None),
        Columns::Routed { routes, places_each } => {
            assert_eq!(tokens * places_each, routes.tokens * routes.slots, "each token has its routes");
            assert_eq!(routes.experts, segments, "each expert has its matrix");
            // A token's slots are different experts, so an expert has at most the tokens.
            (tokens * places_each, routes.tokens, Some((routes, places_each)))
        }
    };
    let y = Tensor::new(gpu, y_rows, slices * rows);
    let split = segment_count(depth);
    let (module, launch, row_length) = match &input {
        Input::Codes(layout, codes) => {
            let tile = matrix.forced.unwrap_or_else(|| CodesTile::for_columns(*layout, columns_max));
            (Module::Codes(*layout, tile), tile.launch(*layout, (rows, columns_max), segments, split), codes.blocks)
        }
        Input::Floats(x) => {
            let (tile, Packed::Float(float)) = (FloatsTile::for_columns(columns_max), form) else {
                unreachable!("plain inputs meet plain weights")
            };
            (Module::Floats(float, tile), tile.launch(rows, columns_max, segments, split), x.width)
        }
    };
    let mut args = vec![Arg::Memory(&matrix.memory)];
    match &input {
        Input::Codes(_, codes) => args.extend([&codes.codes, &codes.scales, &codes.minima].map(Arg::Memory)),
        Input::Floats(x) => args.push(Arg::Memory(&x.memory)),
    }
    let (starts, order) =
        lists.map_or((Arg::Null, Arg::Null), |(r, _)| (Arg::Memory(&r.starts), Arg::Memory(&r.order)));
    args.extend([Arg::Memory(&y.memory), bias.into(), starts, order]);
    args.extend([rows, depth, tokens, lists.map_or(1, |(_, each)| each), row_length, y.width, split].map(Arg::U32));
    args.extend([launch.groups, usize::from(slices > 1)].map(Arg::U32));
    gpu.launch(module, module.entries()[0], launch, &args);
    y
}
