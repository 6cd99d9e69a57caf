//! The K formats with minima: Q4_K, Q5_K, Q2_K. 256 weights, each sub-block with a small integer scale and minimum.
//!
//! `weight = d * scale * code - dmin * minimum`. First every sub-block is fitted freely (real scale and minimum). Then
//! `d` and `dmin` are laid so that the largest of them meet the last levels, every sub-block picks the best of the
//! levels around its free fit, and `d` and `dmin` are improved by least squares over the whole block with all levels
//! and codes held. The last two steps repeat, and the best block met on the way is written.

use half::f16;

use super::{
    fit::{Codes, Line, Pass, fit_line, write_codes},
    put_nibbles, scale_to_f16,
};

/// The numbers in which these formats differ.
struct Shape {
    sub_len: usize,
    codes: Codes,
    /// The largest level of a sub-block's scale and minimum.
    level_max: f32,
    /// Spans of codes from which a sub-block's fit starts.
    starts: &'static [f32],
    /// How far around its free fit a sub-block looks for better levels.
    reach: i32,
}

const Q4_K: Shape = Shape {
    sub_len: 32,
    codes: Codes { low: 0.0, high: 15.0 },
    level_max: 63.0,
    starts: &[13.0, 14.0, 14.5, 15.0, 15.5, 16.0, 17.0],
    reach: 1,
};
const Q5_K: Shape = Shape {
    sub_len: 32,
    codes: Codes { low: 0.0, high: 31.0 },
    level_max: 63.0,
    starts: &[29.0, 30.0, 30.5, 31.0, 31.5, 32.0, 33.0],
    reach: 1,
};
const Q2_K: Shape = Shape {
    sub_len: 16,
    codes: Codes { low: 0.0, high: 3.0 },
    level_max: 15.0,
    starts: &[2.0, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.5],
    reach: 1,
};

const SUBS_MAX: usize = 16;

/// A block to be: all but the codes, which follow.
#[derive(Clone, Copy, Default)]
struct Block {
    d: f16,
    dmin: f16,
    scales: [u8; SUBS_MAX],
    mins: [u8; SUBS_MAX],
}

impl Block {
    fn line(&self, sub: usize) -> Line {
        let scale = self.d.to_f32() * f32::from(self.scales[sub]);
        Line { scale, offset: -(self.dmin.to_f32() * f32::from(self.mins[sub])) }
    }

    fn codes(&self, weights: &[f32], shape: &Shape) -> [u8; 256] {
        let mut codes = [0; 256];
        let subs = weights.chunks_exact(shape.sub_len).zip(codes.chunks_exact_mut(shape.sub_len));
        for (i, (weights, codes)) in subs.enumerate() {
            write_codes(weights, self.line(i), shape.codes, codes);
        }
        codes
    }
}

pub(super) fn q4_k(weights: &[f32], out: &mut Vec<u8>) {
    let block = search(weights, &Q4_K);
    put_head(&block, out);
    for codes in block.codes(weights, &Q4_K).chunks_exact(64) {
        put_nibbles(codes, out);
    }
}

pub(super) fn q5_k(weights: &[f32], out: &mut Vec<u8>) {
    let block = search(weights, &Q5_K);
    put_head(&block, out);
    let codes = block.codes(weights, &Q5_K);
    // Bit i of byte j is the top bit of weight 32 * i + j.
    out.extend((0..32).map(|j| (0..8).fold(0, |byte, i| byte | (codes[32 * i + j] >> 4) << i)));
    for codes in codes.chunks_exact(64) {
        put_nibbles(codes, out);
    }
}

pub(super) fn q2_k(weights: &[f32], out: &mut Vec<u8>) {
    let block = search(weights, &Q2_K);
    out.extend(block.scales.iter().zip(block.mins).map(|(scale, min)| scale | min << 4));
    for codes in block.codes(weights, &Q2_K).chunks_exact(128) {
        out.extend((0..32).map(|j| (0..4).fold(0, |byte, i| byte | codes[32 * i + j] << (2 * i))));
    }
    out.extend(block.d.to_le_bytes());
    out.extend(block.dmin.to_le_bytes());
}

/// The 16 bytes that Q4_K and Q5_K begin with; `codec/q4_k.rs` states their layout.
fn put_head(block: &Block, out: &mut Vec<u8>) {
    let Block { d, dmin, scales, mins } = block;
    out.extend(d.to_le_bytes());
    out.extend(dmin.to_le_bytes());
    out.extend((0..4).map(|i| scales[i] | (scales[4 + i] >> 4) << 6));
    out.extend((0..4).map(|i| mins[i] | (mins[4 + i] >> 4) << 6));
    out.extend((0..4).map(|i| scales[4 + i] & 15 | (mins[4 + i] & 15) << 4));
}

