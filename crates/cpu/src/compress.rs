//! Compressed rows: means of tokens, feature by feature; then the norm, the rotation and the rounding of a row.

use std::sync::Arc;

use tessera_ops::{Batch, Compressor, KvEntry, math};

use crate::{
    CpuDevice,
    isa::Kernel,
    kv::{KvPages, rows::Rows, store_rows},
    lanes::{Workers, load, store},
    norm::rms_norm,
    simd::{LANES, Simd},
    tensor::Pool,
    threads::SharedSlice,
};

/// A row to be made: the row of the batch that completes it, and its index.
#[derive(Clone, Copy)]
struct Completed {
    row: usize,
    index: usize,
}

/// Makes the rows that the batch's tokens complete.
pub(crate) fn compress(
    workers: &Workers,
    pool: &Arc<Pool>,
    cache: &mut KvPages,
    compressor: &Compressor<CpuDevice>,
    batch: &Batch,
) {
    compressor.check(|entry| cache.entry(entry), batch);
    let inputs = cache.rows(compressor.inputs);
    assert_eq!(
        compressor.ape.len(),
        compressor.ratio * compressor.input_width(),
        "each token of a block has its scores"
    );
    let completed = (0..batch.len()).filter_map(|row| {
        let index = compressor.completed_by(batch.positions[row] as usize)?;
        Some(Completed { row, index })
    });
    let completed: Vec<Completed> = completed.collect();
    if completed.is_empty() {
        return;
    }
    let (head_dim, ratio) = (compressor.head_dim, compressor.ratio);
    let mut means = pool.take(completed.len(), head_dim);
    let vectors = head_dim.div_ceil(LANES);
    let out = SharedSlice::new(means.as_mut_slice());
    workers.items(completed.len() * vectors, 4 * completed.len() * compressor.window() * head_dim, |from, end| {
        workers.isa.run(Means { inputs, compressor, batch, completed: &completed, from, end, out: &out });
    });
    let mut rows = rms_norm(workers, pool, &means, &compressor.norm, compressor.epsilon);
    workers.runs(rows.as_mut_slice(), head_dim, |first, rows| {
        for (row, completed) in rows.chunks_exact_mut(head_dim).zip(&completed[first..]) {
            turn(compressor, (completed.index * ratio) as f64, row);
            if let Some(rounding) = compressor.rounding {
                rounding.apply(row);
            }
        }
    });
    let place = |i: usize| {
        let Completed { row, index } = completed[i];
        let (page, slot) = KvEntry::compressed_place(ratio, index);
        (batch.page(row, page, None), slot)
    };
    store_rows(workers, cache.rows_mut(compressor.output), rows.as_slice(), &place);
}

/// Turns the last features of a row to a position.
fn turn(compressor: &Compressor<CpuDevice>, position: f64, row: &mut [f32]) {
    let (rope, features) = (&compressor.rope, &mut row[compressor.rotated_from()..]);
    for (pair, frequency) in rope.frequencies.iter().enumerate() {
        let (sin, cos) = math::sin_cos(position * frequency);
        let (cos, sin) = (cos * rope.magnitude, sin * rope.magnitude);
        let (first, second) = rope.layout.pair(pair, rope.frequencies.len());
        let (a, b) = (features[first], features[second]);
        features[first] = a.mul_add(cos, -(b * sin));
        features[second] = b.mul_add(cos, a * sin);
    }
}

/// Vectors of the means of all completed rows.
struct Means<'a> {
    inputs: &'a Rows,
    compressor: &'a Compressor<CpuDevice>,
    batch: &'a Batch,
    completed: &'a [Completed],
    from: usize,
    end: usize,
    /// (completed rows, head_dim)
    out: &'a SharedSlice<'a, f32>,
}

impl Kernel for Means<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (compressor, width) = (self.compressor, self.compressor.input_width());
        let (head_dim, ratio) = (compressor.head_dim, compressor.ratio);
        let (vectors, ring_pages) = (head_dim.div_ceil(LANES), self.inputs.kind().ring_pages());
        for item in self.from..self.end {
            let (Completed { row, index }, feature) = (self.completed[item / vectors], item % vectors * LANES);
            let count = LANES.min(head_dim - feature);
            let mut highest = simd.splat(f32::NEG_INFINITY);
            let (mut total, mut sum) = (simd.splat(0.0), simd.splat(0.0));
            for is_sum in [false, true] {
                for (position, column) in compressor.tokens(index) {
                    let (page, slot) = self.batch.slot(row, position, ring_pages);
                    let (input, at) = (self.inputs.numbers(page, slot), column + feature);
                    let ape = &compressor.ape[position % ratio * width + at..][..count];
                    let score = simd.add(load(simd, &input[width + at..][..count]), load(simd, ape));
                    if is_sum {
                        let weight = simd.exp(simd.sub(score, highest));
                        total = simd.add(total, weight);
                        sum = simd.fma(weight, load(simd, &input[at..][..count]), sum);
                    } else {
                        // A score that is NaN is not above the highest, which stays.
                        highest = simd.max(score, highest);
                    }
                }
            }
            let at = item / vectors * head_dim + feature;
            // SAFETY: no other item has these features of this row.
            store(simd, unsafe { self.out.range(at, at + count) }, simd.div(sum, total));
        }
    }
}
