//! Switches for A/B comparisons: what a user forces against the tuned choice. They move time and never a bit.

use std::fmt;

use tessera_ops::Error;

use super::{
    dispatch::{PASS_TOKENS, Split},
    tile::TOKENS_MAX,
};
use crate::{attention::select::Way, isa::Isa};

/// The variable that holds switches: `isa=avx2,moe_tile=32`.
pub const KERNELS_VARIABLE: &str = "TESSERA_KERNELS";

/// What is forced or capped; none: as tuned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `isa=NAME`: the instruction set.
    pub isa: Option<Isa>,
    /// `tile=N`: tiles at most N tokens wide.
    pub tile: Option<usize>,
    /// `moe_tile=N`: passes over an expert's weights at most N tokens wide.
    pub moe_tile: Option<usize>,
    /// `split=NAME`: how workers share a projection.
    pub split: Option<Split>,
    /// `attention=NAME`: the way of attention.
    pub attention: Option<Way>,
    /// Leaves out what is beyond the first half of a wide pass: the mistake that an audit has to catch. As a switch,
    /// `narrowed=32`; products do not have it.
    #[cfg(any(test, feature = "audit"))]
    pub narrowed: bool,
}

/// Tokens that the narrowed variant computes of a pass.
#[cfg(any(test, feature = "audit"))]
pub const NARROWED_TOKENS: usize = 32;

impl Overrides {
    /// Reads switches, `name=value` with commas between; later ones win.
    ///
    /// # Errors
    /// A name or a value that does not exist (the error lists those that do), or an instruction set that this CPU lacks.
    pub fn parse(text: &str) -> Result<Overrides, Error> {
        let mut overrides = Overrides::default();
        for switch in text.split(',').map(str::trim).filter(|s| !s.is_empty()) {
            let unknown = || Error::KernelSwitch { switch: switch.to_owned(), known: known() };
            let (name, value) = switch.split_once('=').ok_or_else(unknown)?;
            match name.trim() {
                "isa" => overrides.isa = Some(Isa::from_name(value.trim()).map_err(|_| unknown())?),
                "tile" => overrides.tile = Some(one_of(value, 1..=TOKENS_MAX).ok_or_else(unknown)?),
                "moe_tile" => overrides.moe_tile = Some(one_of(value, PASS_TOKENS).ok_or_else(unknown)?),
                "split" => {
                    let split = Split::ALL.into_iter().find(|s| s.name() == value.trim());
                    overrides.split = Some(split.ok_or_else(unknown)?);
                }
                "attention" => {
                    let way = Way::ALL.into_iter().find(|w| w.name() == value.trim());
                    overrides.attention = Some(way.ok_or_else(unknown)?);
                }
                #[cfg(feature = "audit")]
                "narrowed" => overrides.narrowed = one_of(value, [NARROWED_TOKENS]).ok_or_else(unknown)? > 0,
                _ => return Err(unknown()),
            }
        }
        Ok(overrides)
    }

    /// The switches that `TESSERA_KERNELS` holds; none where it is not set.
    ///
    /// # Errors
    /// As [`Overrides::parse`].
    pub fn from_environment() -> Result<Overrides, Error> {
        match std::env::var(KERNELS_VARIABLE) {
            Ok(text) => Overrides::parse(&text),
            Err(_) => Ok(Overrides::default()),
        }
    }

    /// Tokens of a pass that are computed.
    #[cfg(any(test, feature = "audit"))]
    pub(super) fn covered(&self) -> usize {
        if self.narrowed { NARROWED_TOKENS } else { usize::MAX }
    }

    /// Tokens of a pass that are computed: all.
    #[cfg(not(any(test, feature = "audit")))]
    pub(super) fn covered(&self) -> usize {
        usize::MAX
    }
}

/// The number that `text` is, if it is one of `legal`.
fn one_of(text: &str, legal: impl IntoIterator<Item = usize>) -> Option<usize> {
    let number: usize = text.trim().parse().ok()?;
    legal.into_iter().find(|n| *n == number)
}

/// All switches with all values, for errors.
fn known() -> String {
    let isas: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    let passes = PASS_TOKENS.map(|p| p.to_string());
    let splits = Split::ALL.map(Split::name);
    let ways = Way::ALL.map(Way::name);
    let [isas, passes, splits, ways] = [isas.join("|"), passes.join("|"), splits.join("|"), ways.join("|")];
    format!("isa={isas}, tile=1..{TOKENS_MAX}, moe_tile={passes}, split={splits}, attention={ways}")
}

impl fmt::Display for Overrides {
    /// As [`Overrides::parse`] reads it; nothing where nothing is forced.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switches = [
            self.isa.map(|isa| format!("isa={}", isa.name())),
            self.tile.map(|tile| format!("tile={tile}")),
            self.moe_tile.map(|tile| format!("moe_tile={tile}")),
            self.split.map(|split| format!("split={}", split.name())),
            self.attention.map(|way| format!("attention={}", way.name())),
            (self.covered() < usize::MAX).then(|| format!("narrowed={}", self.covered())),
        ];
        f.write_str(&switches.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_read_and_written() {
        assert_eq!(Overrides::parse("").unwrap(), Overrides::default());
        assert_eq!(Overrides::parse(" , ").unwrap().to_string(), "");
        for text in [
            "isa=portable",
            "tile=1",
            "tile=12",
            "moe_tile=32",
            "split=weights",
            "tile=3,moe_tile=128,split=tokens",
            "attention=two-pass",
        ] {
            assert_eq!(Overrides::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Overrides::parse(" isa = PORTABLE , tile = 2").unwrap().to_string(), "isa=portable,tile=2");
        assert_eq!(Overrides::parse("tile=2,tile=4").unwrap().tile, Some(4));
    }

    #[test]
    fn what_does_not_exist_is_refused_with_a_list_of_what_does() {
        for text in [
            "isa=sse9",
            "tile=0",
            "tile=13",
            "tile=",
            "moe_tile=33",
            "split=no",
            "fast=1",
            "attention=fast",
            "isa",
            "=",
            "narrowed=1",
        ] {
            let error = Overrides::parse(&format!("tile=2,{text}")).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("isa=portable"), "{error}");
            assert!(error.contains("moe_tile=16|32|64|128") && error.contains("split=weights|tokens"), "{error}");
        }
    }

    #[test]
    fn the_narrowed_variant_is_named_only_where_audits_are_tested() {
        assert_eq!(Overrides::parse("narrowed=32").is_ok(), cfg!(feature = "audit"));
        assert_eq!(Overrides { narrowed: true, ..Overrides::default() }.to_string(), "narrowed=32");
    }
}
