//! `tessera kernels`: which kernel computes each format at each width, and what it moves; and which way attention takes.
//! Nothing is run: the answers come from the same pure functions that every projection and every attention ask.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use anyhow::Result;
use clap::{Args, builder::RangedU64ValueParser};
use serde_json::json;
use tessera_engine::{Checkpoint, Config};
use tessera_formats::{DType, gguf::Value};
use tessera_ops::KvFormat;

use crate::{
    args::{Compute, weight_formats},
    device::{self, Projection, Shape},
    measure::Heads,
    model, tuning,
    ui::{self, Failure},
};

/// Show which kernel computes each format at each width, and the bytes it moves.
#[derive(Debug, Args)]
#[command(
    after_help = "The variant is named INSTRUCTION-SET/LAYOUT; the tile is ROWS x TOKENS, the most that is held in \
registers; a pass is how many tokens share one read of the weights; the split says what threads divide among them. Bytes \
are those of a cold cache. Experts are counted as if tokens spread evenly over them. The way of attention is named \
WAY/ROWSxPAGES: rows of a block and pages that it takes at a time; `width` is the last rows of a sequence of so many tokens.

Examples:
  tessera kernels                                every format, a 4096 x 4096 matrix
  tessera kernels smollm2:135m                   the matrices of a model
  tessera kernels --format Q4_K --widths 1,8,9,512 --rows 2048 --depth 768 --experts 128 --used 8
  tessera kernels model.gguf --kernels moe_tile=32,isa=avx2 --json"
)]
pub(crate) struct Kernels {
    /// The model whose matrices are shown [default: one matrix of each format]
    pub(crate) model: Option<String>,
    /// Only this format; may be repeated
    #[arg(long, value_name = "FORMAT", value_parser = weight_formats(), ignore_case = true)]
    pub(crate) format: Vec<DType>,
    /// Tokens in a step
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8,9,16,64,512",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    pub(crate) widths: Vec<usize>,
    /// Output features of the matrix
    #[arg(long, value_name = "N", default_value_t = 4096, conflicts_with = "model",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 24))]
    pub(crate) rows: usize,
    /// Inputs of the matrix
    #[arg(long, value_name = "N", default_value_t = 4096, conflicts_with = "model",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 24))]
    pub(crate) depth: usize,
    /// As many matrices as experts, of which each token uses some
    #[arg(long, value_name = "N", conflicts_with = "model", requires = "used",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 16))]
    pub(crate) experts: Option<usize>,
    /// Experts of each token
    #[arg(long, value_name = "N", requires = "experts",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 16))]
    pub(crate) used: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) compute: Compute,
}

/// Prints the table.
pub(crate) fn main(args: &Kernels) -> Result<()> {
    let (device, tuned) = device::open_tuned(&args.compute)?;
    let checkpoint = args.model.as_deref().map(model::open_checkpoint).transpose()?;
    let shapes = match &checkpoint {
        Some(checkpoint) => of_model(checkpoint, &args.format)?,
        None => of_flags(args)?,
    };
    let heads = checkpoint.as_ref().map_or_else(heads_of_flags, heads_of_model);
    let attention = attention_rows(&device, &heads, &args.widths);
    let rows = shapes.iter().flat_map(|(shape, count)| args.widths.iter().map(move |&width| (*shape, *count, width)));
    let rows =
        rows.filter_map(|(shape, count, width)| Some((shape, count, width, device::plan(&device, &shape, width)?)));
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        let rows: Vec<_> = rows.map(|(shape, count, width, plan)| row_json(&shape, count, width, &plan)).collect();
        let tuning = json!({ "file": tuned.file.as_ref().map(|f| f.display().to_string()), "values": tuning::values(&tuned.tuning) });
        let attention: Vec<_> = attention.iter().map(AttentionRow::json).collect();
        let device = device::name(&device);
        let all = json!({ "device": device, "tuning": tuning, "kernels": rows, "attention": attention });
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        let heading = format!(
            "{:<9} {:<8} {:>15} {:>5} {:>6}  {:<24} {:>7} {:>5}  {:<8} {:>10} {:>10} {:>10}",
            "format",
            "use",
            "rows x depth",
            "times",
            "width",
            "variant",
            "tile",
            "pass",
            "split",
            "weights",
            "in",
            "out"
        );
        writeln!(out, "{}; {}", device::name(&device), tuned.describe())?;
        writeln!(out, "{}", ui::styled(&heading, "1", ui::stdout_colours()))?;
        for (shape, count, width, plan) in rows {
            writeln!(out, "{}", row_text(&shape, count, width, &plan))?;
        }
        let heading = format!("{:<9} {:<8} {:>15} {:>6} {:>6}  way", "cache", "use", "heads", "tokens", "width");
        writeln!(out, "\n{}", ui::styled(&heading, "1", ui::stdout_colours()))?;
        attention.iter().try_for_each(|row| writeln!(out, "{}", row.text()))?;
    }
    Ok(out.flush()?)
}

