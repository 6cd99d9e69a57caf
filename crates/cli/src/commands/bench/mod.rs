//! `tessera bench`: how fast, at which width, and that the result is right. Beside it `tessera profile`.
//!
//! Every measurement is repeated, and every row carries a hash of what was computed. Repeats that differ are an error, and
//! so is a batch in which a sequence gives other bits than alone: no speed stands without its correctness.

mod args;
mod attention;
mod batch;
mod decode;
mod kernel;
mod plot;
mod prefill;
pub(crate) mod profile;
mod random;
mod report;
mod row;
mod serve;
mod speculate;
mod subject;
mod sweep;

use anyhow::Result;

pub(crate) use args::Bench;
use args::What;

use crate::{machine, measure::times};

/// Measures and prints.
pub(crate) fn main(args: &Bench) -> Result<()> {
    match &args.what {
        What::Prefill(args) => prefill::main(args),
        What::Decode(args) => decode::main(args),
        What::Batch(args) => batch::main(args),
        What::Sweep(args) => sweep::main(args),
        What::Kernel(args) => kernel::main(args),
        What::Serve(args) => serve::main(args),
        What::Speculate(args) => speculate::main(args),
        What::Attention(args) => attention::main(args),
    }
}
