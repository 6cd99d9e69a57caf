//! The command line: commands, flags, their defaults and ranges, and examples.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// Runs large language models from quantized weights.
#[derive(Debug, Parser)]
#[command(
    name = "tessera",
    version,
    arg_required_else_help = true,
    after_help = "MODEL is a name (`tessera list --all`), hf:OWNER/REPO[/FILE], a GGUF file or the folder of an MLX checkpoint.
TESSERA_CACHE names the folder for fetched models, HF_TOKEN holds a token for closed repositories of the hub, and
NO_COLOR switches colours off."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Pull(Pull),
    List(List),
    Rm(Remove),
    Inspect(Inspect),
    Completions(Completions),
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

/// Print a script that completes commands and flags in a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  tessera completions bash > ~/.local/share/bash-completion/completions/tessera")]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
