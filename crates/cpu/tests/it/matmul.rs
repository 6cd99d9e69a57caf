//! Projections: every format, instruction set, width, position, depth and number of threads gives the reference's bits.

use std::num::NonZero;

use proptest::prelude::*;
use tessera_cpu::{
    isa::Isa,
    matmul::{Activations, Job, PackedMatrix, project, select::select, tile},
    threads::Threads,
};
use tessera_formats::{Bytes, DType};
use tessera_ops::{
    Device, Error, Linear, MatrixSource,
    reference::{
        ReferenceDevice, Tensor,
        float64::{Float64Device, Tensor64},
    },
};

use crate::weights::{activations, matrix};

fn weight_formats() -> impl Iterator<Item = DType> {
    DType::all().filter(|d| select(*d).is_some())
}

/// Whether tests may take minutes.
fn sweep() -> bool {
    std::env::var_os("TESSERA_SWEEP").is_some()
}

fn pool(threads: usize) -> Threads {
    Threads::new(NonZero::new(threads).unwrap())
}

/// The reference's answer: (tokens, rows).
fn reference(source: &MatrixSource, bias: Option<&[f32]>, x: &[f32], tokens: usize) -> Vec<f32> {
    let x = Tensor { rows: tokens, width: source.depth, values: x.to_vec() };
    let device = ReferenceDevice;
    let linear = Linear { matrix: device.load_matrix(source).unwrap(), bias: bias.map(<[f32]>::to_vec) };
    let [y] = device.project(&x, [&linear]);
    y.values
}

/// One projection into an output poisoned with NaN.
fn run(isa: Isa, pool: &Threads, packed: &PackedMatrix, bias: Option<&[f32]>, x: &[f32], tokens: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; tokens * packed.rows()];
    let jobs = &mut [Job::new(packed, bias, &mut out)];
    project(isa, pool, &mut Activations::new(), x, tokens, packed.depth(), jobs);
    out
}

#[track_caller]
fn assert_same_bits(got: &[f32], want: &[f32], rows: usize, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
        assert!(same, "{what}: token {}, row {}: {g:e} instead of {w:e}", i / rows, i % rows);
    }
}

#[test]
fn every_format_width_and_instruction_set_gives_the_reference_s_bits() {
    let pools = [pool(1), pool(2)];
    // Over every tile's edge: 1..=25 covers one and two panels of 12, 33 three. In a sweep, all.
    let widths: Vec<usize> = if sweep() { (1..=64).collect() } else { (1..=25).chain([33]).collect() };
    let most = widths[widths.len() - 1];
    for dtype in weight_formats() {
        let (rows, depth) = (2 * tile::ROWS + 5, 1280);
        let source = matrix(dtype, rows, depth, 1);
        let x = activations(most, depth, 2);
        let want = reference(&source, None, &x, most);
        let packed = PackedMatrix::pack(&source, &pools[1]).unwrap();
        for isa in Isa::available() {
            for (pool, &tokens) in pools.iter().flat_map(|p| widths.iter().map(move |w| (p, w))) {
                let got = run(isa, pool, &packed, None, &x[..tokens * depth], tokens);
                let what = format!("{dtype}, {}, {tokens} tokens, {} threads", isa.name(), pool.count());
                assert_same_bits(&got, &want[..tokens * rows], rows, &what);
            }
        }
    }
}

#[test]
fn every_depth_gives_the_reference_s_bits() {
    let pool = pool(2);
    for dtype in weight_formats() {
        let block = dtype.block_len();
        // One block; around the cuts of segments; and with a rest that is no whole unit of 256.
        let depths = [block, 2 * block, 480, 512, 768, 992, 1024, 1280, 2048 + 256, 4096, 4096 + 256, 4096 + 96];
        // Floats have no blocks, so any depth will do.
        let odd: &[usize] = if dtype.is_float() { &[1, 7, 33, 515, 1029] } else { &[] };
        for depth in depths.iter().chain(odd).copied().filter(|d| d.is_multiple_of(block)) {
            let (rows, tokens) = (tile::ROWS + 3, 3);
            let source = matrix(dtype, rows, depth, 3);
            let x = activations(tokens, depth, 4);
            let want = reference(&source, None, &x, tokens);
            let packed = PackedMatrix::pack(&source, &pool).unwrap();
            for isa in Isa::available() {
                let got = run(isa, &pool, &packed, None, &x, tokens);
                assert_same_bits(&got, &want, rows, &format!("{dtype}, {}, depth {depth}", isa.name()));
            }
        }
    }
}

