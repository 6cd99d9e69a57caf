//! `tessera rm`: remove models from the store.

use std::io::{self, Write};

use anyhow::Result;

use crate::{
    args::Remove,
    store::{Reference, Store},
    ui::{self, Failure},
};

/// Removes each, stopping at the first that cannot be.
pub(crate) fn main(args: &Remove) -> Result<()> {
    let store = Store::open()?;
    for model in &args.models {
        let reference = Reference::parse(model)?;
        let Some(name) = reference.name() else {
            let what = if matches!(reference, Reference::Path(_)) { "a path" } else { "made where it is used" };
            let remedy = "models in the store have names, see `tessera list`; delete files yourself";
            return Err(Failure::new(format!("`{model}` is {what}, not a model in the store"), remedy).into());
        };
        let freed = store.remove(&name)?;
        writeln!(io::stdout(), "removed {name} ({})", ui::size(freed))?;
    }
    Ok(())
}
