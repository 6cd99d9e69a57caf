//! Launches of prompt rows: 16-bit operands, in tiles whose width follows from the columns that a matrix has.

use std::sync::Arc;

use super::{
    pack::PackedMatrix,
    prefill_tile::{self, BLOCK, PrefillTile, TOKENS_MAX, warps},
    project::{Share, rows_of},
    select::Packed,
    tile::WARP,
};
use crate::{
    driver::{Arg, Args, Gpu, Memory},
    kernels::{HALVES_HELD, HALVES_THREADS, HOPPER_ARCH, Module},
    tensor::{Tensor, blocks, each},
};

/// Rows of x that lie together.
const EIGHT: usize = 8;

/// Numbers of a row that a warp brings into 16 bits together.
pub(crate) const HALF_RUN: usize = 256;

/// Bytes of eight rows of a block.
const EIGHT_BYTES: usize = EIGHT * BLOCK * 2;

/// Features of the tiles that [`PrefillTile::time`] tells of.
const TIMED_DEPTH: f64 = 8192.0;

/// Bytes a microsecond that parts of sums are written and read with.
const MEMORY_SPEED: f64 = 3.5e6;

/// Microseconds of another launch.
const LAUNCH: f64 = 3.0;

/// Rows of a tensor as f16 in the order of the columns that they become, as `kernels/quantize/halves.cu` leaves them.
pub(crate) struct Halves {
    /// Eights of rows.
    eights: usize,
    numbers: Memory,
    /// What undoes each row's factor.
    scales: Memory,
}

/// Brings the input of `matrix`, and of all matrices of its depth, into 16 bits.
pub(crate) fn halves(gpu: &Arc<Gpu>, x: &Tensor, matrix: &PackedMatrix, share: &Share<'_>) -> Halves {
    let (segments, depth) = (matrix.segments, matrix.depth);
    let (slices, eights) = (share.slices(segments), share.runs(EIGHT, segments));
    let groups = slices * depth.div_ceil(BLOCK) * eights;
    let halves = Halves {
        eights,
        numbers: gpu.take((groups + TOKENS_MAX / EIGHT) * EIGHT_BYTES),
        scales: gpu.take(eights * EIGHT * size_of::<f32>()),
    };
    let order = share.places.map_or(Arg::Null, |(list, _)| Arg::Memory(&list.columns));
    let mut args = Args::of([rows_of(x, &share.x), Arg::Memory(&halves.numbers), Arg::Memory(&halves.scales), order]);
    args.extend([slices, depth, eights, share.places_each()].map(Arg::U32));
    // Places for the gate that the queue joins with it.
    args.extend([Arg::Null, Arg::Null, Arg::U32(0), Arg::U32(0), Arg::U32(0), Arg::F32(0.0)]);
    // A block holds a row, if one of the blocks can.
    let holds = |threads: &usize| slices * depth <= threads / WARP * HALVES_HELD * HALF_RUN;
    let threads = HALVES_THREADS.into_iter().find(holds).unwrap_or(HALVES_THREADS[0]);
    gpu.launch(Module::Halves(threads), "halves", blocks([share.x.len(), 1, 1], threads), &args);
    halves
}

