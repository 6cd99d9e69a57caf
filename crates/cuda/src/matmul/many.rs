//! Launches for many columns on Hopper: codes as f16 numbers in the order of columns, and blocks that go from tile to tile.

use std::sync::Arc;

use tessera_ops::numerics::segment_count;

use super::{
    layout::Layout,
    many_tile::{COLUMN_RUN, ManyTile},
    pack::PackedMatrix,
    prefill_tile::{BLOCK, TOKENS_MAX},
    project::{Biased, Codes, Share, rows_of},
};
use crate::{
    driver::{Arg, Args, Gpu, Memory},
    kernels::Module,
    matmul::tile::Launch,
    tensor::Tensor,
};

/// Threads of a block that writes numbers, eight a column.
pub(crate) const NUMBERS_THREADS: usize = 256;
const COLUMN_THREADS: usize = 8;

/// Blocks along the depth.
const DEPTH_BLOCKS_MAX: usize = 32;

/// Codes as f16 in the order of the columns that they become, as `kernels/quantize/numbers.cu` leaves them.
pub(crate) struct Numbers {
    /// Runs of columns.
    runs: usize,
    numbers: Memory,
    scales: Memory,
    /// Scales times sums of units, and the sums of halves of them.
    minima: [Memory; 2],
}

impl Numbers {
    /// Of the columns of `matrix`, and of all matrices of its depth.
    pub(crate) fn of(gpu: &Arc<Gpu>, codes: &Codes, matrix: &PackedMatrix, share: &Share<'_>) -> Numbers {
        let (segments, depth) = (matrix.segments, matrix.depth);
        let (slices, columns, runs) = (share.slices(segments), share.columns(), share.runs(COLUMN_RUN, segments));
        let blocks = slices * depth.div_ceil(BLOCK);
        let take = |bytes_each: usize| gpu.take((blocks * runs + TOKENS_MAX / COLUMN_RUN) * COLUMN_RUN * bytes_each);
        let units = BLOCK / 32 * size_of::<f32>();
        let minima = [take(units), take(2 * units)];
        let numbers = Numbers { runs, numbers: take(BLOCK * 2), scales: take(units), minima };
        let codes_in = codes.args();
        let [minima, halves] = &numbers.minima;
        let mut args = Args::of(codes_in);
        args.extend([&numbers.numbers, &numbers.scales, minima, halves].map(Arg::Memory));
        args.extend(share.lists());
        args.extend([columns, segments, codes.blocks(), slices, depth, runs, share.places_each()].map(Arg::U32));
        let grid = [(runs * COLUMN_RUN).div_ceil(NUMBERS_THREADS / COLUMN_THREADS), blocks.min(DEPTH_BLOCKS_MAX), 1];
        let launch = Launch { grid, threads: NUMBERS_THREADS, shared_bytes: 0, groups: 1 };
        gpu.launch(Module::Numbers, "numbers", launch, &args);
        numbers
    }
}

/// Multiplies rows of codes in a tile.
pub(crate) fn multiply(
    gpu: &Arc<Gpu>,
    (x, layout, tile): (&Numbers, Layout, ManyTile),
    (matrix, bias): Biased<'_>,
    share: &Share<'_>,
    y: &Tensor,
) {
    let PackedMatrix { segments, rows, depth, .. } = *matrix;
    let columns = share.columns();
    let tiles = tile.tiles((rows, columns), segments, share.places.is_some());
    let minima = &x.minima[usize::from(layout.sub == 16)];
    let mut args = Args::of([&*matrix.memory, &x.numbers, &x.scales, minima].map(Arg::Memory));
    args.extend([rows_of(y, &share.y), bias.into()]);
    args.extend(share.lists());
    args.extend([rows, depth, columns, segments, x.runs, y.width, segment_count(depth)].map(Arg::U32));
    args.push(Arg::U32((share.slices(segments) > 1).into()));
    gpu.launch(Module::Many(layout, tile), "many", tile.launch(layout, tiles, gpu.processors()), &args);
}
