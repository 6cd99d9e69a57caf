//! The command line: commands, flags, their defaults and ranges, and examples.

use std::{num::NonZero, path::PathBuf};

use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser},
};
use clap_complete::Shell;
use tessera_formats::{DType, codec::ENCODABLE};

pub(crate) use crate::cache::Cache;
use crate::{
    commands::kernels::Kernels,
    device::{Numerics, Place},
    machine,
    model::Keep,
    talk::Talk,
};

/// Runs large language models from quantized weights.
#[derive(Debug, Parser)]
#[command(
    name = "tessera",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  tessera run \"Why is the sky blue?\"              answer with the default model, smollm2:135m
  tessera run gemma3:270m \"Rome was not built\"    name another; it is fetched first
  tessera chat model.gguf                         talk with a model from a file

MODEL is a name (`tessera list --all`), hf:OWNER/REPO[/FILE], a GGUF file, the folder of an MLX checkpoint, or \
synth:ARCHITECTURE,… for random weights (`tessera synth --help`). \
TESSERA_CACHE names the folder for fetched models, TESSERA_TUNING the file of `tessera tune`, \
HF_TOKEN holds a token for closed repositories of the hub, and \
NO_COLOR switches colours off."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    Chat(Chat),
    Serve(crate::commands::serve::Serve),
    Pull(Pull),
    List(List),
    Rm(Remove),
    Inspect(Inspect),
    Kernels(Kernels),
    Tune(crate::commands::tune::Tune),
    Tokenize(Tokenize),
    Perplexity(Perplexity),
    Quantize(Quantize),
    Synth(crate::commands::synth::Synth),
    Audit(crate::commands::audit::Audit),
    Bench(crate::commands::bench::Bench),
    Profile(crate::commands::bench::profile::Profile),
    Completions(Completions),
}

/// Answer one prompt.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tessera run \"Name three rivers.\"
  tessera run gemma3:270m \"Three rivers are\" --temperature 0 --max-tokens 64
  tessera run smollm2:135m < question.txt
  tessera run model.gguf --raw \"Once upon a time\" --stats
  tessera run smollm2:135m \"Say yes or no.\" --json --logprobs 5
  tessera run smollm2:135m --system \"$(cat rules.txt)\" --state rules.state \"May I?\"   reads the rules once")]
pub(crate) struct Run {
    /// The model [default: smollm2:135m]. A lone argument that names no model is taken as the prompt
    pub(crate) model: Option<String>,
    /// The prompt; `-`, or none while stdin is no terminal: read it from stdin
    pub(crate) prompt: Option<String>,
    /// Continue the prompt as it is, without the model's chat template (as models without one do)
    #[arg(long, conflicts_with_all = ["system", "template", "chat_format", "think", "no_think"])]
    pub(crate) raw: bool,
    /// A message that tells the model how to behave
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) talk: Talk,
    /// Tools that the model may call: a JSON array, as in chat APIs. Calls are printed as JSON, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    pub(crate) tools: Option<PathBuf>,
    /// Print one JSON object instead of the text
    #[arg(long)]
    pub(crate) json: bool,
    /// Log-probabilities of each token and the N most likely ones, 0 to 100; printed with --json, else to stderr
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0",
        value_parser = RangedU64ValueParser::<usize>::new().range(0..=100))]
    pub(crate) logprobs: Option<usize>,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    #[command(flatten)]
    pub(crate) keep: Keep,
    #[command(flatten)]
    pub(crate) engine: Engine,
}

/// Talk with a model over many turns.
#[derive(Debug, Args)]
#[command(after_help = "In the conversation: /help shows the commands, Ctrl-C stops the reply, Ctrl-D leaves.

Examples:
  tessera chat
  tessera chat smollm2:135m --system \"Answer in one sentence.\"")]
