//! The line that describes a synthetic model: `synth:ARCHITECTURE,KEY=VALUE,…`, and what it leaves out.

use std::{fmt, str::FromStr};

use tessera_formats::DType;

use super::{
    error::SynthError,
    families::{FAMILIES, Family, Kind, NAMED, Part, Size, Sizes, architectures},
    tensors,
};

/// What the name of a synthetic model begins with.
pub const PREFIX: &str = "synth:";

/// More than any machine's disk for one model: a line that asks for more is a slip of the finger.
const WEIGHT_BYTES_MAX: u64 = 1 << 40;
/// Longer words are cut in messages.
const SHOWN_CHARS: usize = 40;

const TIED: &str = "tied";
const ALIKE: &str = "alike";
const SEED: &str = "seed";
const FORMAT: &str = "format";
pub(super) const HEAD: &str = "head";
pub(super) const EMBEDDING: &str = "embedding";

/// A synthetic model. Made by [`Spec::parse`], which checks it whole: what has been parsed can be made.
///
/// Its `Display` is the line with every size, which parses to the same model.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub(super) family: &'static Family,
    pub(super) sizes: Sizes,
    /// Whether the embedding serves as the output head.
    pub(super) tied: bool,
    /// Whether all layers have the same weights.
    pub(super) alike: bool,
    pub(super) seed: u64,
    pub(super) formats: Formats,
}

/// The format of each matrix.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Formats {
    default: DType,
    pub(super) head: DType,
    pub(super) embedding: DType,
    /// Matrices of layers whose format is not the default, in the order of the layer.
    parts: Vec<(&'static str, DType)>,
}

impl Formats {
    pub(super) fn of_part(&self, name: &str) -> DType {
        self.parts.iter().find(|(part, _)| *part == name).map_or(self.default, |(_, dtype)| *dtype)
    }
}

