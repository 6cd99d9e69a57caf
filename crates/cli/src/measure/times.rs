//! Repeated measurements: their middle, their spread, and that all gave the same result.

use std::{fmt, time::Duration};

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::ui::Failure;

/// What was computed, as 12 digits of a SHA-256: enough to see that two results differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hash(String);

const DIGITS: usize = 12;

impl Hash {
    /// Of numbers, by their bits.
    pub(crate) fn of_floats<'a>(numbers: impl IntoIterator<Item = &'a [f32]>) -> Hash {
        let mut hasher = Sha256::new();
        let mut bytes = Vec::new();
        for numbers in numbers {
            bytes.clear();
            bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
            hasher.update(&bytes);
        }
        Hash::finish(hasher)
    }

    /// Of what parts have.
    pub(crate) fn of_parts<'a>(parts: impl IntoIterator<Item = &'a Hash>) -> Hash {
        let mut hasher = Sha256::new();
        parts.into_iter().for_each(|part| hasher.update(part.0.as_bytes()));
        Hash::finish(hasher)
    }

    /// Of tokens and a hash.
    pub(crate) fn of_tokens(tokens: &[u32], rest: &Hash) -> Hash {
        let mut hasher = Sha256::new();
        tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
        hasher.update(rest.0.as_bytes());
        Hash::finish(hasher)
    }

    fn finish(hasher: Sha256) -> Hash {
        let digits = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Hash(digits[..DIGITS].to_owned())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Seconds, one number a repeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.0.insert(self.0.partition_point(|s| *s <= seconds), seconds);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn least(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn greatest(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// The middle one, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => self.0[middle],
            _ => f64::midpoint(self.0[middle - 1], self.0[middle]),
        }
    }
}

/// Runs a measurement `count` times; every run must give `expected`.
///
/// # Errors
/// As `run`; and if a run gives another result.
pub(crate) fn repeat(
    count: usize,
    what: &str,
    expected: &Hash,
    mut run: impl FnMut() -> Result<(Duration, Hash)>,
) -> Result<Times> {
    let mut times = Times::default();
    for i in 0..count {
        let (time, hash) = run()?;
        check(&format!("{what}, repeat {}", i + 1), expected, &hash)?;
        times.push(time);
    }
    Ok(times)
}

/// Refuses a result that is not the expected one.
///
/// # Errors
/// If it is not.
pub(crate) fn check(what: &str, expected: &Hash, found: &Hash) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let message = format!("{what}: the result is {found}, and {expected} was expected");
    let remedy = "the same tokens must give the same bits; run `tessera audit` and report what it finds";
    Err(Failure::new(message, remedy).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let mut times = Times::default();
        assert!(times.median().is_nan());
        for (millis, median) in [(40, 0.04), (20, 0.03), (100, 0.04), (10, 0.03)] {
            times.push(Duration::from_millis(millis));
            assert!((times.median() - median).abs() < 1e-12, "{times:?}");
        }
        assert_eq!((times.count(), times.least(), times.greatest()), (4, 0.01, 0.1));
    }

    #[test]
    fn another_result_is_an_error() {
        let (a, b) = (Hash::of_floats([&[0.0][..]]), Hash::of_floats([&[-0.0][..]]));
        assert_ne!(a, b);
        let mut results = [a.clone(), a.clone(), b].into_iter();
        let mut run = || Ok((Duration::ZERO, results.next().unwrap()));
        assert_eq!(repeat(2, "x", &a, &mut run).unwrap().count(), 2);
        let error = repeat(1, "width 3", &a, &mut run).unwrap_err().to_string();
        assert!(error.contains("width 3, repeat 1"), "{error}");
    }
}
