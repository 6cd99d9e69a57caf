//! The `tessera` binary: commands, and the only place that names devices.

#![forbid(unsafe_code)]

mod args;
mod cache;
mod commands;
mod device;
mod divergence;
mod generation;
mod input;
mod machine;
mod measure;
mod model;
mod reference_file;
mod scoring;
mod store;
mod talk;
mod tuning;
mod ui;

use std::{io, process::ExitCode};

use args::{Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => commands::run::main(&args),
        Command::Chat(args) => commands::chat::main(&args),
        Command::Serve(args) => commands::serve::main(&args),
        Command::Pull(args) => commands::pull::main(&args),
        Command::List(args) => commands::list::main(&args),
        Command::Rm(args) => commands::rm::main(&args),
        Command::Tokenize(args) => commands::tokenize::main(&args),
        Command::Perplexity(args) => commands::perplexity::main(&args),
        Command::Audit(args) => commands::audit::main(&args),
        Command::Completions(args) => commands::completions::main(&args),
        Command::Quantize(args) => commands::quantize::main(&args),
        Command::Synth(args) => commands::synth::main(&args),
        Command::Bench(args) => commands::bench::main(&args),
        Command::Profile(args) => commands::bench::profile::main(&args),
        Command::Kernels(args) => commands::kernels::main(&args),
        Command::Tune(args) => commands::tune::main(&args),
        Command::Inspect(args) => commands::inspect::main(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has enough of it, as `head` does.
        Err(error) if closed_output(&error) => ExitCode::SUCCESS,
        Err(error) => {
            ui::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn closed_output(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.into_iter().any(|kind| kind == io::ErrorKind::BrokenPipe)
}