/// One matrix of each format asked for.
fn of_flags(args: &Kernels) -> Result<Vec<(Shape, usize)>> {
    let all: Vec<_> = DType::all().collect();
    let projection = match (args.experts, args.used) {
        (Some(experts), Some(used)) if used > experts => {
            let message = format!("a token cannot use {used} of {experts} experts");
            return Err(Failure::new(message, "give --used a number up to --experts").into());
        }
        (Some(experts), Some(used)) => Projection::Routed { experts, used },
        _ => Projection::Dense,
    };
    let formats = if args.format.is_empty() { &all } else { &args.format };
    let shape = |dtype: &DType| (Shape { projection, dtype: *dtype, rows: args.rows, depth: args.depth }, 1);
    Ok(formats.iter().filter(|d| args.depth.is_multiple_of(d.block_len())).map(shape).collect())
}

/// The matrix that takes the most of a model's work; none where it has none.
pub(crate) fn largest(checkpoint: &Checkpoint) -> Result<Option<Shape>> {
    let all = of_model(checkpoint, &[])?;
    let work = |(shape, count): &&(Shape, usize)| match shape.projection {
        Projection::Dense | Projection::Head => shape.rows * shape.depth * count,
        Projection::Routed { used, .. } => shape.rows * shape.depth * used * count,
    };
    Ok(all.iter().max_by_key(work).map(|(shape, _)| *shape))
}

/// Lengths of a sequence that ways are shown for.
const ATTENTION_TOKENS: [usize; 2] = [128, 4096];

/// The way of attention of the last rows of a sequence.
struct AttentionRow {
    heads: Heads,
    tokens: usize,
    rows: usize,
    way: String,
}

impl AttentionRow {
    fn text(&self) -> String {
        let Heads { heads, kv_heads, head_dim, window, format } = self.heads;
        let window = window.map_or(String::new(), |w| format!(", window {w}"));
        let (shape, Self { tokens, rows, way, .. }) = (format!("{heads}/{kv_heads} x {head_dim}"), self);
        format!("{:<9} {:<8} {shape:>15} {tokens:>6} {rows:>6}  {way}{window}", format.name(), "attend")
    }

    fn json(&self) -> serde_json::Value {
        let Heads { heads, kv_heads, head_dim, window, format } = self.heads;
        json!({
            "cache_format": format.name(),
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "window": window,
            "tokens": self.tokens,
            "width": self.rows,
            "way": self.way,
        })
    }
}

fn attention_rows(device: &device::Chosen, heads: &[Heads], widths: &[usize]) -> Vec<AttentionRow> {
    let mut all = vec![];
    for format in [KvFormat::F16, KvFormat::Q8_0] {
        for heads in heads.iter().map(|h| Heads { format, ..*h }) {
            for (tokens, &width) in ATTENTION_TOKENS.into_iter().flat_map(|t| widths.iter().map(move |w| (t, w))) {
                if width <= tokens {
                    let way = device::attention_plan(device, &heads, width, tokens);
                    all.push(AttentionRow { heads, tokens, rows: width, way });
                }
            }
        }
    }
    all
}

