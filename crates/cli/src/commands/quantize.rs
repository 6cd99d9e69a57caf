//! `tessera quantize`: a GGUF file in another format.

use std::{
    io::{self, Write},
    time::Instant,
};

use anyhow::Result;
use serde_json::json;
use tessera_formats::{
    Gguf,
    quantize::{Assignment, QuantizePlan, Summary, quantize},
};

use crate::{
    args::Quantize,
    model,
    ui::{self, Failure},
};

/// Reads, encodes and writes.
pub(crate) fn main(args: &Quantize) -> Result<()> {
    let output = args.output.display();
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!("{output} exists"), "give another name, or --force to replace it").into());
    }
    let checkpoint = model::open_checkpoint(&args.input)?;
    let Some(source) = checkpoint.gguf() else {
        let message = format!("{} is a folder of safetensors", checkpoint.file());
        return Err(Failure::new(message, "only GGUF files can be quantized").into());
    };
    let threads = args.threads.count();
    let plan = QuantizePlan { dtype: args.dtype, output: args.output_type, embedding: args.embedding_type, threads };
    let assignments = plan.assign(source)?;
    warn(source, &assignments);
    let start = Instant::now();
    let bar = ui::bytes_bar("quantizing", source.tensors().iter().map(|t| t.bytes.len() as u64).sum());
    let summary = quantize(source, &plan, &args.output, &mut |progress| {
        bar.set_position(
            (bar.length().unwrap_or(0) as f64 * progress.weights_done as f64 / progress.weights_total as f64) as u64,
        );
    })?;
    bar.finish_and_clear();
    if args.json {
        return print_json(args, source, &summary);
    }
    let (before, after) = (ui::size(summary.bytes_before), ui::size(summary.bytes_after));
    let seconds = start.elapsed().as_secs_f64();
    ui::note(&format!("{output}: {before} became {after} in {seconds:.1} s"));
    Ok(())
}

/// Says what a user may not expect: once where it holds for many tensors.
fn warn(source: &Gguf, assignments: &[Assignment]) {
    let mut notes: Vec<(String, &str, usize)> = Vec::new();
    for (tensor, assignment) in source.tensors().iter().zip(assignments) {
        let Some(note) = assignment.note else { continue };
        let text = note.to_string();
        match notes.iter_mut().find(|(known, ..)| *known == text) {
            Some((.., count)) => *count += 1,
            None => notes.push((text, &tensor.name, 1)),
        }
    }
    for (text, first, count) in notes {
        let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        ui::note(&format!("note: {}{others}: {text}", ui::harmless(first)));
    }
}

fn print_json(args: &Quantize, source: &Gguf, summary: &Summary) -> Result<()> {
    let tensors = source.tensors().iter().zip(&summary.assignments).map(|(tensor, assignment)| {
        let note = assignment.note.map(|n| n.to_string());
        json!({ "name": tensor.name, "from": assignment.from.name(), "to": assignment.to.name(), "note": note })
    });
    let object = json!({
        "output": args.output,
        "bytes_before": summary.bytes_before,
        "bytes_after": summary.bytes_after,
        "tensors": tensors.collect::<Vec<_>>(),
    });
    Ok(writeln!(io::stdout(), "{object}")?)
}
