//! Activations times a weight matrix, in the canonical order of [`crate::numerics`].

use tessera_formats::codec::{self, Integers};

use super::{Tensor, embed};
use crate::numerics::{ACTIVATION_BLOCK, ActivationBlock, dot_plain, quantization_rest, quantize_block, segments};
use crate::{Error, MatrixSource};

/// A weight matrix.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    depth: usize,
    weights: Weights,
}

#[derive(Clone, Debug)]
enum Weights {
    /// (rows, depth)
    Float(Vec<f32>),
    Quantized(Quantized),
    Folded(Folded),
}

#[derive(Clone, Debug)]
struct Quantized {
    sub_block_len: usize,
    has_min: bool,
    /// (rows, depth): code - offset
    codes: Vec<i16>,
    /// (rows, depth / sub_block_len)
    scales: Vec<f32>,
    /// (rows, depth / sub_block_len)
    mins: Vec<f32>,
}

/// Of a format that folds scales into its codes.
#[derive(Clone, Debug)]
struct Folded {
    sub_block_len: usize,
    block_len: usize,
    /// (rows, depth): code times the scale's whole number
    codes: Vec<i16>,
    /// (rows, depth / sub_block_len): whole numbers of the second unit
    mins: Vec<u8>,
    /// (rows, depth / block_len): what codes and minima count
    units: Vec<[f32; 2]>,
}

impl Matrix {
    /// Reads a matrix; a scale, minimum or weight that is not finite is refused.
    pub(super) fn load(source: &MatrixSource) -> Result<Matrix, Error> {
        source.row_bytes()?;
        let weights = if source.dtype.is_float() {
            Weights::Float(embed::decode_all(source)?)
        } else if source.dtype.is_folded() {
            Weights::Folded(folded(source)?)
        } else {
            Weights::Quantized(quantized(source)?)
        };
        Ok(Matrix { rows: source.rows, depth: source.depth, weights })
    }
}

fn quantized(source: &MatrixSource) -> Result<Quantized, Error> {
    let (dtype, count) = (source.dtype, source.rows * source.depth);
    let (block_len, sub_block_len) = (dtype.block_len(), dtype.sub_block_len());
    let offset = i16::from(dtype.code_offset());
    let mut q = Quantized {
        sub_block_len,
        has_min: dtype.has_min(),
        codes: Vec::with_capacity(count),
        scales: Vec::with_capacity(count / sub_block_len),
        mins: Vec::with_capacity(count / sub_block_len),
    };
    let mut codes = vec![0u8; block_len];
    let (mut scales, mut mins) = (vec![0.0; block_len / sub_block_len], vec![0.0; block_len / sub_block_len]);
    for (index, block) in source.bytes.chunks_exact(dtype.block_bytes()).enumerate() {
        codec::integers(dtype, block, Integers { codes: &mut codes, scales: &mut scales, mins: &mut mins });
        if scales.iter().chain(&mins).any(|v| !v.is_finite()) {
            let row = index * block_len / source.depth;
            return Err(Error::NotFinite { tensor: source.name.clone(), row, what: "scale" });
        }
        q.codes.extend(codes.iter().map(|c| i16::from(*c) - offset));
        q.scales.extend_from_slice(&scales);
        q.mins.extend_from_slice(&mins);
    }
    Ok(q)
}

fn folded(source: &MatrixSource) -> Result<Folded, Error> {
    let Quantized { sub_block_len, codes, .. } = quantized(source)?;
    let block_len = source.dtype.block_len();
    let mut f = Folded { sub_block_len, block_len, codes, mins: vec![], units: vec![] };
    let blocks = source.bytes.chunks_exact(source.dtype.block_bytes());
    for (block, codes) in blocks.zip(f.codes.chunks_exact_mut(block_len)) {
        let factors = codec::factors(source.dtype, block);
        for (codes, factor) in codes.chunks_exact_mut(sub_block_len).zip(factors.scales) {
            codes.iter_mut().for_each(|code| *code *= i16::from(factor));
        }
        f.mins.extend(&factors.mins[..block_len / sub_block_len]);
        f.units.push(factors.units.map(f32::from));
    }
    Ok(f)
}

