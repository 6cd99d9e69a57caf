//! The flags of the cache: how keys and values are kept.

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use tessera_engine::LoadOptions;
use tessera_ops::KvFormat;

/// How keys and values are kept.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct Cache {
    /// Format of cached keys and values: q8_0 takes half the memory of f16, and costs some accuracy; packed keeps the rows that
    /// DeepSeek V4 rounds as what they are rounded to, which takes half and costs none
    #[arg(long = "cache-format", value_name = "FORMAT", default_value = KvFormat::default().name(), value_parser = cache_formats())]
    pub(crate) format: CacheFormat,
    /// Whether latent rows are rounded as DeepSeek V4 was trained: to 8-bit floats, an indexer's to 4-bit ones
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) latent_rounding: bool,
}

impl Cache {
    /// What a model is loaded with.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            kv_format: self.format.numbers(),
            latent_rounding: self.latent_rounding,
            packed_rows: self.format == CacheFormat::Packed,
            ..LoadOptions::default()
        }
    }
}

/// How numbers of the cache are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheFormat {
    Plain(KvFormat),
    /// F16, and latent rows packed.
    Packed,
}

impl CacheFormat {
    pub(crate) const ALL: [CacheFormat; 4] = [
        CacheFormat::Plain(KvFormat::F32),
        CacheFormat::Plain(KvFormat::F16),
        CacheFormat::Plain(KvFormat::Q8_0),
        CacheFormat::Packed,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            CacheFormat::Plain(format) => format.name(),
            CacheFormat::Packed => "packed",
        }
    }

    /// Of what is not packed.
    pub(crate) fn numbers(self) -> KvFormat {
        match self {
            CacheFormat::Plain(format) => format,
            CacheFormat::Packed => KvFormat::F16,
        }
    }
}

fn cache_formats() -> impl TypedValueParser<Value = CacheFormat> {
    let known = PossibleValuesParser::new(CacheFormat::ALL.map(CacheFormat::name));
    known.try_map(|name| CacheFormat::ALL.into_iter().find(|f| f.name() == name).ok_or("no such format"))
}