/// Heads of every size.
fn heads_of_flags() -> Vec<Heads> {
    let of = |head_dim| Heads { heads: 8, kv_heads: 2, head_dim, window: None, format: KvFormat::F16 };
    [64, 128, 256, 512].map(of).to_vec()
}

/// The heads of a model's layers, each kind once; none where it is of no known architecture.
fn heads_of_model(checkpoint: &Checkpoint) -> Vec<Heads> {
    let Ok(config) = Config::read(checkpoint) else { return vec![] };
    let mut all: Vec<Heads> = vec![];
    for layer in &config.layers {
        let (heads, kv_heads, head_dim, window) = (config.heads, layer.kv_heads, layer.head_dim, layer.window);
        let heads = Heads { heads, kv_heads, head_dim, window, format: KvFormat::F16 };
        if !all.contains(&heads) {
            all.push(heads);
        }
    }
    all
}

/// The matrices of a model, equal ones counted, in the order of their first.
fn of_model(checkpoint: &Checkpoint, formats: &[DType]) -> Result<Vec<(Shape, usize)>> {
    let architecture = checkpoint.architecture()?;
    let used = checkpoint.get(&format!("{architecture}.expert_used_count")).and_then(Value::as_u64);
    let tied = checkpoint.tensor("output.weight").is_none();
    let (mut order, mut counts) = (Vec::new(), BTreeMap::new());
    for tensor in checkpoint.tensors() {
        // The embedding is a table to look up, unless it serves as the head too.
        let head = tensor.name == "output.weight" || tied && tensor.name == "token_embd.weight";
        if tensor.name == "token_embd.weight" && !head || !formats.is_empty() && !formats.contains(&tensor.dtype) {
            continue;
        }
        let (projection, depth, rows) = match (tensor.shape.as_slice(), used) {
            (&[depth, rows], _) => (if head { Projection::Head } else { Projection::Dense }, depth, rows),
            (&[depth, rows, experts], Some(used)) => {
                let used = usize::try_from(used).unwrap_or(experts).clamp(1, experts.max(1));
                (Projection::Routed { experts, used }, depth, rows)
            }
            _ => continue,
        };
        let shape = Shape { projection, dtype: tensor.dtype, rows, depth };
        let count = counts.entry(order.iter().position(|s| *s == shape).unwrap_or(order.len())).or_insert(0);
        if *count == 0 {
            order.push(shape);
        }
        *count += 1;
    }
    Ok(order.into_iter().zip(counts.into_values()).collect())
}

fn row_text(shape: &Shape, count: usize, width: usize, plan: &device::Plan) -> String {
    let Shape { projection, dtype, rows, depth } = shape;
    let tile = format!("{}x{}", plan.tile.rows, plan.tile.tokens);
    let bytes = [plan.bytes.weights, plan.bytes.input, plan.bytes.output].map(|bytes| ui::size(bytes as u64));
    let [weights, input, output] = bytes;
    format!(
        "{:<9} {:<8} {:>15} {count:>5} {width:>6}  {:<24} {tile:>7} {:>5}  {:<8} {weights:>10} {input:>10} {output:>10}",
        dtype.name(),
        projection.name(),
        format!("{rows} x {depth}"),
        plan.variant,
        plan.pass_tokens,
        plan.split,
    )
}

fn row_json(shape: &Shape, count: usize, width: usize, plan: &device::Plan) -> serde_json::Value {
    let (experts, used) = match shape.projection {
        Projection::Routed { experts, used } => (Some(experts), Some(used)),
        Projection::Dense | Projection::Head => (None, None),
    };
    json!({
        "format": shape.dtype.name(),
        "use": shape.projection.name(),
        "rows": shape.rows,
        "depth": shape.depth,
        "experts": experts,
        "used": used,
        "matrices": count,
        "width": width,
        "variant": plan.variant,
        "tile": { "rows": plan.tile.rows, "tokens": plan.tile.tokens },
        "pass_tokens": plan.pass_tokens,
        "split": plan.split,
        "bytes": { "weights": plan.bytes.weights, "input": plan.bytes.input, "output": plan.bytes.output },
    })
}
