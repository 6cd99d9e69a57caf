//! Formats of 32 weights with one f16 scale, and perhaps one f16 minimum: Q4_0, Q5_0, Q8_0, Q4_1, Q5_1.
//!
//! The scale is stored in f16, so every candidate is rounded first and judged by the error that remains. The plain
//! choice (largest magnitude at the last code, or the range over all codes) is always among the candidates; so no
//! block comes out worse than by the usual formula.

use half::f16;

use super::{
    fit::{Codes, Line, Pass, extreme, range, write_codes},
    put_bits, put_nibbles, scale_to_f16,
};

const Q4_0: Codes = Codes { low: -8.0, high: 7.0 };
const Q5_0: Codes = Codes { low: -16.0, high: 15.0 };
const Q8_0: Codes = Codes { low: -127.0, high: 127.0 };
const Q4_1: Codes = Codes { low: 0.0, high: 15.0 };
const Q5_1: Codes = Codes { low: 0.0, high: 31.0 };

pub(super) fn q4_0(weights: &[f32], out: &mut Vec<u8>) {
    let (scale, codes) = symmetric(weights, Q4_0, 5.0, 0.25);
    out.extend(scale.to_le_bytes());
    put_nibbles(&codes, out);
}

pub(super) fn q5_0(weights: &[f32], out: &mut Vec<u8>) {
    let (scale, codes) = symmetric(weights, Q5_0, 12.0, 0.5);
    out.extend(scale.to_le_bytes());
    put_bits(&codes, 4, out);
    put_nibbles(&codes, out);
}

pub(super) fn q8_0(weights: &[f32], out: &mut Vec<u8>) {
    let (scale, codes) = symmetric(weights, Q8_0, 124.0, 0.5);
    out.extend(scale.to_le_bytes());
    // Codes are counted from -127 here.
    out.extend(codes.iter().map(|c| c.wrapping_sub(127)));
}

pub(super) fn q4_1(weights: &[f32], out: &mut Vec<u8>) {
    let ([scale, min], codes) = affine(weights, Q4_1, 12.0, 0.5);
    out.extend(scale.to_le_bytes());
    out.extend(min.to_le_bytes());
    put_nibbles(&codes, out);
}

pub(super) fn q5_1(weights: &[f32], out: &mut Vec<u8>) {
    let ([scale, min], codes) = affine(weights, Q5_1, 28.0, 0.5);
    out.extend(scale.to_le_bytes());
    out.extend(min.to_le_bytes());
    put_bits(&codes, 4, out);
    put_nibbles(&codes, out);
}

/// Candidates a little beyond the last code clip the largest weight for the good of the others.
const BEYOND: f32 = 1.25;

/// The best f16 scale: the largest magnitude at each code (and part of a code, `step`) from `first` to a little beyond
/// the last, with either sign where the codes are lopsided, each improved by least squares.
fn symmetric(weights: &[f32], codes: Codes, first: f32, step: f32) -> (f16, [u8; 32]) {
    let extreme = extreme(weights);
    let mut best = (f32::INFINITY, f16::ZERO);
    let mut start = first;
    let signs: &[f32] = if codes.low == -codes.high { &[1.0] } else { &[-1.0, 1.0] };
    while start <= BEYOND - codes.low {
        for sign in signs {
            symmetric_turns(weights, codes, extreme / (sign * start), &mut best);
        }
        start += step;
    }
    let mut out = [0; 32];
    write_codes(weights, Line { scale: best.1.to_f32(), offset: 0.0 }, codes, &mut out);
    (best.1, out)
}

fn symmetric_turns(weights: &[f32], codes: Codes, mut scale: f32, best: &mut (f32, f16)) {
    for _ in 0..2 {
        let rounded = scale_to_f16(scale);
        let line = Line { scale: rounded.to_f32(), offset: 0.0 };
        let pass = Pass::new(weights, line, codes);
        if pass.error < best.0 {
            *best = (pass.error, rounded);
        }
        scale = line.scale + pass.best_scale();
    }
}

/// The best f16 scale and minimum: the range over each span of codes from `first` to a little beyond all.
fn affine(weights: &[f32], codes: Codes, first: f32, step: f32) -> ([f16; 2], [u8; 32]) {
    let (low, high) = range(weights);
    let mut best = (f32::INFINITY, [f16::ZERO; 2]);
    let mut start = first;
    while start <= codes.high + BEYOND {
        let scale = (high - low) / start;
        let beyond = ((high - low) - scale * codes.high).max(0.0);
        affine_turns(weights, codes, Line { scale, offset: low + beyond / 2.0 }, &mut best);
        start += step;
    }
    let [scale, min] = best.1.map(f16::to_f32);
    let mut out = [0; 32];
    write_codes(weights, Line { scale, offset: min }, codes, &mut out);
    (best.1, out)
}

fn affine_turns(weights: &[f32], codes: Codes, mut line: Line, best: &mut (f32, [f16; 2])) {
    for _ in 0..3 {
        let scale = scale_to_f16(line.scale);
        let min = f16::from_f32(line.offset.clamp(-65504.0, 65504.0));
        line = Line { scale: scale.to_f32(), offset: min.to_f32() };
        let pass = Pass::new(weights, line, codes);
        if pass.error < best.0 {
            *best = (pass.error, [scale, min]);
        }
        let (scale, offset) = pass.best_line();
        line = Line { scale: line.scale + scale, offset: line.offset + offset };
    }
}