pub(crate) struct Chat {
    /// The model
    #[arg(default_value = crate::store::DEFAULT)]
    pub(crate) model: String,
    /// A message that tells the model how to behave
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) talk: Talk,
    #[command(flatten)]
    pub(crate) sampling: Sampling,
    #[command(flatten)]
    pub(crate) keep: Keep,
    #[command(flatten)]
    pub(crate) engine: Engine,
}

/// Fetch a model into the model store.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tessera pull gemma3:270m
  tessera pull hf:OWNER/REPO                 the Q4_K_M file, or the only one
  tessera pull hf:OWNER/REPO/FILE.gguf")]
pub(crate) struct Pull {
    /// The model
    #[arg(default_value = crate::store::DEFAULT)]
    pub(crate) model: String,
}

/// Show the models in the model store.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Show the models known by name that are not fetched as well
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove models from the model store.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The models, as `tessera list` names them
    #[arg(required = true)]
    pub(crate) models: Vec<String>,
}

/// Show a model's metadata, tensors, formats and the memory it needs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tessera inspect model.gguf --tensors
  tessera inspect smollm2:135m --json")]
pub(crate) struct Inspect {
    /// The model
    pub(crate) model: String,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print JSON, with every tensor and all metadata but long arrays
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show how a text is cut into tokens.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tessera tokenize smollm2:135m \"Hello, world\"
  tessera tokenize model.gguf --json < text.txt")]
pub(crate) struct Tokenize {
    /// The model [default: smollm2:135m]. A lone argument that names no model is taken as the text
    pub(crate) model: Option<String>,
    /// The text; `-` or none: read it from stdin
    pub(crate) text: Option<String>,
    /// Take special tokens written out in the text as these tokens, and add those that begin a text
    #[arg(long)]
    pub(crate) special: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure how well a model predicts a text, and how far it is from a reference.
#[derive(Debug, Args)]
#[command(
    after_help = "Perplexity is e to the mean negative log-likelihood of a token, over the second half of each chunk. \
With --reference, `mean_kld` is the mean divergence D(reference || model) in nats over the listed tokens and the \
remainder as one more outcome, `p99_kld` its 99th percentile, and `same_top` the share of positions at which both hold \
the same token most likely.

Examples:
  tessera perplexity smollm2:135m --file text.txt
  tessera perplexity smollm2:135m --reference top16.json --json"
)]
pub(crate) struct Perplexity {
    /// The model
    pub(crate) model: String,
    /// The text [default: stdin]
    #[arg(long, value_name = "TEXT", conflicts_with = "reference")]
    pub(crate) file: Option<PathBuf>,
    /// Tokens and the likeliest next tokens by a reference, as JSON
    #[arg(long, value_name = "JSON")]
    pub(crate) reference: Option<PathBuf>,
    /// Tokens in a chunk of the text, 2 to 1048576
    #[arg(long, value_name = "TOKENS", default_value_t = 512, conflicts_with = "reference",
        value_parser = RangedU64ValueParser::<usize>::new().range(2..=1 << 20))]
    pub(crate) window: usize,
    /// Chunks to measure at most [default: all]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) chunks: Option<usize>,
    /// Of each chunk of the reference, score every N-th position only
    #[arg(long, value_name = "N", default_value_t = 1, requires = "reference",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    pub(crate) every: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) engine: Engine,
}

/// Write a model in another format.
#[derive(Debug, Args)]
#[command(
    after_help = "Norms, biases and routers keep full precision. Start from an F16 or BF16 file where there is one: a file \
that is quantized already takes the errors of both formats.

