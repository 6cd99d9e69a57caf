//! The command line of `tessera bench`.

use clap::{Args, Subcommand, builder::RangedU64ValueParser};

use crate::args::Compute;

/// Measure speed, with a check of the result in every row.
#[derive(Debug, Args)]
#[command(
    after_help = "A row holds the median of --repeat measurements with the least and the greatest, the commit, machine, threads,
formats and kernels, and a hash of what was computed. Repeats that differ in it, or a sequence that gives other bits in a
batch than alone, are an error. --csv and --json print every column.

Examples:
  tessera bench prefill smollm2:135m --prompt 512
  tessera bench decode smollm2:135m --width 1,2,4,8,16
  tessera bench batch synth:qwen3,layers=8 --batch 1,4,16 --sequences 32 --csv"
)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    Prefill(Prefill),
    Decode(Decode),
    Batch(Batch),
}

/// Time to compute a prompt: one sequence, the logits of the last token only.
#[derive(Debug, Args)]
pub(crate) struct Prefill {
    /// Tokens of the prompt; a list measures one after another
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', default_value = "512", value_parser = tokens())]
    pub(crate) prompt: Vec<usize>,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Tokens a second of sequences in lock-step: each step is one token of every sequence.
#[derive(Debug, Args)]
pub(crate) struct Decode {
    /// Sequences in a step; a list measures one after another
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1", value_parser = width())]
    pub(crate) width: Vec<usize>,
    /// Tokens of a sequence before the first step
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = tokens())]
    pub(crate) depth: usize,
    /// Steps
    #[arg(long, value_name = "STEPS", default_value_t = 32, value_parser = tokens())]
    pub(crate) tokens: usize,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Tokens a second of sequences that come and go: synthetic prompts of different lengths wait for a free slot, are computed
/// chunk by chunk between the steps of the others, and then decode together, each step taking the likeliest tokens.
#[derive(Debug, Args)]
#[command(
    after_help = "Prefill and decode are timed apart. A sequence's first token comes with its prompt and does not count as decoded.
All but the longest prompt are shorter than --prompt, down to a quarter of it; so with --tokens."
)]
pub(crate) struct Batch {
    /// Slots: sequences that decode together at most; a list measures one after another
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = width())]
    pub(crate) batch: Vec<usize>,
    /// Sequences in all, at least as many as slots [default: twice the widest batch]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 16))]
    pub(crate) sequences: Option<usize>,
    /// The longest prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = tokens())]
    pub(crate) prompt: usize,
    /// The longest reply
    #[arg(long, value_name = "TOKENS", default_value_t = 32, value_parser = tokens())]
    pub(crate) tokens: usize,
    /// Fixes prompts and lengths
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// What all measurements of a model share.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The model
    #[arg(default_value = crate::store::DEFAULT)]
    pub(crate) model: String,
    /// Prompt tokens computed at a time, 1 to 65536
    #[arg(long, value_name = "TOKENS", default_value_t = 512,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    pub(crate) chunk: usize,
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) compute: Compute,
}

/// How often, and how it is shown.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Measurements of each row, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub(crate) repeat: usize,
    /// Print comma-separated values with all columns
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// Print one JSON object a row
    #[arg(long)]
    pub(crate) json: bool,
}

/// A count of tokens.
fn tokens() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 24)
}

/// A count of sequences in a step.
fn width() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=4096)
}