/// Turns of levels and least squares.
const TURNS: usize = 3;

fn search(weights: &[f32], shape: &Shape) -> Block {
    let mut free = [Line::default(); SUBS_MAX];
    let subs = 256 / shape.sub_len;
    for (line, weights) in free.iter_mut().zip(weights.chunks_exact(shape.sub_len)) {
        *line = fit_line(weights, shape.codes, shape.starts, true);
    }
    let free = &free[..subs];
    let mut d = free.iter().fold(0.0, |m: f32, l| m.max(l.scale)) / shape.level_max;
    let mut dmin = free.iter().fold(0.0, |m: f32, l| m.max(-l.offset)) / shape.level_max;
    let mut best = (f32::INFINITY, Block::default());
    for _ in 0..TURNS {
        let (block, error, (better_d, better_dmin)) = choose_levels(weights, shape, free, d, dmin);
        if error < best.0 {
            best = (error, block);
        }
        (d, dmin) = (better_d, better_dmin);
    }
    best.1
}

/// The best levels of each sub-block under `d` and `dmin` (rounded to f16 first), the error that they leave, and the
/// `d` and `dmin` that would be best for them.
fn choose_levels(weights: &[f32], shape: &Shape, free: &[Line], d: f32, dmin: f32) -> (Block, f32, (f32, f32)) {
    let mut block = Block { d: scale_to_f16(d), dmin: f16::from_f32(dmin), ..Block::default() };
    let (mut error, mut normal) = (0.0, Normal::default());
    for (i, (weights, free)) in weights.chunks_exact(shape.sub_len).zip(free).enumerate() {
        let (scale, min, pass) = choose_sub_levels(weights, shape, *free, block.d.to_f32(), block.dmin.to_f32());
        (block.scales[i], block.mins[i]) = (scale as u8, min as u8);
        error += pass.error;
        normal.add(&pass, scale, min);
    }
    let (change_d, change_dmin) = normal.solve();
    let better = ((block.d.to_f32() + change_d).max(0.0), (block.dmin.to_f32() + change_dmin).max(0.0));
    (block, error, better)
}

/// The levels around the free fit with the least error.
fn choose_sub_levels(weights: &[f32], shape: &Shape, free: Line, d: f32, dmin: f32) -> (f32, f32, Pass) {
    let mean = weights.iter().sum::<f32>() / weights.len() as f32;
    let level = |x: f32, unit: f32| if unit > 0.0 { (x / unit).round().clamp(0.0, shape.level_max) } else { 0.0 };
    let near = |level: f32| {
        let levels = (-shape.reach..=shape.reach).map(move |step| level + step as f32);
        levels.filter(|l| (0.0..=shape.level_max).contains(l))
    };
    // The mean code of the free fit: a change of scale turns the line about that point.
    let code = if free.scale > 0.0 { (mean - free.offset) / free.scale } else { 0.0 };
    let mut best: Option<(f32, f32, Pass)> = None;
    for scale in near(level(free.scale, d)) {
        let offset = mean - d * scale * code;
        for min in near(level(-offset, dmin)) {
            let pass = Pass::new(weights, Line { scale: d * scale, offset: -(dmin * min) }, shape.codes);
            if best.is_none_or(|(_, _, b)| pass.error < b.error) {
                best = Some((scale, min, pass));
            }
        }
    }
    best.expect("the level of the free fit is itself among the candidates")
}

/// The normal equations of least squares for `d` and `dmin` over all sub-blocks, levels and codes held.
#[derive(Default)]
struct Normal {
    scale_scale: f32,
    scale_min: f32,
    min_min: f32,
    residual_scale: f32,
    residual_min: f32,
}

impl Normal {
    fn add(&mut self, pass: &Pass, scale: f32, min: f32) {
        self.scale_scale += scale * scale * pass.code_code;
        self.scale_min -= scale * min * pass.code;
        self.min_min += min * min * pass.len;
        self.residual_scale += scale * pass.residual_code;
        self.residual_min -= min * pass.residual;
    }

    /// The best changes of `d` and `dmin`.
    fn solve(&self) -> (f32, f32) {
        let determinant = self.scale_scale * self.min_min - self.scale_min * self.scale_min;
        let finite = |x: f32| if x.is_finite() { x } else { 0.0 };
        // Without minima, or with both nearly in step, the scale alone is improved.
        if determinant <= 1e-6 * self.scale_scale * self.min_min {
            return (finite(self.residual_scale / self.scale_scale), 0.0);
        }
        let d = (self.residual_scale * self.min_min - self.residual_min * self.scale_min) / determinant;
        let dmin = (self.residual_min * self.scale_scale - self.residual_scale * self.scale_min) / determinant;
        (finite(d), finite(dmin))
    }
}
