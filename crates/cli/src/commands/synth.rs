//! `tessera synth`: a model with random weights, as a file.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Instant,
};

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tessera_engine::{
    Error,
    synth::{self, Spec},
};

use crate::{
    args::Threads,
    ui::{self, Failure},
};

/// Write a model with random weights, for tests and benchmarks.
#[derive(Debug, Args)]
#[command(after_help = "SPEC is ARCHITECTURE,KEY=VALUE,… with these keys, all of which have defaults:
  layers, width, head_dim, heads, kv_heads, feed_forward, vocabulary, context; and what an architecture has:
  window; experts, experts_used, expert_feed_forward, dense_layers; full_head_dim, shared_kv_layers, per_layer
  format               of all matrices: F16, Q8_0, Q4_K, IQ3_S, … [default: Q4_K]
  head, embedding      the format of these alone; and of each matrix of the layers by its name: attn_v, ffn_down, …
  tied                 true or false: whether the embedding serves as the head
  alike                true or false: whether all layers have the weights of the first of their kind; large models load in seconds
                       on a card then, and take as long to run
  seed                 other weights

The same model needs no file: synth:SPEC is a name wherever a command takes a MODEL, and the weights are the same.

Examples:
  tessera synth llama tiny.gguf
  tessera synth qwen3,layers=28,width=1024,heads=16,kv_heads=8,format=Q4_K,head=Q6_K model.gguf
  tessera run synth:gemma3,layers=12,format=Q4_0 \"Hello\" --max-tokens 16")]
pub(crate) struct Synth {
    /// The model: an architecture (llama, qwen2, qwen3, qwen3moe, gemma3, gemma4, gpt-oss, glm4moe, deepseek4), sizes and formats
    pub(crate) spec: String,
    /// The GGUF file to write
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) threads: Threads,
    /// Replace the output if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON: the whole line of the model, and its size
    #[arg(long)]
    pub(crate) json: bool,
}

/// Makes and writes.
pub(crate) fn main(args: &Synth) -> Result<()> {
    let spec = Spec::parse(&args.spec).map_err(Error::from)?;
    let output = args.output.display();
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!("{output} exists"), "give another name, or --force to replace it").into());
    }
    let start = Instant::now();
    let bar = ui::bytes_bar("making", spec.weight_bytes());
    let threads = args.threads.count();
    let written = synth::write(&spec, &args.output, threads, &mut |progress| bar.set_position(progress.bytes_done));
    bar.finish_and_clear();
    written?;
    if args.json {
        let object = json!({ "output": args.output, "model": spec.to_string(), "weight_bytes": spec.weight_bytes() });
        return Ok(writeln!(io::stdout(), "{object}")?);
    }
    let seconds = start.elapsed().as_secs_f64();
    ui::note(&format!("{output}: {} of {spec} in {seconds:.1} s", ui::size(spec.weight_bytes())));
    Ok(())
}
