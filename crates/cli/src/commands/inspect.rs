//! `tessera inspect`: what is in a model file, and the memory that it needs. Works for architectures that cannot run, too.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::json;
use tessera_engine::{Checkpoint, Config, LoadOptions, models, synth};
use tessera_formats::{
    Gguf, Tensor,
    gguf::{Array, Value},
};
use tessera_ops::PAGE_TOKENS;

use crate::{
    args::Inspect,
    machine,
    store::{Reference, Store},
    ui,
};

/// Tokens for which the cache's size is told.
const CACHE_TOKENS: usize = 1024;

/// The longest context that anybody asks for.
const MILLION: usize = 1_000_000;

/// Longer arrays and texts are cut in print.
const SHOWN_VALUES: usize = 4;
const SHOWN_CHARS: usize = 72;

/// A model file, whatever its container.
struct Facts {
    container: String,
    architecture: Option<String>,
    /// Tokens that the model was trained for.
    context: Option<u64>,
    metadata: Vec<(String, serde_json::Value)>,
    tensors: Vec<TensorFacts>,
    cache: Option<CacheFacts>,
    packed: Option<CacheFacts>,
}

struct TensorFacts {
    name: String,
    format: &'static str,
    /// Row length first.
    shape: Vec<usize>,
    bytes: u64,
}

/// Prints the facts.
pub(crate) fn main(args: &Inspect) -> Result<()> {
    let (path, facts) = match Reference::parse(&args.model)? {
        Reference::Synthetic(spec) => {
            let checkpoint = synth::checkpoint(&spec, machine::cores())?;
            let facts = of_gguf(&checkpoint, "none: made in memory".to_owned());
            (PathBuf::from(checkpoint.file()), facts.ok_or_else(|| anyhow::anyhow!("{spec} was not made"))?)
        }
        stored => {
            let path = Store::open()?.obtain(&stored)?;
            let facts = if path.is_dir() { of_checkpoint(&path)? } else { of_file(&path)? };
            (path, facts)
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&facts.json(&path))?)?;
    } else {
        facts.print(&mut out, &path, args.tensors)?;
    }
    Ok(out.flush()?)
}

