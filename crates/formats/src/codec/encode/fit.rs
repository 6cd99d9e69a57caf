//! Least squares on a run of weights: how good is a scale (and a minimum), and what would be better.
//!
//! All searches rest on one [`Pass`]: give every weight its nearest code under a scale and an offset, and sum what is
//! needed to see the error and to improve on it. With the codes held fixed the best scale and offset follow in closed
//! form; with these held fixed the nearest codes are best. The two steps in turn never get worse, so a search is a
//! handful of starts and a few turns. Sums are over *residuals*, not weights: for weights far from zero but close to
//! each other, sums of squares of the weights would cancel and lose the difference in rounding.

/// The codes a format has, as floats: from `low` to `high`.
#[derive(Clone, Copy)]
pub(super) struct Codes {
    pub(super) low: f32,
    pub(super) high: f32,
}

/// `weight = scale * code + offset`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Line {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

/// Sums over a run of weights, each with its nearest code under a line; `residual = weight - (scale * code + offset)`.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) len: f32,
    pub(super) code: f32,
    pub(super) code_code: f32,
    pub(super) residual: f32,
    pub(super) residual_code: f32,
    /// The squared error.
    pub(super) error: f32,
}

/// Adding and subtracting 1.5 * 2^23 leaves no room for a fraction: it rounds to the nearest integer, ties to even,
/// where the sum stays below 2^23. Unlike `f32::round` it needs no call, so loops of it are vectorised.
const ROUNDER: f32 = 12_582_912.0;

/// The nearest code of a weight; `inverse` is 1 / scale, or 0 for a scale of 0.
#[inline(always)]
fn nearest(weight: f32, inverse: f32, offset: f32, codes: Codes) -> f32 {
    let at = (weight - offset) * inverse;
    let at = if at > codes.low { at } else { codes.low };
    let at = if at < codes.high { at } else { codes.high };
    (at + ROUNDER) - ROUNDER
}

/// 1 / scale, where a scale too small to divide by counts as 0: all codes are then the one nearest to 0.
fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Weights summed side by side; every run is a multiple of it.
const LANES: usize = 8;

impl Pass {
    /// One pass over `weights`, a multiple of eight.
    pub(super) fn new(weights: &[f32], line: Line, codes: Codes) -> Pass {
        let inverse = inverse(line.scale);
        let mut sums = [[0f32; LANES]; 5];
        let [code, code_code, residual, residual_code, error] = &mut sums;
        for weights in weights.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                let c = nearest(weights[i], inverse, line.offset, codes);
                let r = weights[i] - (line.scale * c + line.offset);
                code[i] += c;
                code_code[i] += c * c;
                residual[i] += r;
                residual_code[i] += r * c;
                error[i] += r * r;
            }
        }
        let [code, code_code, residual, residual_code, error] = sums.map(|lanes| lanes.iter().sum());
        Pass { len: weights.len() as f32, code, code_code, residual, residual_code, error }
    }

    /// The error after changing the line by these amounts, codes held.
    pub(super) fn error_after(&self, scale: f32, offset: f32) -> f32 {
        let linear = scale * self.residual_code + offset * self.residual;
        let squares = scale * scale * self.code_code + offset * offset * self.len;
        (self.error - 2.0 * linear + squares + 2.0 * scale * offset * self.code).max(0.0)
    }

    /// The best change of scale alone.
    pub(super) fn best_scale(&self) -> f32 {
        finite_or_zero(self.residual_code / self.code_code)
    }

    /// The best change of scale and offset together.
    pub(super) fn best_line(&self) -> (f32, f32) {
        let determinant = self.len * self.code_code - self.code * self.code;
        // Codes are integers, so unless all are equal this is at least about `len`.
        if determinant < 0.5 {
            return (0.0, self.residual / self.len);
        }
        let scale = (self.len * self.residual_code - self.residual * self.code) / determinant;
        (scale, (self.residual - scale * self.code) / self.len)
    }
}

fn finite_or_zero(x: f32) -> f32 {
    if x.is_finite() { x } else { 0.0 }
}

/// Writes each weight's nearest code, less `codes.low`.
pub(super) fn write_codes(weights: &[f32], line: Line, codes: Codes, out: &mut [u8]) {
    let inverse = inverse(line.scale);
    for (out, &w) in out.iter_mut().zip(weights) {
        *out = (nearest(w, inverse, line.offset, codes) - codes.low) as u8;
    }
}

/// The weight of the largest magnitude.
pub(super) fn extreme(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |m: f32, &w| if w.abs() > m.abs() { w } else { m })
}

/// The smallest and the largest weight.
pub(super) fn range(weights: &[f32]) -> (f32, f32) {
    weights.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &w| (low.min(w), high.max(w)))
}

/// Below this no f16 scale of any format can tell weights from zero, and reciprocals would overflow.
const NOTHING: f32 = 1e-20;

/// The best scale for weights around zero. It puts the weight of the largest magnitude at each of the codes `starts`
/// (fractions allowed) and its negatives, improves every start by least squares, and takes the best.
pub(super) fn fit_scale(weights: &[f32], codes: Codes, starts: &[f32]) -> f32 {
    let extreme = extreme(weights);
    if extreme.abs() < NOTHING {
        return 0.0;
    }
    let mut best = (f32::INFINITY, 0.0);
    for start in starts.iter().flat_map(|s| [-s, *s]) {
        let mut scale = extreme / start;
        for _ in 0..2 {
            let pass = Pass::new(weights, Line { scale, offset: 0.0 }, codes);
            let change = pass.best_scale();
            scale += change;
            let error = pass.error_after(change, 0.0);
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    best.1
}

/// The best scale and offset. `starts` are the codes that the weights' range spans at first. Where
/// `offset_max_zero`, the offset may not be positive, as in the K formats, whose minimum is subtracted.
pub(super) fn fit_line(weights: &[f32], codes: Codes, starts: &[f32], offset_max_zero: bool) -> Line {
    let (low, high) = range(weights);
    let low = if offset_max_zero { low.min(0.0) } else { low };
    let span = high - low;
    if span < NOTHING {
        return Line { scale: 0.0, offset: low };
    }
    let mut best = (f32::INFINITY, Line::default());
    for start in starts {
        let scale = span / start;
        // What the codes do not reach is left out above, or half above and half below.
        let beyond = (span - scale * codes.high).max(0.0);
        for offset in [low, low + beyond / 2.0] {
            improve(weights, codes, Line { scale, offset }, offset_max_zero, &mut best);
            if beyond == 0.0 {
                break;
            }
        }
    }
    best.1
}

/// Two turns of codes and least squares from `line`; `best` is the best error and its line so far.
fn improve(weights: &[f32], codes: Codes, mut line: Line, offset_max_zero: bool, best: &mut (f32, Line)) {
    for _ in 0..2 {
        let pass = Pass::new(weights, line, codes);
        let (mut scale, mut offset) = pass.best_line();
        if offset_max_zero && line.offset + offset > 0.0 {
            // The best within the bound lies on it: offset 0, and the scale alone is free.
            offset = -line.offset;
            scale = finite_or_zero((pass.residual_code - offset * pass.code) / pass.code_code);
        }
        line = Line { scale: line.scale + scale, offset: line.offset + offset };
        let error = pass.error_after(scale, offset);
        if error < best.0 {
            *best = (error, line);
        }
    }
}
