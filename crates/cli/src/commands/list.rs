//! `tessera list`: what is in the store, and what could be.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;

use crate::{
    args::List,
    store::{DEFAULT, MODELS, Store},
    ui,
};

/// A line of the list.
struct Row {
    name: String,
    bytes: u64,
    /// None: not fetched.
    path: Option<String>,
    about: &'static str,
}

/// Prints the list.
pub(crate) fn main(args: &List) -> Result<()> {
    let store = Store::open()?;
    let about = |name: &str| MODELS.iter().find(|m| m.name == name).map_or("", |m| m.about);
    let fetched = store.list()?.into_iter().map(|(model, path)| Row {
        about: about(&model.name),
        bytes: model.bytes(),
        path: Some(path.display().to_string()),
        name: model.name,
    });
    let mut rows: Vec<_> = fetched.collect();
    if args.all {
        let missing = MODELS.iter().filter(|known| rows.iter().all(|row| row.name != known.name));
        let missing = missing.map(|m| Row { name: m.name.to_owned(), bytes: m.bytes(), path: None, about: m.about });
        rows.extend(missing.collect::<Vec<_>>());
    }
    let mut out = io::stdout().lock();
    if args.json {
        let row = |r: &Row| json!({ "name": r.name, "bytes": r.bytes, "path": r.path, "default": r.name == DEFAULT });
        let text = serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>())?;
        return Ok(writeln!(out, "{text}")?);
    }
    if rows.is_empty() {
        ui::note(&format!("no models in {}: `tessera pull` fetches {DEFAULT}", store.root().display()));
        return Ok(());
    }
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    for row in &rows {
        let place = row.path.as_deref().unwrap_or("not fetched");
        let about = if row.about.is_empty() { String::new() } else { format!("  ({})", row.about) };
        writeln!(out, "{:width$}  {:>9}  {place}{about}", row.name, ui::size(row.bytes))?;
    }
    Ok(())
}
