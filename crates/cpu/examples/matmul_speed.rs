//! Speed of projections at many widths, with weights that are not in the cache: billions of operations a second, and
//! billions of weight bytes a second. `cargo run --release -p tessera-cpu --example matmul_speed [THREADS [FORMAT
//! [WIDTH,...]]]` (`TESSERA_KERNELS` forces variants). Best of several runs.

use std::{num::NonZero, time::Instant};

use tessera_cpu::{
    isa::Isa,
    matmul::{Activations, Job, Kernels, Overrides, PackedMatrix, SegmentTable, project_segments},
    threads::{Threads, default_thread_count},
};
use tessera_formats::{Bytes, DType};
use tessera_ops::MatrixSource;

/// Rows and depth: the projections of SmolLM2-135M (with its head), and of a larger model.
const SHAPES: [(usize, usize); 6] = [(576, 576), (1536, 576), (576, 1536), (49152, 576), (4096, 4096), (11008, 4096)];
const WIDTHS: [usize; 8] = [1, 2, 4, 8, 9, 16, 64, 512];
const FORMATS: [DType; 14] = [
    DType::Q4_1,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_K,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q5_K,
    DType::Q6_K,
    DType::Q3_K,
    DType::Q2_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::MXFP4,
    DType::F16,
];
/// Copies of a matrix take turns over this much memory.
const COLD_BYTES: usize = 96 << 20;
const SECONDS: f64 = 0.15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(Ok(default_thread_count()), |a| a.parse::<NonZero<usize>>())?;
    let only = arguments.next().and_then(|a| DType::from_name(&a));
    let widths = match arguments.next() {
        Some(list) => list.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?,
        None => WIDTHS.to_vec(),
    };
    let overrides = Overrides::from_environment()?;
    let isa = overrides.isa.map_or_else(Isa::choose, Ok)?;
    let (kernels, pool) = (Kernels { overrides, ..Kernels::new(isa) }, Threads::new(threads));
    println!("{}, {threads} threads, join {:.0} ns; GOPS (GB/s)", isa.title(), join_seconds(&pool) * 1e9);
    print!("{:<14}{:<6}", "shape", "");
    widths.iter().for_each(|w| print!("{w:>13}"));
    println!();
    for dtype in FORMATS.into_iter().filter(|d| only.is_none_or(|o| o == *d)) {
        for (rows, depth) in SHAPES.into_iter().filter(|s| s.1.is_multiple_of(dtype.block_len())) {
            let source = random(dtype, rows, depth);
            let first = PackedMatrix::pack(&source, &pool)?;
            let (bytes, copies) = (first.bytes(), COLD_BYTES / first.bytes() + 1);
            let mut matrices = vec![first];
            for _ in 1..copies {
                matrices.push(PackedMatrix::pack(&source, &pool)?);
            }
            print!("{:<14}{:<6}", format!("{rows}x{depth}"), dtype.name());
            for &tokens in &widths {
                let seconds = best_seconds(&kernels, &pool, &matrices, tokens, depth);
                let gops = 2.0 * (rows * depth * tokens) as f64 / seconds / 1e9;
                print!("{:>13}", format!("{gops:.0} ({:.0})", bytes as f64 / seconds / 1e9));
            }
            println!();
        }
    }
    Ok(())
}

/// Seconds of an empty region.
fn join_seconds(pool: &Threads) -> f64 {
    let time = |_| {
        let start = Instant::now();
        (0..1000).for_each(|_| pool.run(&|_, _| {}));
        start.elapsed().as_secs_f64() / 1000.0
    };
    (0..20).map(time).fold(f64::INFINITY, f64::min)
}

/// The shortest time of one projection, over rounds through all copies of the matrix.
fn best_seconds(kernels: &Kernels, pool: &Threads, matrices: &[PackedMatrix], tokens: usize, depth: usize) -> f64 {
    let x: Vec<f32> = (0..tokens * depth).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    let mut out = vec![0.0; tokens * matrices[0].rows()];
    let (mut scratch, table) = (Activations::new(), SegmentTable::dense(tokens));
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    let mut next = matrices.iter().cycle();
    // A round is long enough for the clock, and short enough to fall between two disturbances.
    let mut calls = 1;
    while start.elapsed().as_secs_f64() < SECONDS || best.is_infinite() {
        let round = Instant::now();
        for matrix in next.by_ref().take(calls) {
            let job = &mut [Job::new(matrix, None, &mut out)];
            project_segments(kernels, pool, &mut scratch, &x, depth, &table, job);
        }
        let seconds = round.elapsed().as_secs_f64();
        best = best.min(seconds / calls as f64);
        calls = ((1e-3 / best) as usize).max(1);
    }
    best
}

/// A matrix of random codes with harmless scales.
fn random(dtype: DType, rows: usize, depth: usize) -> MatrixSource {
    let mut state = 1u64;
    let mut bytes = vec![0u8; dtype.row_bytes(depth).unwrap_or(0) * rows];
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    // Where a block holds f16 numbers; 0x2000 is 2^-7, as is MXFP4's exponent 0x79.
    let halves: &[usize] = match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        _ => &[0],
    };
    let number: u16 = if dtype == DType::MXFP4 { 0x7979 } else { 0x2000 };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for at in halves {
            block[*at..*at + 2].copy_from_slice(&number.to_le_bytes());
        }
    }
    MatrixSource { name: "random".to_owned(), dtype, rows, depth, bytes: Bytes::new(bytes) }
}
