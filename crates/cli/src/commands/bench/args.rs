//! The command line of `tessera bench`.

use clap::{Args, Subcommand, builder::RangedU64ValueParser};
use tessera_formats::DType;

use tessera_engine::serving::speculation::DEPTH_MAX;

use crate::{
    args::{Cache, Compute, Placement, Threads, weight_formats},
    model::Mtp,
};

/// Measure speed, with a check of the result in every row.
#[derive(Debug, Args)]
#[command(
    after_help = "A row holds the median of --repeat measurements with the least and the greatest, the commit, machine, threads, \
formats and kernels, and a hash of what was computed. Repeats that differ in it, or a sequence that gives other bits in a \
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
    Sweep(Sweep),
    Kernel(Kernel),
    Serve(Serve),
    Speculate(Speculate),
    Attention(Attention),
}

/// Time to compute a prompt: one sequence, the logits of the last token only.
#[derive(Debug, Args)]
pub(crate) struct Prefill {
    /// Tokens of the prompt; a list measures one after another
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', default_value = "512", value_parser = tokens())]
    pub(crate) prompt: Vec<usize>,
    #[command(flatten)]
    pub(crate) placement: Placement,
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
    pub(crate) placement: Placement,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Tokens a second of sequences that come and go: synthetic prompts of different lengths wait for a free slot, are computed
/// chunk by chunk between the steps of the others, and then decode together, each step taking the likeliest tokens.
#[derive(Debug, Args)]
#[command(
    after_help = "Prefill and decode are timed apart. A sequence's first token comes with its prompt and does not count as decoded. \
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
    pub(crate) placement: Placement,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Speed along a growing context: the prompt is computed from one frontier to the next, and at each frontier tokens are generated
/// from a copy of the sequence, which is put back afterwards.
#[derive(Debug, Args)]
pub(crate) struct Sweep {
    /// The first frontier
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = tokens())]
    pub(crate) from: usize,
    /// The last frontier
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = tokens())]
    pub(crate) to: usize,
    /// Tokens from one frontier to the next
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = tokens())]
    pub(crate) step: usize,
    /// Each frontier is so many times the one before, above 1 to 100
    #[arg(long, value_name = "X", conflicts_with = "step", value_parser = factor)]
    pub(crate) factor: Option<f64>,
    /// Tokens to generate at each frontier
    #[arg(long, value_name = "TOKENS", default_value_t = 32, value_parser = tokens())]
    pub(crate) generate: usize,
    /// Keep room for so many tokens, if these are more, as where a sequence is to grow further
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub(crate) room: Option<usize>,
    /// Draw the speeds into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub(crate) placement: Placement,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// One projection at many widths, with weights that are in no cache; with --experts, one layer of experts.
#[derive(Debug, Args)]
#[command(
    after_help = "With --experts, --rows is the width inside of an expert and --depth that of its input, and a row holds gate, up and \
down. \
`touched` is how many experts the tokens of a step go to, `time` and `bytes` are relative to the first width. \
--kernels may be given several times: the sets take turns, and must give the same bits.

Examples:
  tessera bench kernel --format Q4_1 --rows 1536 --depth 576 --widths 1,2,4,8,9,16
  tessera bench kernel --experts 128 --used 8 --rows 768 --depth 2048 --widths 1,2,4,8
  tessera bench kernel --experts 128 --used 8 --rows 768 --depth 2048 --widths 512,2048 \\
      --kernels moe_tile=32 --kernels moe_tile=64 --kernels moe_tile=128"
)]
pub(crate) struct Kernel {
    /// The format of the weights
    #[arg(long, value_name = "FORMAT", default_value = "Q4_K", value_parser = weight_formats(), ignore_case = true)]
    pub(crate) format: DType,
    /// Output features, 1 to 1048576
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = size())]
    pub(crate) rows: usize,
    /// Inputs, 1 to 1048576
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = size())]
    pub(crate) depth: usize,
    /// Tokens in a step; a list measures each
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8,9,16,64,512",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    pub(crate) widths: Vec<usize>,
    /// Experts of a layer, 1 to 4096
    #[arg(long, value_name = "N", requires = "used",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub(crate) experts: Option<usize>,
    /// Experts that a token goes to
    #[arg(long, value_name = "N", requires = "experts",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub(crate) used: Option<usize>,
    /// Leave the weights in the caches
    #[arg(long, conflicts_with = "experts")]
    pub(crate) hot: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) threads: Threads,
    /// Force kernels, as name=value with commas between; may be repeated [default: what TESSERA_KERNELS holds]
    #[arg(long, value_name = "SWITCHES")]
    pub(crate) kernels: Vec<String>,
}

/// Load on a server over loopback, as clients see it: time to the first token and between tokens, tokens a second.
#[derive(Debug, Args)]
#[command(
    after_help = "The server is another process of this program, started with the words after `--`; or one that listens at --url. \
Requests are greedy completions of a few prompts, so each has a known text: a reply that differs under load is an error. `first` is the \
time to the first piece of text, `between` that from one piece to the next.