#[test]
fn every_number_of_rows_is_covered_and_no_more() {
    let (pool, depth, tokens) = (pool(2), 256, 14);
    let x = activations(tokens, depth, 5);
    for dtype in [DType::F16, DType::Q4_1, DType::Q6_K] {
        for rows in 1..=2 * tile::ROWS + 1 {
            let source = matrix(dtype, rows, depth, 6);
            let bias: Vec<f32> = activations(1, rows, 7);
            let want = reference(&source, Some(&bias), &x, tokens);
            let packed = PackedMatrix::pack(&source, &pool).unwrap();
            for isa in Isa::available() {
                let got = run(isa, &pool, &packed, Some(&bias), &x, tokens);
                assert_same_bits(&got, &want, rows, &format!("{dtype}, {}, {rows} rows", isa.name()));
            }
        }
    }
}

/// Rows of one sequence or many, in any order, some of them twice, cut into steps anyhow.
#[derive(Clone, Debug)]
struct Steps {
    dtype: DType,
    threads: usize,
    /// Which of the input rows stand where; the last of these is not a number.
    picks: Vec<usize>,
    /// Rows of the first step, the second, … as far as the picks go.
    chunks: Vec<usize>,
}

const INPUT_ROWS: usize = 24;

fn steps() -> impl Strategy<Value = Steps> {
    let formats: Vec<DType> = weight_formats().collect();
    let (picks, chunks) = (prop::collection::vec(0..INPUT_ROWS, 1..=64), prop::collection::vec(1usize..=64, 64));
    (prop::sample::select(formats), 1usize..=2, picks, chunks).prop_map(|(dtype, threads, picks, chunks)| Steps {
        dtype,
        threads,
        picks,
        chunks,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if sweep() { 1000 } else { 100 }))]

    /// Every format and instruction set, at any position, beside any neighbours, in any chunks, on one thread or two.
    #[test]
    fn neighbours_positions_and_chunks_change_nothing(steps in steps()) {
        let Steps { dtype, threads, picks, chunks } = steps;
        let (rows, depth, pool) = (21, 512 + dtype.block_len(), pool(threads));
        let source = matrix(dtype, rows, depth, 8);
        let mut x = activations(INPUT_ROWS, depth, 9);
        x[(INPUT_ROWS - 1) * depth + 100] = f32::NAN;
        let alone = reference(&source, None, &x, INPUT_ROWS);
        prop_assert!(alone[(INPUT_ROWS - 1) * rows..].iter().all(|v| v.is_nan()), "a bad row must show");
        let packed = PackedMatrix::pack(&source, &pool).unwrap();
        let row = |all: &[f32], pick: usize, width: usize| all[pick * width..][..width].to_vec();
        for isa in Isa::available() {
            let mut left = &picks[..];
            for chunk in &chunks {
                let (now, later) = left.split_at(left.len().min(*chunk));
                let input: Vec<f32> = now.iter().flat_map(|pick| row(&x, *pick, depth)).collect();
                let want: Vec<f32> = now.iter().flat_map(|pick| row(&alone, *pick, rows)).collect();
                let got = run(isa, &pool, &packed, None, &input, now.len());
                assert_same_bits(&got, &want, rows, &format!("{dtype}, {}, {} tokens", isa.name(), now.len()));
                left = later;
            }
            prop_assert!(left.is_empty());
        }
    }
}

#[test]
fn jobs_of_all_formats_share_one_input_and_scratch() {
    let (depth, pool) = (768, pool(2));
    let mut scratch = Activations::new();
    let sources: Vec<_> = weight_formats().enumerate().map(|(i, d)| matrix(d, 5 + 7 * i, depth, i as u64)).collect();
    let packed: Vec<_> = sources.iter().map(|s| PackedMatrix::pack(s, &pool).unwrap()).collect();
    for tokens in [0, 40, 1, 3, 17] {
        let x = activations(tokens, depth, 10);
        for isa in Isa::available() {
            let mut outs: Vec<Vec<f32>> = sources.iter().map(|s| vec![f32::NAN; tokens * s.rows]).collect();
            let mut jobs: Vec<_> = packed.iter().zip(&mut outs).map(|(p, o)| Job::new(p, None, o)).collect();
            project(isa, &pool, &mut scratch, &x, tokens, depth, &mut jobs);
            for (source, out) in sources.iter().zip(&outs) {
                let want = reference(source, None, &x, tokens);
                assert_same_bits(out, &want, source.rows, &format!("{}, {} tokens", source.dtype, tokens));
            }
        }
    }
}