impl Facts {
    /// Format, tensors, weights and bytes of each format.
    fn formats(&self) -> BTreeMap<&'static str, (usize, u64, u64)> {
        let mut formats = BTreeMap::new();
        for tensor in &self.tensors {
            let (count, weights, bytes) = formats.entry(tensor.format).or_insert((0, 0, 0));
            *count += 1;
            *weights += tensor.weights();
            *bytes += tensor.bytes;
        }
        formats
    }

    fn weights(&self) -> u64 {
        self.tensors.iter().map(TensorFacts::weights).sum()
    }

    fn weight_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    /// Bytes of keys and values for so many tokens.
    fn cache_bytes(&self, tokens: usize) -> Option<u64> {
        Some(self.cache.as_ref()?.bytes(tokens))
    }

    /// The same of packed rows, where the model has rows that can be.
    fn packed_bytes(&self, tokens: usize) -> Option<u64> {
        Some(self.packed.as_ref()?.bytes(tokens))
    }

    fn json(&self, path: &Path) -> serde_json::Value {
        let formats = self.formats().into_iter().map(|(name, (count, weights, bytes))| {
            (name.to_owned(), json!({ "tensors": count, "weights": weights, "bytes": bytes }))
        });
        let tensors = self.tensors.iter();
        let tensors =
            tensors.map(|t| json!({ "name": t.name, "format": t.format, "shape": t.shape, "bytes": t.bytes }));
        json!({
            "path": path.display().to_string(),
            "container": self.container,
            "architecture": self.architecture,
            "context": self.context,
            "weights": self.weights(),
            "memory": {
                "weight_bytes": self.weight_bytes(),
                "cache_bytes_per_1024_tokens": self.cache_bytes(CACHE_TOKENS),
                "cache_bytes_per_million_tokens": self.cache_bytes(MILLION),
                "packed_cache_bytes_per_1024_tokens": self.packed_bytes(CACHE_TOKENS),
                "packed_cache_bytes_per_million_tokens": self.packed_bytes(MILLION),
                "ring_bytes_per_sequence": self.cache.as_ref().map(|cache| cache.ring),
            },
            "formats": formats.collect::<serde_json::Map<_, _>>(),
            "metadata": self.metadata.iter().cloned().collect::<serde_json::Map<_, _>>(),
            "tensors": tensors.collect::<Vec<_>>(),
        })
    }

    fn print(&self, out: &mut impl Write, path: &Path, with_tensors: bool) -> io::Result<()> {
        let bold = |text: &str| ui::styled(text, "1", ui::stdout_colours());
        writeln!(out, "{}", bold(&path.display().to_string()))?;
        writeln!(out, "  container     {}", self.container)?;
        writeln!(out, "  architecture  {}", ui::harmless(self.architecture.as_deref().unwrap_or("not said")))?;
        writeln!(out, "  context       {}", self.context.map_or("not said".to_owned(), |n| format!("{n} tokens")))?;
        writeln!(out, "  weights       {} in {} tensors", count(self.weights()), self.tensors.len())?;
        writeln!(out, "\n{}", bold("Memory"))?;
        writeln!(out, "  weights       {}", ui::size(self.weight_bytes()))?;
        match &self.cache {
            Some(cache) => writeln!(out, "  keys, values  {}", cache.words())?,
            None => writeln!(out, "  keys, values  unknown: the metadata does not say the heads")?,
        }
        if let Some(packed) = &self.packed {
            writeln!(out, "  packed        {} (--cache-format packed)", packed.words())?;
        }
        if let Some(rings) = self.cache.as_ref().map(|cache| cache.ring).filter(|ring| *ring > 0) {
            writeln!(out, "  rings         {} for each sequence", ui::size(rings))?;
        }
        writeln!(out, "\n{}", bold("Formats"))?;
        for (name, (tensors, weights, bytes)) in self.formats() {
            let bits = bytes as f64 * 8.0 / weights.max(1) as f64;
            let (weights, bytes) = (count(weights), ui::size(bytes));
            writeln!(out, "  {name:10}  {tensors:5} tensors  {weights:>8} weights  {bytes:>9}  {bits:.2} bits each")?;
        }
        writeln!(out, "\n{}", bold("Metadata"))?;
        let width = self.metadata.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        for (key, value) in &self.metadata {
            writeln!(out, "  {:width$}  {}", ui::harmless(key), shorten(value))?;
        }
        if with_tensors {
            writeln!(out, "\n{}", bold("Tensors (row length first)"))?;
            let width = self.tensors.iter().map(|t| t.name.chars().count()).max().unwrap_or(0);
            for t in &self.tensors {
                let shape = t.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
                let name = ui::harmless(&t.name);
                writeln!(out, "  {name:width$}  {:10}  {:>9}  {shape}", t.format, ui::size(t.bytes))?;
            }
        }
        Ok(())
    }
}

impl TensorFacts {
    fn new(tensor: &Tensor) -> TensorFacts {
        TensorFacts {
            name: tensor.name.clone(),
            format: tensor.dtype.name(),
            shape: tensor.shape.clone(),
            bytes: tensor.bytes.len() as u64,
        }
    }