/// Multiplies rows in the arithmetic of 16-bit operands.
pub(crate) fn multiply(
    gpu: &Arc<Gpu>,
    x: &Halves,
    matrix: &PackedMatrix,
    bias: Option<&Memory>,
    share: &Share<'_>,
    y: &Tensor,
) {
    let PackedMatrix { form, segments, rows, depth, up, .. } = *matrix;
    let columns = share.columns();
    if gpu.arch() != HOPPER_ARCH {
        return multiply_by_warps(gpu, x, matrix, bias, share, y);
    }
    let shape = Shape { rows, depth, segments, columns, is_routed: share.places.is_some() };
    let plan = shape.plan(form, gpu.processors(), matrix.forced_prefill);
    let parts = plan.is_parted.then(|| gpu.take(plan.parts * columns * rows * size_of::<f32>()));
    let tile = plan.tile;
    let module = Module::Prefill(form, tile);
    let sent_parts: Arg<'_> = parts.as_ref().into();
    let mut args =
        vec![Arg::Memory(&matrix.memory), Arg::Memory(&x.numbers), Arg::Memory(&x.scales), rows_of(y, &share.y)];
    args.extend([sent_parts, bias.filter(|_| !plan.is_parted).into()]);
    args.extend(share.lists());
    args.extend([rows, depth, columns, segments, x.eights, y.width, plan.parts].map(Arg::U32));
    args.extend([Arg::U32((share.slices(segments) > 1).into()), Arg::F32(up * form.halved()), Arg::F32(up.recip())]);
    gpu.launch(module, "prefill", tile.launch(form, plan.tiles, gpu.processors()), &args);
    if let Some(parts) = parts {
        let mut args = Args::of([Arg::Memory(&parts), Arg::Memory(&x.scales), rows_of(y, &share.y), bias.into()]);
        args.extend([rows, columns, y.width, plan.parts].map(Arg::U32));
        args.push(Arg::F32(up.recip()));
        gpu.launch(module, "add_parts", each(rows * columns), &args);
    }
}

/// The same on cards that are not Hopper.
fn multiply_by_warps(
    gpu: &Arc<Gpu>,
    x: &Halves,
    matrix: &PackedMatrix,
    bias: Option<&Memory>,
    share: &Share<'_>,
    y: &Tensor,
) {
    let PackedMatrix { form, segments, rows, depth, up, .. } = *matrix;
    let (tokens, parts) = (share.x.len(), prefill_tile::parts(rows, depth, segments));
    let mut args = Args::of([Arg::Memory(&matrix.memory), Arg::Memory(&x.numbers), Arg::Memory(&x.scales)]);
    args.extend([rows_of(y, &share.y), bias.into()]);
    args.extend(share.lists());
    args.extend([rows, depth, tokens, x.eights, y.width, parts].map(Arg::U32));
    args.extend([Arg::U32((share.slices(segments) > 1).into()), Arg::F32(up * form.halved()), Arg::F32(up.recip())]);
    let launch = warps::launch(rows, share.columns_max(), segments);
    gpu.launch(Module::PrefillWarps(form), "prefill_warps", launch, &args);
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    rows: usize,
    depth: usize,
    segments: usize,
    /// Of all segments together where they are routed, else of each.
    columns: usize,
    is_routed: bool,
}

/// How it is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    tile: PrefillTile,
    /// Parts of each sum.
    parts: usize,
    /// Whether tiles take one part each, which are added afterwards; else one tile takes all.
    is_parted: bool,
    /// Tiles, at most.
    tiles: usize,
}

impl Shape {
    /// The tile of the least time by a plain reckoning. Only speed depends on it; the parts of a sum are the shape's.
    fn plan(self, form: Packed, processors: usize, forced: Option<PrefillTile>) -> Plan {
        let parts = prefill_tile::parts(self.rows, self.depth, self.segments);
        let plans = prefill_tile::all(form).into_iter().chain(forced).flat_map(|tile| {
            let plan = |is_parted: bool| {
                let [along_rows, along_columns] = tile.tiles(self.rows, self.columns);
                let tiles = if self.is_routed {
                    along_rows * (along_columns + self.segments)
                } else {
                    along_rows * along_columns * self.segments
                };
                Plan { tile, parts, is_parted, tiles: tiles * if is_parted { parts } else { 1 } }
            };
            [plan(false), plan(true)]
        });
        let is_right = |p: &Plan| match forced {
            Some(tile) => p.tile == tile,
            None => true,
        };
        let can =
            |p: &Plan| if p.parts == 1 { !p.is_parted && !p.tile.has_totals } else { p.is_parted != p.tile.has_totals };
        let least = |a: &Plan, b: &Plan| self.cost(a, processors).total_cmp(&self.cost(b, processors));
        plans.filter(|p| is_right(p) && can(p)).min_by(least).expect("every shape has a tile")
    }

