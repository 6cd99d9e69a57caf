//! `tessera completions`: a script for the user's shell.

use std::io::{self, Write};

use anyhow::Result;
use clap::CommandFactory;

use crate::args::{Cli, Completions};

/// Prints the script.
pub(crate) fn main(args: &Completions) -> Result<()> {
    // Into memory first: the generator panics where stdout is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tessera", &mut script);
    Ok(io::stdout().write_all(&script)?)
}
