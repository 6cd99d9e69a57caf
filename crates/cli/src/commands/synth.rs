//! `tessera synth`: a model with random weights, as a file.

use std::{
    io::{self, Write},
    time::Instant,
};

use anyhow::Result;
use serde_json::json;
use tessera_engine::{
    Error,
    synth::{self, Spec},
};

use crate::{
    args::Synth,
    model,
    ui::{self, Failure},
};

/// Makes and writes.
pub(crate) fn main(args: &Synth) -> Result<()> {
    let spec = Spec::parse(&args.spec).map_err(Error::from)?;
    let output = args.output.display();
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!("{output} exists"), "give another name, or --force to replace it").into());
    }
    let start = Instant::now();
    let bar = ui::bytes_bar("making", spec.weight_bytes());
    let threads = args.threads.unwrap_or_else(model::cores);
    let written = synth::write(&spec, &args.output, threads, &mut |progress| bar.set_position(progress.bytes_done));
    bar.finish_and_clear();
    written?;
    if args.json {
        let object = json!({ "output": args.output, "model": spec.to_string(), "weight_bytes": spec.weight_bytes() });
        return Ok(writeln!(io::stdout(), "{object}")?);
    }
    let seconds = start.elapsed().as_secs_f64();
    ui::note(&format!("{output}: {} of {spec} in {seconds:.1} s", ui::size(spec.weight_bytes())));
    Ok(())
}
