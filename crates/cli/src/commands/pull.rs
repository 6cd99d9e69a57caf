//! `tessera pull`: fetch a model.

use std::io::{self, Write};

use anyhow::Result;

use crate::{
    args::Pull,
    store::{Reference, Store},
};

/// Fetches the model and prints where it is.
pub(crate) fn main(args: &Pull) -> Result<()> {
    let path = Store::open()?.obtain(&Reference::parse(&args.model)?)?;
    Ok(writeln!(io::stdout(), "{}", path.display())?)
}