Examples:
  tessera quantize model-f16.gguf model-q4_k.gguf --type Q4_K
  tessera quantize model-f16.gguf small.gguf --type Q4_0 --output-type Q6_K"
)]
pub(crate) struct Quantize {
    /// The model to read: a name or a GGUF file
    pub(crate) input: String,
    /// The GGUF file to write
    pub(crate) output: PathBuf,
    /// The format of the matrices
    #[arg(long = "type", value_name = "FORMAT", value_parser = encodable(), ignore_case = true)]
    pub(crate) dtype: DType,
    /// Another format for the output matrix
    #[arg(long, value_name = "FORMAT", value_parser = encodable(), ignore_case = true)]
    pub(crate) output_type: Option<DType>,
    /// Another format for the token embedding
    #[arg(long, value_name = "FORMAT", value_parser = encodable(), ignore_case = true)]
    pub(crate) embedding_type: Option<DType>,
    #[command(flatten)]
    pub(crate) threads: Threads,
    /// Replace the output if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON: the format of every tensor before and after
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a script that completes commands and flags in a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  tessera completions bash > ~/.local/share/bash-completion/completions/tessera")]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

/// How the next token is drawn.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct Sampling {
    /// Longest reply in tokens, 1 and up
    #[arg(long, short = 'n', value_name = "TOKENS", default_value_t = 1024,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) max_tokens: usize,
    /// Randomness, 0 to 10; 0 takes the likeliest token each time
    #[arg(long, short, default_value_t = 0.7, value_name = "X", value_parser = |s: &str| number(s, 0.0, 10.0))]
    pub(crate) temperature: f32,
    /// Draw from the K likeliest tokens only; 0: from all
    #[arg(long, default_value_t = 40, value_name = "K")]
    pub(crate) top_k: usize,
    /// Draw from the likeliest tokens that hold this much probability together, above 0 to 1
    #[arg(long, default_value_t = 0.95, value_name = "P", value_parser = |s: &str| number(s, f32::MIN_POSITIVE, 1.0))]
    pub(crate) top_p: f32,
    /// Draw from tokens at least this likely, relative to the likeliest, 0 to 1
    #[arg(long, default_value_t = 0.05, value_name = "P", value_parser = |s: &str| number(s, 0.0, 1.0))]
    pub(crate) min_p: f32,
    /// Divide the logits of tokens seen before, above 0 to 10; 1: leave them
    #[arg(long, default_value_t = 1.0, value_name = "X", value_parser = |s: &str| number(s, f32::MIN_POSITIVE, 10.0))]
    pub(crate) repetition_penalty: f32,
    /// Take this from a token's logit for each time it was used, -10 to 10
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true,
        value_parser = |s: &str| number(s, -10.0, 10.0))]
    pub(crate) frequency_penalty: f32,
    /// Take this from a token's logit if it was used, -10 to 10
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true,
        value_parser = |s: &str| number(s, -10.0, 10.0))]
    pub(crate) presence_penalty: f32,
    /// Tokens at the end that the three penalties look at
    #[arg(long, default_value_t = 64, value_name = "TOKENS")]
    pub(crate) penalty_window: usize,
    /// Add to the logit of a token, as ID=X or ID=-inf; may be repeated
    #[arg(long, value_name = "ID=X", value_parser = bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Number that fixes the random choices [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// End the reply before this text; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    /// Go on where the model ends its reply, up to --max-tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// End the reply at this token id; may be repeated
    #[arg(long, value_name = "ID")]
    pub(crate) stop_token: Vec<u32>,
}

/// Where the model runs.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Placement {
    /// Device: cpu, cuda (or cuda:N, an NVIDIA card), or auto: a card if there is one
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Place,
    /// Arithmetic of prompt rows on a card: role (of 16-bit operands, fast), or uniform (the same as of decoded rows)
    #[arg(long, value_name = "NUMERICS", default_value = "role")]
    pub(crate) numerics: Numerics,
}

/// How the model runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct Engine {
    #[command(flatten)]
    pub(crate) compute: Compute,
    #[command(flatten)]
    pub(crate) placement: Placement,
    /// Prompt tokens computed at a time, 1 to 65536; the results do not depend on it [default: 512, on a card 2048]
    #[arg(long, value_name = "TOKENS", value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    pub(crate) chunk: Option<usize>,
    /// Tokens to hold in memory, prompt and reply together [default: the model's context, 4096 at most]
    #[arg(long, value_name = "TOKENS", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) context: Option<usize>,
    #[command(flatten)]
    pub(crate) cache: Cache,
    /// Print tokens a second to stderr at the end
    #[arg(long)]
    pub(crate) stats: bool,
}

