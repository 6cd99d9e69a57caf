//! Q6_K: 256 weights in 16 sub-blocks, each with a signed integer scale, under one f16.
//!
//! `weight = d * scale * code`. As in the formats with minima: a free fit of each sub-block, then turns of choosing
//! levels and improving `d` by least squares; the best block met is written.

use half::f16;

use super::{
    fit::{Codes, Line, Pass, fit_scale, write_codes},
    put_nibbles, scale_to_f16,
};

const SUB_LEN: usize = 16;
const SUBS: usize = 16;
const CODES: Codes = Codes { low: -32.0, high: 31.0 };
const LEVEL_MIN: f32 = -128.0;
const LEVEL_MAX: f32 = 127.0;
/// Where a sub-block's largest magnitude starts; either sign.
const STARTS: [f32; 8] = [29.0, 30.0, 30.5, 31.0, 31.5, 32.0, 32.5, 33.0];
const TURNS: usize = 3;

/// A block to be: all but the codes, which follow.
#[derive(Clone, Copy, Default)]
struct Block {
    d: f16,
    scales: [i8; SUBS],
}

pub(super) fn q6_k(weights: &[f32], out: &mut Vec<u8>) {
    let block = search(weights);
    let mut codes = [0; 256];
    let subs = weights.chunks_exact(SUB_LEN).zip(codes.chunks_exact_mut(SUB_LEN));
    for ((weights, codes), &scale) in subs.zip(&block.scales) {
        let line = Line { scale: block.d.to_f32() * f32::from(scale), offset: 0.0 };
        write_codes(weights, line, CODES, codes);
    }
    for codes in codes.chunks_exact(128) {
        put_nibbles(codes, out);
    }
    for codes in codes.chunks_exact(128) {
        out.extend((0..32).map(|j| (0..4).fold(0, |byte, i| byte | (codes[32 * i + j] >> 4) << (2 * i))));
    }
    out.extend(block.scales.map(|s| s as u8));
    out.extend(block.d.to_le_bytes());
}

fn search(weights: &[f32]) -> Block {
    let mut free = [0.0; SUBS];
    for (scale, weights) in free.iter_mut().zip(weights.chunks_exact(SUB_LEN)) {
        *scale = fit_scale(weights, CODES, &STARTS);
    }
    let extreme = super::fit::extreme(&free);
    let mut best = (f32::INFINITY, Block::default());
    for last in [LEVEL_MIN, LEVEL_MAX] {
        let mut d = extreme / last;
        for _ in 0..TURNS {
            let (block, error, better) = choose_levels(weights, &free, d);
            if error < best.0 {
                best = (error, block);
            }
            d = better;
        }
    }
    best.1
}

/// The best levels under `d` (rounded to f16 first), the error that they leave, and the `d` that would be best.
fn choose_levels(weights: &[f32], free: &[f32; SUBS], d: f32) -> (Block, f32, f32) {
    let mut block = Block { d: scale_to_f16(d), ..Block::default() };
    let d = block.d.to_f32();
    let (mut error, mut residual, mut square) = (0.0, 0.0, 0.0);
    for (i, (weights, &free)) in weights.chunks_exact(SUB_LEN).zip(free).enumerate() {
        let level = if d == 0.0 { 0.0 } else { (free / d).round() };
        let mut best: Option<(f32, Pass)> = None;
        for scale in [level - 1.0, level, level + 1.0].map(|l| l.clamp(LEVEL_MIN, LEVEL_MAX)) {
            let pass = Pass::new(weights, Line { scale: d * scale, offset: 0.0 }, CODES);
            if best.is_none_or(|(_, b)| pass.error < b.error) {
                best = Some((scale, pass));
            }
        }
        let (scale, pass) = best.expect("there are three candidates");
        block.scales[i] = scale as i8;
        error += pass.error;
        residual += scale * pass.residual_code;
        square += scale * scale * pass.code_code;
    }
    let change = residual / square;
    (block, error, if change.is_finite() { d + change } else { d })
}
