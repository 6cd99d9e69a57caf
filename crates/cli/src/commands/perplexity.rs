//! `tessera perplexity`: how well a model predicts a text, and how far it is from a reference.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;

use crate::{
    args::Perplexity,
    input,
    model::Model,
    reference_file::ReferenceFile,
    scoring::{self, Score},
    ui,
};

/// Measures and prints.
pub(crate) fn main(args: &Perplexity) -> Result<()> {
    let mut model = Model::open(&args.model, &args.engine)?;
    let score = match &args.reference {
        Some(path) => {
            let mut reference = ReferenceFile::open(path, model.vocabulary())?;
            reference.chunks.truncate(args.chunks.unwrap_or(usize::MAX));
            if let Some(token) = model.leading_token() {
                reference.begin_with(token);
            }
            model.session(reference.longest())?;
            let bar = ui::steps_bar("chunks", reference.chunks.len() as u64);
            scoring::of_reference(&reference, args.every, &mut |c, r, show| model.logits(c, r, show), || bar.inc(1))?
        }
        None => of_text(args, &mut model)?,
    };
    print(args, &score)
}

fn of_text(args: &Perplexity, model: &mut Model) -> Result<Score> {
    let text = match &args.file {
        Some(path) => input::text_file(path)?,
        None => input::text_or_stdin(None, "text")?,
    };
    let tokens = model.raw_prompt(&text)?;
    let mut chunks = scoring::chunks(&tokens, args.window, model.leading_token());
    chunks.truncate(args.chunks.unwrap_or(usize::MAX));
    model.session(chunks.iter().map(Vec::len).max().unwrap_or(1))?;
    let bar = ui::steps_bar("chunks", chunks.len() as u64);
    scoring::of_text(&chunks, args.window, &mut |c, r, show| model.logits(c, r, show), || bar.inc(1))
}

fn print(args: &Perplexity, score: &Score) -> Result<()> {
    let mut out = io::stdout().lock();
    if args.json {
        let mut object = json!({ "model": args.model, "perplexity": score.perplexity, "tokens": score.tokens });
        if let Some(d) = score.divergence {
            object["mean_kld"] = json!(d.mean_kld);
            object["p99_kld"] = json!(d.p99_kld);
            object["same_top"] = json!(d.same_top);
            object["positions"] = json!(d.positions);
        }
        return Ok(writeln!(out, "{object}")?);
    }
    if let Some(perplexity) = score.perplexity {
        writeln!(out, "perplexity  {perplexity:.4} over {} tokens", score.tokens)?;
    }
    if let Some(d) = score.divergence {
        writeln!(out, "mean KLD    {:.6} nats over {} positions", d.mean_kld, d.positions)?;
        writeln!(out, "p99 KLD     {:.6} nats", d.p99_kld)?;
        writeln!(out, "same top    {:.2} %", 100.0 * d.same_top)?;
    }
    Ok(())
}