    /// Microseconds by the table: rounds of tiles over the card's processors. Of columns of many matrices the mean is known.
    fn cost(self, plan: &Plan, processors: usize) -> f64 {
        let Plan { tile, parts, is_parted, .. } = *plan;
        let slots = (processors / tile.cluster) as f64;
        let rows = tile.tiles(self.rows, 1)[0];
        let of_columns = |columns: usize| {
            let (whole, left) = (columns / tile.tokens, columns % tile.tokens);
            let rest = if left > 0 { tile.time(tile.width(left)) } else { 0.0 };
            (whole as f64 * tile.time(tile.tokens) + rest, columns.div_ceil(tile.tokens))
        };
        if self.is_routed {
            // Experts do not have the same columns: half have some more than the mean.
            let mean = (self.columns / self.segments).max(1);
            let (time, count) = of_columns(mean + mean / 16);
            let rounds = ((self.segments * rows * count) as f64 / slots).max(1.0);
            return rounds * time / count as f64 * self.depth as f64 / TIMED_DEPTH;
        }
        let (time, count) = of_columns(self.columns);
        let tiles = (self.segments * rows * count * if is_parted { parts } else { 1 }) as f64;
        let products = (tiles / slots).ceil() * time / count as f64 * self.depth as f64 / TIMED_DEPTH;
        if !is_parted {
            return products;
        }
        // Parts are written and read again.
        let numbers = (parts * self.columns * self.rows) as f64;
        products / parts as f64 + 2.0 * numbers * size_of::<f32>() as f64 / MEMORY_SPEED + LAUNCH
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::matmul::layout::{Float, Layout};

    /// What was fastest on an H200, where tiles were measured against each other.
    #[test]
    fn measured_shapes_get_their_tile() {
        let form = Packed::Codes(Layout::all()[0]);
        let dense = |rows, depth, columns| Shape { rows, depth, segments: 1, columns, is_routed: false };
        let experts = |columns| Shape { rows: 2048, depth: 4096, segments: 64, columns, is_routed: true };
        for (shape, consumers, tokens, has_totals) in [
            (dense(32_768, 8192, 64), 4, 64, false),
            (dense(32_768, 8192, 128), 4, 128, false),
            (dense(32_768, 8192, 512), 2, 256, false),
            (dense(32_768, 8192, 2048), 2, 256, false),
            (dense(4096, 4096, 128), 2, 128, false),
            (dense(4096, 4096, 512), 2, 128, true),
            (dense(4096, 4096, 2048), 2, 128, true),
            (experts(6 * 512), 4, 64, false),
            (experts(6 * 2048), 2, 256, false),
        ] {
            let Plan { tile, .. } = shape.plan(form, 132, None);
            assert_eq!((tile.consumers, tile.tokens, tile.has_totals), (consumers, tokens, has_totals), "{shape:?}");
        }
    }

    proptest! {
        /// Whatever is multiplied has a plan whose parts are the shape's alone.
        #[test]
        fn every_shape_has_a_plan(rows in 1usize..40_000, depth in 32usize..20_000, columns in 1usize..5000, segments in 1usize..300) {
            for form in Layout::all().into_iter().map(Packed::Codes).chain(Float::forms()) {
                let shape = Shape { rows, depth, segments, columns, is_routed: segments > 1 };
                let plan = shape.plan(form, 132, None);
                prop_assert!(plan.tile.is_sound(form));
                prop_assert_eq!(plan.parts, Shape { columns: 1, ..shape }.plan(form, 108, None).parts);
                prop_assert!(plan.parts == 1 || plan.is_parted || plan.tile.has_totals);
                prop_assert!(plan.parts * prefill_tile::features_of_stage(form) <= depth || plan.parts == 1);
            }
        }
    }
}