    fn weights(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

fn of_file(path: &Path) -> Result<Facts> {
    let gguf = Gguf::open(path)?;
    let container = format!("GGUF version {}", gguf.version());
    let checkpoint = Checkpoint::from_gguf(&path.display().to_string(), gguf);
    Ok(of_gguf(&checkpoint, container).expect("it was made of a GGUF file"))
}

/// None if it is of another container.
fn of_gguf(checkpoint: &Checkpoint, container: String) -> Option<Facts> {
    let gguf = checkpoint.gguf()?;
    let architecture = gguf.get("general.architecture").and_then(Value::as_str).map(str::to_owned);
    let context = format!("{}.context_length", architecture.as_deref().unwrap_or_default());
    Some(Facts {
        container,
        context: gguf.get(&context).and_then(Value::as_u64),
        metadata: gguf.metadata().map(|(key, value)| (key.to_owned(), gguf_json(value))).collect(),
        tensors: gguf.tensors().iter().map(TensorFacts::new).collect(),
        cache: cache(checkpoint, false),
        packed: cache(checkpoint, true),
        architecture,
    })
}

/// What keys and values take, packed or not; none if the metadata does not say or says nonsense, or nothing can be packed.
fn cache(checkpoint: &Checkpoint, packed_rows: bool) -> Option<CacheFacts> {
    let config = Config::read(checkpoint).ok().filter(|config| !packed_rows || config.latent.is_some())?;
    let layout = models::kv_layout(&config, &LoadOptions { packed_rows, ..LoadOptions::default() });
    Some(CacheFacts { page: layout.page_bytes() as u64, ring: layout.ring_bytes() as u64 })
}

/// Bytes of a cache.
struct CacheFacts {
    page: u64,
    /// Of a sequence, beside its pages.
    ring: u64,
}

impl CacheFacts {
    /// Of so many tokens in pages.
    fn bytes(&self, tokens: usize) -> u64 {
        self.page * tokens.div_ceil(PAGE_TOKENS) as u64
    }

    fn words(&self) -> String {
        let [some, many] = [CACHE_TOKENS, MILLION].map(|tokens| ui::size(self.bytes(tokens)));
        let token = self.page as f64 / PAGE_TOKENS as f64;
        format!("{some} for {CACHE_TOKENS} tokens, {many} for a million; {token:.0} bytes a token")
    }
}

fn of_checkpoint(path: &Path) -> Result<Facts> {
    let checkpoint = tessera_formats::Checkpoint::open(path)?;
    let config = checkpoint.config();
    // Models that see images keep the text model's numbers one level down.
    let text = config.get("text_config").unwrap_or(config);
    let number = |key: &str| text.get(key).and_then(serde_json::Value::as_u64);
    let metadata = config.as_object().into_iter().flatten();
    Ok(Facts {
        container: "safetensors, Hugging Face's layout".to_owned(),
        architecture: config.get("model_type").and_then(serde_json::Value::as_str).map(str::to_owned),
        context: number("max_position_embeddings"),
        metadata: metadata.map(|(key, value)| (key.clone(), value.clone())).collect(),
        tensors: checkpoint.tensors().iter().map(TensorFacts::new).collect(),
        cache: Checkpoint::open(path).ok().as_ref().and_then(|checkpoint| cache(checkpoint, false)),
        packed: None,
    })
}

/// A metadata value as JSON; of a long array only its length and beginning.
fn gguf_json(value: &Value) -> serde_json::Value {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Array(array) => array_json(array),
    }
}

fn array_json(array: &Array) -> serde_json::Value {
    fn begin<T: serde::Serialize>(values: &[T]) -> serde_json::Value {
        // As many as a list of layers may have; vocabularies are longer.
        if values.len() <= 256 {
            json!(values)
        } else {
            json!({ "length": values.len(), "first": &values[..SHOWN_VALUES] })
        }
    }
    match array {
        Array::U8(v) => begin(v),
        Array::I8(v) => begin(v),
        Array::U16(v) => begin(v),
        Array::I16(v) => begin(v),
        Array::U32(v) => begin(v),
        Array::I32(v) => begin(v),
        Array::U64(v) => begin(v),
        Array::I64(v) => begin(v),
        Array::F32(v) => begin(v),
        Array::F64(v) => begin(v),
        Array::Bools(v) => begin(v),
        Array::Strings(v) => begin(v),
    }
}

/// One line for people. JSON's escapes keep control characters of a hostile file from the terminal.
fn shorten(value: &serde_json::Value) -> String {
    let text = match (value.get("length"), value.get("first")) {
        (Some(length), Some(first)) => format!("{length} values, first {first}"),
        _ => value.to_string(),
    };
    let text = ui::harmless(&text);
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A number of weights for people: `134.5 M`.
fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} G", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shortened_and_harmless() {
        assert_eq!(shorten(&json!("a\u{1b}[31mb")), r#""a\u001b[31mb""#);
        assert_eq!(shorten(&json!("\u{9b}31m")), "\"\u{fffd}31m\"");
        assert_eq!(shorten(&array_json(&Array::U8(vec![7; 300]))), "300 values, first [7,7,7,7]");
        assert_eq!(shorten(&array_json(&Array::I32(vec![-1, 2]))), "[-1,2]");
        assert_eq!(shorten(&json!("é".repeat(100))).chars().count(), SHOWN_CHARS + 1);
    }

    #[test]
    fn counts_are_rounded() {
        let cases = [(999, "999"), (1000, "1.0 k"), (134_515_008, "134.5 M"), (7_000_000_000, "7.0 G")];
        for (n, expect) in cases {
            assert_eq!(count(n), expect);
        }
    }
}