impl Spec {
    /// Reads a line, with or without its prefix `synth:`. The keys:
    ///
    /// | key | means | default |
    /// | --- | --- | --- |
    /// | `layers`, `width` | layers, numbers in the residual stream | 4, 512 |
    /// | `head_dim` | numbers in a head | 64; qwen3 128, gemma3 256 |
    /// | `heads`, `kv_heads` | heads of queries, of keys and values | as fill the width, a quarter of them |
    /// | `feed_forward` | width of the feed-forward layer | 8/3 of the width, in blocks |
    /// | `vocabulary`, `context` | tokens | 32000, 4096 |
    /// | `window` | tokens of local attention, where the architecture has it | 512; gpt-oss 128 |
    /// | `full_head_dim` | gemma4: numbers in a head of the layers without a window | twice `head_dim` |
    /// | `shared_kv_layers` | gemma4: last layers that read the keys and values of earlier ones | 0 |
    /// | `per_layer` | gemma4: numbers of a token for each layer | 0 |
    /// | `experts`, `experts_used` | experts of a layer, and of a token | 16, 8; gemma4 0, gpt-oss 16, 4 |
    /// | `expert_feed_forward` | width of an expert | 256; gpt-oss as the width |
    /// | `dense_layers` | glm4moe: first layers without experts | 1 |
    /// | `query_rank`, `output_rank`, `output_groups` | deepseek4: of attention's output and queries | width / 4; up to 8 |
    /// | `turning` | deepseek4: features of a head that turn | an eighth of it, up to 64 |
    /// | `indexer_heads`, `indexer_dim`, `top_k` | deepseek4: what selects compressed rows | as heads, 128, 512 |
    /// | `table_layers` | deepseek4: first layers whose experts a table gives | 3 |
    /// | `draft_layers` | deepseek4: layers behind the last that draft further tokens | 0; 1 is the most |
    /// | `tied` | whether the embedding is the head as well | as the architecture |
    /// | `alike` | whether all layers have the weights of the first of their kind, so that a card loads the others by copying it | false |
    /// | `format` | of all matrices | `Q4_K` |
    /// | `head`, `embedding`, `attn_v`, `ffn_down`, … | the format of these alone | `format` |
    /// | `seed` | other numbers | 0 |
    ///
    /// In place of the architecture may stand the name of a whole model, `deepseek4-flash`; what follows changes it.
    ///
    /// # Errors
    /// If a word is unknown or a number out of range, if sizes contradict each other, or if the blocks of a format do
    /// not divide a row.
    pub fn parse(line: &str) -> Result<Spec, SynthError> {
        let line = line.strip_prefix(PREFIX).unwrap_or(line);
        let (name, rest) = line.split_once(',').unwrap_or((line, ""));
        let unknown = || SynthError::Architecture { found: short(name), known: architectures().collect() };
        let named = NAMED.iter().find(|(named, ..)| *named == name.trim());
        let architecture = named.map_or(name.trim(), |(_, architecture, _)| architecture);
        let family = FAMILIES.iter().find(|f| f.name == architecture).ok_or_else(unknown)?;
        let mut given = Given::default();
        // A comma at the end does no harm.
        for entry in rest.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            given.read(family, entry)?;
        }
        for entry in named.iter().flat_map(|(_, _, line)| line.split(',')) {
            given.read_default(family, entry)?;
        }
        let spec = given.complete(family)?;
        spec.check()?;
        Ok(spec)
    }

    /// The architecture's name.
    pub fn architecture(&self) -> &'static str {
        self.family.name
    }

    /// Bytes of all tensors.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors().iter().map(|t| t.bytes() as u64).sum()
    }

    fn check(&self) -> Result<(), SynthError> {
        let (heads, kv_heads) = (self.sizes.get(Size::Heads), self.sizes.get(Size::KvHeads));
        if !heads.is_multiple_of(kv_heads) {
            return Err(SynthError::KvHeads { heads, kv_heads });
        }
        let head_dim = self.sizes.get(Size::HeadDim);
        if !head_dim.is_multiple_of(2) {
            return Err(SynthError::HeadDim { head_dim });
        }
        if self.sizes.find(Size::FullHeadDim).is_some_and(|dim| !dim.is_multiple_of(2)) {
            return Err(SynthError::HeadDim { head_dim: self.sizes.get(Size::FullHeadDim) });
        }
        let groups = self.sizes.find(Size::OutputGroups);
        if let Some(groups) = groups.filter(|groups| !heads.is_multiple_of(*groups)) {
            return Err(SynthError::OutputGroups { heads, groups });
        }
        let (experts, used) = (self.sizes.find(Size::Experts), self.sizes.or_zero(Size::ExpertsUsed));
        if experts.is_some_and(|experts| used > experts && (experts > 0 || self.family.needs_experts())) {
            return Err(SynthError::Experts { experts: experts.unwrap_or(0), used });
        }
        let layers = self.sizes.get(Size::Layers);
        if (0..layers).any(|layer| self.family.keys_from(&self.sizes, layer).is_none()) {
            return Err(SynthError::SharedKvLayers { layers, shared: self.sizes.or_zero(Size::SharedKvLayers) });
        }
        tensors::check_blocks(self)?;
        // Sizes are bounded and blocks divide rows, so that no product overflows.
        let bytes = self.weight_bytes();
        if bytes > WEIGHT_BYTES_MAX {
            return Err(SynthError::TooLarge { bytes, most: WEIGHT_BYTES_MAX });
        }
        Ok(())
    }
}

impl FromStr for Spec {
    type Err = SynthError;
    fn from_str(line: &str) -> Result<Spec, SynthError> {
        Spec::parse(line)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.family.name)?;
        for (size, _) in self.family.sizes {
            write!(f, ",{}={}", size.key(), self.sizes.get(*size))?;
        }
        let formats = &self.formats;
        write!(f, ",{TIED}={},{FORMAT}={}", self.tied, formats.default)?;
        if formats.head != formats.default {
            write!(f, ",{HEAD}={}", formats.head)?;
        }
        if !self.tied && formats.embedding != formats.default {
            write!(f, ",{EMBEDDING}={}", formats.embedding)?;
        }
        for (name, dtype) in &formats.parts {
            write!(f, ",{name}={dtype}")?;
        }
        if self.alike {
            write!(f, ",{ALIKE}=true")?;
        }
        write!(f, ",{SEED}={}", self.seed)
    }
}