#[test]
fn results_are_close_to_float64() {
    let (rows, depth, tokens, pool) = (33, 2048, 3, pool(1));
    let x = activations(tokens, depth, 11);
    for dtype in weight_formats() {
        let source = matrix(dtype, rows, depth, 12);
        let got = run(Isa::best(), &pool, &PackedMatrix::pack(&source, &pool).unwrap(), None, &x, tokens);
        let truth = Float64Device;
        let linear = Linear { matrix: truth.load_matrix(&source).unwrap(), bias: None };
        let [want] = truth.project(&tensor64(tokens, depth, &x), [&linear]);
        let error: f64 = (0..tokens * rows).map(|i| (want.values[i] - f64::from(got[i])).powi(2)).sum();
        let norm: f64 = want.values.iter().map(|v| v * v).sum();
        // Eight-bit activations with outliers cost about 1 %; plain weights only rounding.
        let bound = if dtype.is_float() { 1e-6 } else { 2.5e-2 };
        assert!((error / norm).sqrt() < bound, "{dtype}: {}", (error / norm).sqrt());
    }
}

fn tensor64(rows: usize, width: usize, values: &[f32]) -> Tensor64 {
    Tensor64 { rows, width, values: values.iter().map(|v| f64::from(*v)).collect() }
}

#[test]
fn damaged_weights_are_refused_by_name_and_row() {
    let pool = pool(2);
    for (dtype, depth, bad_block, what) in
        [(DType::Q8_0, 64, 5 * 2 + 1, "scale"), (DType::Q4_1, 32, 5, "scale"), (DType::F16, 1, 5, "weight")]
    {
        let source = matrix(dtype, 40, depth, 13);
        let mut bytes = source.bytes.to_vec();
        bytes[bad_block * dtype.block_bytes()..][..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
        let damaged = MatrixSource { bytes: Bytes::new(bytes), ..source };
        match PackedMatrix::pack(&damaged, &pool).err() {
            Some(Error::NotFinite { tensor, row: 5, what: said }) => {
                assert_eq!((tensor.as_str(), said), (format!("random {dtype}").as_str(), what));
            }
            other => panic!("{dtype}: {other:?}"),
        }
    }
}

#[test]
fn formats_that_are_no_weights_and_wrong_shapes_are_refused() {
    let pool = pool(1);
    let source = |dtype, bytes| MatrixSource { name: "t".into(), dtype, rows: 2, depth: 4, bytes: Bytes::new(bytes) };
    let integers = PackedMatrix::pack(&source(DType::I32, vec![0u8; 32]), &pool);
    assert!(matches!(integers.err(), Some(Error::Unsupported { .. })));
    let short = PackedMatrix::pack(&source(DType::F32, vec![0u8; 31]), &pool);
    assert!(matches!(short.err(), Some(Error::Shape { .. })));
}

#[test]
fn packing_adds_little_to_what_the_file_has() {
    let pool = pool(1);
    // Bytes a weight, packed over file, for the formats with layouts of their own bits.
    for (dtype, most) in [
        (DType::Q4_0, 1.0),
        (DType::Q4_1, 1.0),
        (DType::Q5_0, 1.0),
        (DType::Q5_1, 1.0),
        (DType::Q8_0, 1.0),
        (DType::Q2_K, 1.0),
        (DType::Q3_K, 1.06),
        (DType::Q4_K, 1.03),
        (DType::Q5_K, 1.03),
        (DType::Q6_K, 1.01),
        (DType::IQ4_NL, 1.0),
        (DType::IQ4_XS, 1.03),
        (DType::MXFP4, 1.06),
        (DType::NVFP4, 1.12),
        (DType::TQ2_0, 1.22),
        (DType::Q1_0, 1.34),
    ] {
        let source = matrix(dtype, 64, 1024, 14);
        let packed = PackedMatrix::pack(&source, &pool).unwrap();
        assert!(packed.bytes() as f64 <= source.bytes.len() as f64 * most, "{dtype}");
    }
}
