//! Frequencies of rotary position embeddings, with the scalings that checkpoints ask for.
//!
//! Plain: pair i of d / 2 turns by `base^(-2i / d)` radians a position (Su et al. 2021). Linear scaling divides all
//! frequencies by the factor. YaRN (Peng et al. 2023) divides the slow ones, keeps the fast ones, and blends between;
//! Llama 3 does so by wavelength, which GGUF files store as one divisor a pair in the tensor `rope_freqs.weight`.

use tessera_ops::{Rope, RopeLayout};

use crate::{Checkpoint, Error, config::Keys};

/// Whether YaRN rounds the pairs where its blend begins and ends to whole ones. GGUF has no key for it, and most models do.
const TRUNCATE_KEY: &str = "rope.scaling.yarn_truncate";
/// This one's reference does not.
const NOT_TRUNCATED: &str = "gpt-oss";

const FACTORS_TENSOR: &str = "rope_freqs.weight";

/// The rotation of a checkpoint whose heads have `head_dim` numbers, with base `rope.freq_base` and any scaling.
///
/// # Errors
/// If a key is absurd or a scaling is unknown.
pub fn read(checkpoint: &Checkpoint, layout: RopeLayout, head_dim: usize) -> Result<Rope, Error> {
    let keys = Keys::new(checkpoint)?;
    let (mut rope, base) = unscaled(&keys, layout, head_dim, ["rope.dimension_count", "rope.freq_base"], 10_000.0)?;
    let factor = f64::from(keys.optional_number("rope.scaling.factor")?.unwrap_or(1.0));
    if factor <= 0.0 {
        return Err(keys.wrong("rope.scaling.factor", factor, "above 0"));
    }
    match keys.word("rope.scaling.type") {
        None | Some("none" | "default") => {}
        Some("linear") => rope.frequencies.iter_mut().for_each(|f| *f /= factor),
        Some("yarn") => yarn(&mut rope, &keys, base, factor)?,
        Some("llama3") => llama3(&mut rope, &keys, factor)?,
        Some(other) => return Err(keys.wrong("rope.scaling.type", other, "none, linear, yarn or llama3")),
    }
    divide_by_tensor(&mut rope, checkpoint)?;
    Ok(rope)
}

/// A rotation without scaling, and its base: its dimensions and its base are the values of two keys, by default those of a
/// head and this base.
///
/// # Errors
/// If a value is absurd.
pub fn unscaled(
    keys: &Keys<'_>,
    layout: RopeLayout,
    head_dim: usize,
    [dims_key, base_key]: [&str; 2],
    base: f32,
) -> Result<(Rope, f64), Error> {
    let dims = keys.count_or(dims_key, 2..=head_dim, head_dim)?;
    let base = f64::from(keys.optional_number(base_key)?.unwrap_or(base));
    if base <= 0.0 || !dims.is_multiple_of(2) {
        return Err(keys.wrong(base_key, base, "above 0, over an even number of dimensions"));
    }
    Ok((plain(layout, dims, base), base))
}

/// The rotation of layers with compressed rows: a base of its own, and YaRN without its factor on cosine and sine.
///
/// # Errors
/// As [`read`].
pub fn compressed(checkpoint: &Checkpoint, head_dim: usize) -> Result<Rope, Error> {
    let keys = Keys::new(checkpoint)?;
    let names = ["rope.dimension_count", "attention.compress_rope_freq_base"];
    let (mut rope, base) = unscaled(&keys, RopeLayout::Interleaved, head_dim, names, 160_000.0)?;
    let factor = f64::from(keys.optional_number("rope.scaling.factor")?.unwrap_or(1.0));
    match keys.word("rope.scaling.type") {
        None | Some("yarn") if factor > 0.0 => yarn(&mut rope, &keys, base, factor)?,
        None | Some("yarn") => return Err(keys.wrong("rope.scaling.factor", factor, "above 0")),
        Some("none") => {}
        Some(other) => return Err(keys.wrong("rope.scaling.type", other, "none or yarn")),
    }
    rope.magnitude = 1.0;
    Ok(rope)
}

/// Frequencies without scaling.
fn plain(layout: RopeLayout, dims: usize, base: f64) -> Rope {
    let frequencies = (0..dims / 2).map(|i| base.powf(-2.0 * i as f64 / dims as f64)).collect();
    Rope { layout, frequencies, magnitude: 1.0 }
}

/// YaRN, with the attention factor 0.1 ln(s) + 1 on cosine and sine.
fn yarn(rope: &mut Rope, keys: &Keys<'_>, base: f64, factor: f64) -> Result<(), Error> {
    let original = keys.count("rope.scaling.original_context_length", 1..=1 << 30)? as f64;
    let number = |key, default| Ok::<_, Error>(f64::from(keys.optional_number(key)?.unwrap_or(default)));
    let (fast, slow) = (number("rope.scaling.yarn_beta_fast", 32.0)?, number("rope.scaling.yarn_beta_slow", 1.0)?);
    let dims = 2.0 * rope.frequencies.len() as f64;
    // The pair that turns `turns` times over the original context.
    let pair = |turns: f64| dims * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
    let truncate = keys.flag(TRUNCATE_KEY)?.unwrap_or(keys.architecture() != NOT_TRUNCATED);
    let round = |pair: f64, whole: fn(f64) -> f64| if truncate { whole(pair) } else { pair };
    let (low, high) = (round(pair(fast), f64::floor).max(0.0), round(pair(slow), f64::ceil).min(dims - 1.0));
    for (i, f) in rope.frequencies.iter_mut().enumerate() {
        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        *f = *f / factor * ramp + *f * (1.0 - ramp);
    }
    let given = keys.optional_number("rope.scaling.attn_factor")?.unwrap_or(1.0);
    rope.magnitude = given * (1.0 + 0.1 * factor.ln()) as f32;
    Ok(())
}

/// Llama 3.1's scaling by wavelength.
fn llama3(rope: &mut Rope, keys: &Keys<'_>, factor: f64) -> Result<(), Error> {
    let original = keys.count("rope.scaling.original_context_length", 1..=1 << 30)? as f64;
    let number = |key, default| Ok::<_, Error>(f64::from(keys.optional_number(key)?.unwrap_or(default)));
    let low = number("rope.scaling.low_freq_factor", 1.0)?;
    let high = number("rope.scaling.high_freq_factor", 4.0)?;
    for f in &mut rope.frequencies {
        let turns = original * *f / std::f64::consts::TAU;
        let blend = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        *f = *f / factor * (1.0 - blend) + *f * blend;
    }
    Ok(())
}

fn divide_by_tensor(rope: &mut Rope, checkpoint: &Checkpoint) -> Result<(), Error> {
    let Some(tensor) = checkpoint.tensor(FACTORS_TENSOR) else { return Ok(()) };
    let (file, name) = (checkpoint.file().to_owned(), FACTORS_TENSOR.to_owned());
    if tensor.len() != rope.frequencies.len() {
        let expected = vec![rope.frequencies.len()];
        return Err(Error::TensorShape { file, tensor: name, found: tensor.shape.clone(), expected });
    }
    tensor.check_finite(&file)?;
    for (f, divisor) in rope.frequencies.iter_mut().zip(tensor.decode()) {
        *f /= f64::from(divisor);
    }
    Ok(())
}