/// What computes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct Compute {
    #[command(flatten)]
    pub(crate) threads: Threads,
    /// Force kernels, as name=value with commas between: isa, tile, moe_tile, split; the results do not depend on it
    /// [default: what TESSERA_KERNELS holds]
    #[arg(long, value_name = "SWITCHES")]
    pub(crate) kernels: Option<String>,
}

/// How many threads compute.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Threads {
    /// Threads, 1 to 1024 [default: one for each core]
    #[arg(id = "threads", long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    count: Option<usize>,
}

impl Threads {
    /// As many as asked for, or one for each core.
    pub(crate) fn count(self) -> usize {
        self.count.unwrap_or_else(machine::cores)
    }

    /// None where no flag says how many.
    pub(crate) fn asked_for(self) -> Option<NonZero<usize>> {
        self.count.and_then(NonZero::new)
    }
}

/// Every format of weights.
pub(crate) fn weight_formats() -> impl TypedValueParser<Value = DType> {
    format_of(DType::all())
}

/// The formats that can be written.
fn encodable() -> impl TypedValueParser<Value = DType> {
    format_of(ENCODABLE.into_iter())
}

/// One of these, by its name.
fn format_of(formats: impl Iterator<Item = DType>) -> impl TypedValueParser<Value = DType> {
    let known = PossibleValuesParser::new(formats.map(DType::name));
    known.try_map(|name| DType::from_name(&name).ok_or("no such format"))
}

/// A number in a range, ends included.
fn number(text: &str, low: f32, high: f32) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    let least = if low == f32::MIN_POSITIVE { "above 0".to_owned() } else { low.to_string() };
    if (low..=high).contains(&value) { Ok(value) } else { Err(format!("not in the range {least} to {high}")) }
}

/// `ID=X`
fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, value) = text.split_once('=').ok_or("write ID=X, such as 42=-1.5")?;
    let id = id.trim().parse().map_err(|_| format!("`{id}` is no token id"))?;
    let value: f32 = value.trim().parse().map_err(|_| format!("`{value}` is no number"))?;
    if value.is_nan() || value == f32::INFINITY {
        return Err(format!("{value} cannot be added to a logit; the least is -inf"));
    }
    Ok((id, value))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ranges_hold_at_their_ends() {
        let cases = [
            ("--temperature=0", true),
            ("--temperature=10", true),
            ("--temperature=10.1", false),
            ("--temperature=-1", false),
            ("--temperature=NaN", false),
            ("--temperature=warm", false),
            ("--top-p=0", false),
            ("--top-p=1", true),
            ("--top-p=1.01", false),
            ("--min-p=0", true),
            ("--repetition-penalty=0", false),
            ("--repetition-penalty=inf", false),
            ("--frequency-penalty=-10", true),
            ("--frequency-penalty=-11", false),
            ("--top-k=0", true),
            ("--top-k=-1", false),
            ("--max-tokens=0", false),
            ("--max-tokens=1", true),
            ("--seed=18446744073709551615", true),
            ("--seed=18446744073709551616", false),
            ("--logprobs", true),
            ("--logprobs=100", true),
            ("--logprobs=101", false),
            ("--logit-bias=3=-inf", true),
            ("--logit-bias=3=inf", false),
            ("--logit-bias=3=nan", false),
            ("--logit-bias=3", false),
            ("--logit-bias=-3=1", false),
            ("--stop=", false),
            ("--threads=0", false),
            ("--threads=1024", true),
            ("--threads=1025", false),
            ("--chunk=0", false),
            ("--chunk=65536", true),
            ("--chunk=65537", false),
            ("--context=0", false),
        ];
        for (flag, accepted) in cases {
            let result = Cli::try_parse_from(["tessera", "run", "m.gguf", "hi", flag]);
            assert_eq!(result.is_ok(), accepted, "{flag}: {:?}", result.err().map(|e| e.to_string()));
        }
    }
}
