//! Numbers that a tuner may change. They move time and never a bit; rules that must hold are in `tile` and `dispatch`.

use std::{fmt, ops::RangeInclusive};

use super::dispatch::PASS_TOKENS;

/// What was measured on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Weights are asked for this many bytes ahead of their use.
    pub prefetch_bytes: usize,
    /// With at least this many tokens of a segment for each worker, workers take tokens (all rows); with fewer they take
    /// rows (all tokens).
    pub tokens_per_worker_min: usize,
    /// Up to this many activations are quantized by the caller alone; more pay for a parallel region of their own.
    pub quantize_alone_max: usize,
    /// Panels of two widths take turns at about this many bytes of weights, which stay in a core's own cache meanwhile.
    pub turn_bytes: usize,
    /// The most tokens of a dense or grouped segment that one read of its weights serves.
    pub pass_tokens: usize,
    /// The same for routed experts.
    pub routed_pass_tokens: usize,
    /// Reading a byte of weights costs a worker as much time as this many products; used to deal out work evenly.
    pub products_per_byte: usize,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            // Measured: 8 to 12 KiB is best at every width, and nothing else gains as much (1.3 times at one token, 1.5
            // at eight).
            prefetch_bytes: 8 << 10,
            // Taking tokens keeps activations with one core but reads the weights once a worker.
            tokens_per_worker_min: 8,
            quantize_alone_max: 8 << 10,
            turn_bytes: 128 << 10,
            pass_tokens: 512,
            routed_pass_tokens: 128,
            products_per_byte: 12,
        }
    }
}

/// A number of [`Tuning`] by its name: what a tuner changes and a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // see the fields
pub enum Parameter {
    PrefetchBytes,
    TokensPerWorkerMin,
    QuantizeAloneMax,
    TurnBytes,
    PassTokens,
    RoutedPassTokens,
    ProductsPerByte,
}

impl Parameter {
    /// Every one.
    pub const ALL: [Parameter; 7] = [
        Parameter::PrefetchBytes,
        Parameter::TokensPerWorkerMin,
        Parameter::QuantizeAloneMax,
        Parameter::TurnBytes,
        Parameter::PassTokens,
        Parameter::RoutedPassTokens,
        Parameter::ProductsPerByte,
    ];

    /// The name of its field.
    pub fn name(self) -> &'static str {
        match self {
            Parameter::PrefetchBytes => "prefetch_bytes",
            Parameter::TokensPerWorkerMin => "tokens_per_worker_min",
            Parameter::QuantizeAloneMax => "quantize_alone_max",
            Parameter::TurnBytes => "turn_bytes",
            Parameter::PassTokens => "pass_tokens",
            Parameter::RoutedPassTokens => "routed_pass_tokens",
            Parameter::ProductsPerByte => "products_per_byte",
        }
    }

    /// The values that make sense. Any other is a slip, or damage to a file.
    pub fn range(self) -> RangeInclusive<usize> {
        match self {
            Parameter::PrefetchBytes => 0..=1 << 20,
            Parameter::TokensPerWorkerMin => 1..=1 << 12,
            Parameter::QuantizeAloneMax => 0..=1 << 24,
            Parameter::TurnBytes => 0..=1 << 26,
            Parameter::PassTokens | Parameter::RoutedPassTokens => PASS_TOKENS[0]..=PASS_TOKENS[PASS_TOKENS.len() - 1],
            Parameter::ProductsPerByte => 0..=1 << 12,
        }
    }

    /// Its value.
    pub fn of(self, tuning: &Tuning) -> usize {
        *self.field(&mut { *tuning })
    }

    /// The same tuning with another value; none where the value is out of range.
    pub fn with(self, mut tuning: Tuning, value: usize) -> Option<Tuning> {
        self.range().contains(&value).then(|| {
            *self.field(&mut tuning) = value;
            tuning
        })
    }

    fn field(self, tuning: &mut Tuning) -> &mut usize {
        match self {
            Parameter::PrefetchBytes => &mut tuning.prefetch_bytes,
            Parameter::TokensPerWorkerMin => &mut tuning.tokens_per_worker_min,
            Parameter::QuantizeAloneMax => &mut tuning.quantize_alone_max,
            Parameter::TurnBytes => &mut tuning.turn_bytes,
            Parameter::PassTokens => &mut tuning.pass_tokens,
            Parameter::RoutedPassTokens => &mut tuning.routed_pass_tokens,
            Parameter::ProductsPerByte => &mut tuning.products_per_byte,
        }
    }
}

impl fmt::Display for Tuning {
    /// What is not as by default: `prefetch_bytes=4096,turn_bytes=65536`; nothing where all is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Tuning::default();
        let others = Parameter::ALL.into_iter().filter(|p| p.of(self) != p.of(&default));
        f.write_str(&others.map(|p| format!("{}={}", p.name(), p.of(self))).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_parameter_whose_range_holds_the_default() {
        let default = Tuning::default();
        let shown = format!("{default:?}");
        assert_eq!(shown.matches(": ").count(), Parameter::ALL.len(), "{shown}");
        for parameter in Parameter::ALL {
            let (name, range, value) = (parameter.name(), parameter.range(), parameter.of(&default));
            assert!(shown.contains(&format!("{name}: {value}")), "{name} in {shown}");
            assert_eq!(parameter.with(default, value), Some(default), "{name}");
            for end in [*range.start(), *range.end()] {
                let changed = parameter.with(default, end).unwrap();
                assert_eq!(parameter.of(&changed), end);
                let text = if end == value { String::new() } else { format!("{name}={end}") };
                assert_eq!(changed.to_string(), text);
            }
            assert_eq!(parameter.with(default, range.end() + 1), None, "{name}");
            if let Some(less) = range.start().checked_sub(1) {
                assert_eq!(parameter.with(default, less), None, "{name}");
            }
        }
    }
}