/// What a line says.
#[derive(Default)]
struct Given {
    sizes: Sizes,
    tied: Option<bool>,
    alike: Option<bool>,
    seed: Option<u64>,
    /// Keys of formats: `format`, `head`, `embedding`, and matrices.
    formats: Vec<(&'static str, DType)>,
}

impl Given {
    fn read(&mut self, family: &'static Family, entry: &str) -> Result<(), SynthError> {
        let architecture = family.name;
        let Some((key, value)) = entry.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
            return Err(SynthError::NoValue { found: short(entry), architecture, known: keys(family) });
        };
        let Some(key) = keys(family).into_iter().find(|known| *known == key) else {
            return Err(SynthError::Key { found: short(key), architecture, known: keys(family) });
        };
        if let Some(size) = sizes(family).find(|size| size.key() == key) {
            let range = size.range();
            let number = number(key, value, *range.start() as u64, *range.end() as u64)?;
            once(key, self.sizes.find(size).is_none())?;
            self.sizes.set(size, number as usize);
        } else if key == SEED {
            once(key, self.seed.replace(number(key, value, 0, u64::MAX)?).is_none())?;
        } else if let Some(named) = [TIED, ALIKE].into_iter().find(|flag| *flag == key) {
            let flag = value.parse().map_err(|_| SynthError::Flag { key: named, found: short(value) })?;
            let given = if named == TIED { &mut self.tied } else { &mut self.alike };
            once(key, given.replace(flag).is_none())?;
        } else {
            let known = || DType::all().map(DType::name).collect();
            let dtype = DType::from_name(value).filter(|dtype| dtype.is_weight());
            let dtype = dtype.ok_or_else(|| SynthError::Format { key, found: short(value), known: known() })?;
            once(key, self.format(key).is_none())?;
            self.formats.push((key, dtype));
        }
        Ok(())
    }

    /// Reads an entry that holds where the line has none of its key.
    fn read_default(&mut self, family: &'static Family, entry: &str) -> Result<(), SynthError> {
        match self.read(family, entry) {
            Err(SynthError::Twice { .. }) => Ok(()),
            other => other,
        }
    }

    fn format(&self, key: &str) -> Option<DType> {
        self.formats.iter().find(|(name, _)| *name == key).map(|(_, dtype)| *dtype)
    }

    fn complete(self, family: &'static Family) -> Result<Spec, SynthError> {
        let mut sizes = self.sizes;
        for (size, default) in family.sizes {
            if sizes.find(*size).is_none() {
                let value = default(&sizes);
                sizes.set(*size, value.clamp(*size.range().start(), *size.range().end()));
            }
        }
        let tied = self.tied.unwrap_or(family.tied);
        let default = self.format(FORMAT).unwrap_or(DType::Q4_K);
        let (head, embedding) = match (self.format(HEAD), self.format(EMBEDDING)) {
            (Some(head), Some(embedding)) if tied && head != embedding => {
                return Err(SynthError::Tied { head: head.name(), embedding: embedding.name() });
            }
            (head, embedding) if tied => {
                let table = head.or(embedding).unwrap_or(default);
                (table, table)
            }
            (head, embedding) => (head.unwrap_or(default), embedding.unwrap_or(default)),
        };
        let parts = matrices(family).filter_map(|part| Some((part.name, self.format(part.name)?)));
        let parts = parts.filter(|(_, dtype)| *dtype != default).collect();
        let formats = Formats { default, head, embedding, parts };
        let (alike, seed) = (self.alike.unwrap_or(false), self.seed.unwrap_or(0));
        Ok(Spec { family, sizes, tied, alike, seed, formats })
    }
}

fn sizes(family: &'static Family) -> impl Iterator<Item = Size> {
    family.sizes.iter().map(|(size, _)| *size)
}

/// The projections of a layer.
fn matrices(family: &'static Family) -> impl Iterator<Item = &'static Part> {
    family.parts().chain(family.model).filter(|part| part.kind == Kind::Matrix)
}

/// All keys that a line may have.
fn keys(family: &'static Family) -> Vec<&'static str> {
    let others = [TIED, ALIKE, FORMAT, HEAD, EMBEDDING].into_iter();
    sizes(family).map(Size::key).chain(others).chain(matrices(family).map(|part| part.name)).chain([SEED]).collect()
}

fn once(key: &'static str, first: bool) -> Result<(), SynthError> {
    if first { Ok(()) } else { Err(SynthError::Twice { key }) }
}

fn number(key: &'static str, text: &str, first: u64, last: u64) -> Result<u64, SynthError> {
    let number = text.parse().ok().filter(|n| (first..=last).contains(n));
    number.ok_or_else(|| SynthError::Number { key, found: short(text), first, last })
}

/// A word for a message: cut where it is long, and without what could steer a terminal.
fn short(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() { shown + "…" } else { shown }
}