pub(super) fn project(x: &Tensor, matrix: &Matrix, bias: Option<&[f32]>) -> Tensor {
    assert_eq!(x.width, matrix.depth, "a row of activations is as long as a row of weights");
    let mut y = Tensor::zeros(x.rows, matrix.rows);
    for row in 0..x.rows {
        let activations: Vec<_> = x.row(row).chunks(ACTIVATION_BLOCK).map(quantize_block).collect();
        for (feature, out) in y.row_mut(row).iter_mut().enumerate() {
            let sum = match &matrix.weights {
                Weights::Float(w) => dot_plain(&w[feature * matrix.depth..][..matrix.depth], x.row(row)),
                Weights::Quantized(q) => dot_quantized(q, feature, matrix.depth, &activations),
                Weights::Folded(f) => dot_folded(f, feature, matrix.depth, &activations),
            };
            *out = bias.map_or(sum, |b| sum + b[feature]);
        }
    }
    y
}

pub(super) fn project_fine(x: &Tensor, matrix: &Matrix, bias: Option<&[f32]>) -> Tensor {
    if matches!(matrix.weights, Weights::Float(_)) {
        return project(x, matrix, bias);
    }
    let mut rest = Tensor::zeros(x.rows, x.width);
    for row in 0..x.rows {
        quantization_rest(x.row(row), rest.row_mut(row));
    }
    let mut y = project(x, matrix, None);
    let y_rest = project(&rest, matrix, None);
    for row in 0..y.rows {
        for (feature, (out, rest)) in y.row_mut(row).iter_mut().zip(y_rest.row(row)).enumerate() {
            let sum = *out + rest;
            *out = bias.map_or(sum, |b| sum + b[feature]);
        }
    }
    y
}

fn dot_quantized(q: &Quantized, feature: usize, depth: usize, activations: &[ActivationBlock]) -> f32 {
    let (len, subs) = (q.sub_block_len, depth / q.sub_block_len);
    let parts = segments(depth).map(|segment| {
        let mut acc = 0.0f32;
        for sub in segment.start / len..segment.end / len {
            let block = &activations[sub * len / ACTIVATION_BLOCK];
            let a = &block.codes[sub * len % ACTIVATION_BLOCK..][..len];
            let w = &q.codes[feature * depth + sub * len..][..len];
            let product: i32 = w.iter().zip(a).map(|(w, a)| i32::from(*w) * i32::from(*a)).sum();
            let at = feature * subs + sub;
            acc = (product as f32).mul_add(q.scales[at] * block.scale, acc);
            if q.has_min {
                let sum: i32 = a.iter().map(|a| i32::from(*a)).sum();
                acc = q.mins[at].mul_add(block.scale * sum as f32, acc);
            }
        }
        acc
    });
    parts.reduce(|a, b| a + b).unwrap_or(0.0)
}

fn dot_folded(f: &Folded, feature: usize, depth: usize, activations: &[ActivationBlock]) -> f32 {
    let parts = segments(depth).map(|segment| {
        let mut acc = 0.0f32;
        for (block, first) in
            segment.step_by(ACTIVATION_BLOCK).map(|first| (&activations[first / ACTIVATION_BLOCK], first))
        {
            let at = feature * depth + first;
            let whole = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
            let product: i32 = f.codes[at..].iter().zip(block.codes).map(|(w, q)| i32::from(*w) * i32::from(q)).sum();
            let halves = block.codes.chunks(f.sub_block_len).zip(&f.mins[at / f.sub_block_len..]);
            let least: i32 = halves.map(|(q, min)| i32::from(*min) * whole(q)).sum();
            let [unit, min_unit] = f.units[at / f.block_len];
            let t = min_unit.mul_add(least as f32, unit.mul_add(product as f32, 0.0));
            acc = t.mul_add(block.scale, acc);
        }
        acc
    });
    parts.reduce(|a, b| a + b).unwrap_or(0.0)
}