Examples:
  tessera bench serve smollm2:135m --users 1,2,4,8,16,32
  tessera bench serve smollm2:135m --rate 2,8 --seconds 30 --json
  tessera bench serve smollm2:135m --users 8 --intrude 2000
  tessera bench serve smollm2:135m --users 16 --soak 10 -- --queue 64"
)]
pub(crate) struct Serve {
    /// The model
    #[arg(default_value = crate::store::DEFAULT)]
    pub(crate) model: String,
    /// Users who each ask again when they have their reply; a list measures one after another
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8,16,32",
        default_value_if("rate", clap::builder::ArgPredicate::IsPresent, None),
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub(crate) users: Vec<usize>,
    /// Requests a second, at random moments, whether the server keeps up or not; a list measures one after another
    #[arg(long, value_name = "RATE,…", value_delimiter = ',', value_parser = rate)]
    pub(crate) rate: Vec<f64>,
    /// How long each load lasts, 1 to 3600
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// Words of a prompt, which are about as many tokens
    #[arg(long, value_name = "WORDS", default_value_t = 64, value_parser = tokens())]
    pub(crate) prompt: usize,
    /// Tokens of a reply at most
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = tokens())]
    pub(crate) tokens: usize,
    /// Then let a prompt of so many words come among the most users, and show what it does to the others
    #[arg(long, value_name = "WORDS", value_parser = tokens())]
    pub(crate) intrude: Option<usize>,
    /// Then ask and hang up at random for so long, and see that neither pages nor memory are lost
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    pub(crate) soak: Option<f64>,
    /// What requests say of speculation: `off`, `auto`, or drafts a step [default: nothing]
    #[arg(long, value_name = "WORD")]
    pub(crate) speculation: Option<String>,
    /// Fixes prompts and moments
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// A server that runs already
    #[arg(long, value_name = "URL", conflicts_with = "flags")]
    pub(crate) url: Option<String>,
    /// Its API key
    #[arg(long, value_name = "KEY", requires = "url")]
    pub(crate) key: Option<String>,
    /// Print one JSON object a row
    #[arg(long)]
    pub(crate) json: bool,
    /// Words for `tessera serve`
    #[arg(last = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<String>,
}

/// A model that drafts for itself, beside the same greedy tokens without drafts: gain, tokens a pass, and where the time goes.
#[derive(Debug, Args)]
#[command(
    after_help = "A pass verifies the drafts in one step, forgets the wrong ones, and drafts again with the layer that the model has for \
it. Tokens, and the logits they are drawn from, must be the same to the last bit with and without drafts, or it is an error. \
Stages are timed in a run of their own; `low_proj` is the first projection of attention's output, of groups of heads. Passes \
with fewer drafts, such as the first, count in the speed alone.
A model of random weights guesses nothing right: with --right its drafts are made and then replaced, so that passes take what they take.

Examples:
  tessera bench speculate model.gguf --drafts 1,2,4
  tessera bench speculate trunk.gguf --mtp mtp.gguf --json
  tessera bench speculate synth:deepseek4-flash --mtp mtp.gguf --right 0.7 --device cuda"
)]
pub(crate) struct Speculate {
    /// Drafts a pass, 1 to 7; a list measures one after another
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=DEPTH_MAX as u64))]
    pub(crate) drafts: Vec<usize>,
    /// Tokens of the prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = tokens())]
    pub(crate) prompt: usize,
    /// Tokens to generate
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = tokens())]
    pub(crate) tokens: usize,
    /// Make drafts right with this chance, 0 to 1, whatever the model guesses
    #[arg(long, value_name = "CHANCE", value_parser = chance)]
    pub(crate) right: Option<f64>,
    #[command(flatten)]
    pub(crate) mtp: Mtp,
    #[command(flatten)]
    pub(crate) placement: Placement,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Attention of the last rows of a sequence, in the ways that there are for as many rows.
#[derive(Debug, Args)]
#[command(
    after_help = "Up to 24 rows, a single pass stands against two passes; above, fused blocks against unfused ones. Keys and values are \
in no cache. `time` is relative to the first way. --kernels may be given several times instead: the sets take turns, and \
must give the same bits.

Examples:
  tessera bench attention
  tessera bench attention --head-dims 128 --tokens 4096 --rows 1,2,4,8 --heads 9 --kv-heads 3
  tessera bench attention --cache-format q8_0 --kernels attention=fused --kernels attention=unfused"
)]
pub(crate) struct Attention {
    /// Numbers in a head; a list measures each
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "64,128,256,512",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub(crate) head_dims: Vec<usize>,
    /// Tokens of the sequence, those of the step among them; a list measures each
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', default_value = "128,512,2048,8192", value_parser = tokens())]
    pub(crate) tokens: Vec<usize>,
    /// Rows of the step, at most all tokens; a list measures each
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,512",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    pub(crate) rows: Vec<usize>,
    /// Query heads, a multiple of --kv-heads
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = heads())]
    pub(crate) heads: usize,
    /// Heads of keys and values
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = heads())]
    pub(crate) kv_heads: usize,
    /// Rows see this many tokens [default: all before them]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    pub(crate) window: Option<usize>,
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) cache: Cache,
    #[command(flatten)]
    pub(crate) threads: Threads,
    /// Force kernels, as name=value with commas between; may be repeated [default: the ways, one after another]
    #[arg(long, value_name = "SWITCHES")]
    pub(crate) kernels: Vec<String>,
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
    pub(crate) cache: Cache,
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

/// A count of heads.
fn heads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}

/// A side of a matrix.
fn size() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 20)
}

/// A number above 1.
fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().map_err(|_| "not a number".to_owned())?;
    if factor > 1.0 && factor <= 100.0 { Ok(factor) } else { Err("not above 1 and at most 100".to_owned()) }
}

/// Requests a second.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().map_err(|_| "not a number".to_owned())?;
    if rate > 0.0 && rate <= 1000.0 { Ok(rate) } else { Err("not above 0 and at most 1000".to_owned()) }
}

/// A probability.
fn chance(text: &str) -> Result<f64, String> {
    let chance = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&chance) { Ok(chance) } else { Err("not in the range 0 to 1".to_owned()) }
}

/// How long a soak lasts.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().map_err(|_| "not a number".to_owned())?;
    if minutes > 0.0 && minutes <= 1440.0 { Ok(minutes) } else { Err("not above 0 and at most 1440".to_owned()) }
}

/// A count of sequences in a step.
fn width() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=4096)
}
