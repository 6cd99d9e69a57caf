//! `tessera tokenize`: the tokens of a text.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;
use tessera_engine::tokenizer::Special;

use crate::{args::Tokenize, input, model, ui};

/// Prints ids and pieces.
pub(crate) fn main(args: &Tokenize) -> Result<()> {
    let (name, text) = input::model_and_text(args.model.as_deref(), args.text.as_deref());
    let text = input::text_or_stdin(text, "text")?;
    let tokenizer = model::open_checkpoint(&name)?.tokenizer()?;
    let special = if args.special { Special::Parse } else { Special::Plain };
    let ids = tokenizer.encode(&text, special, args.special)?;
    let piece = |id: &u32| String::from_utf8_lossy(tokenizer.token_bytes(*id)).into_owned();
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        let tokens = ids.iter().map(|id| json!({ "id": id, "piece": piece(id), "special": tokenizer.is_control(*id) }));
        let tokens: Vec<_> = tokens.collect();
        writeln!(out, "{}", json!({ "count": ids.len(), "ids": ids, "tokens": tokens }))?;
    } else {
        for id in &ids {
            // Quoted and escaped: pieces hold spaces and line ends.
            writeln!(out, "{id:>8}  {:?}", piece(id))?;
        }
        out.flush()?;
        ui::note(&format!("{} tokens", ids.len()));
    }
    Ok(out.flush()?)
}
