//! Models that nobody trained: any supported architecture at any size, with random weights, for benchmarks and tests.
//!
//! A model is described by a line such as `synth:llama,layers=4,width=512,format=Q4_K,head=Q8_0,seed=7`. What the line
//! leaves out has a default ([`Spec`]). From it follow the tensors, the metadata and a tokenizer, and from seed and
//! name of a tensor (within its layer, where layers are to be alike) every one of its bits: whichever thread makes it,
//! in whatever order, in memory or in a file.
//!
//! Weights are random blocks (see [`tessera_formats::codec::random`]), not rounded numbers, because only that works
//! for formats without an encoder and is fast enough for large models. They have mean zero and the deviation
//! `depth^-½`, so that a projection of numbers of size one gives numbers of size one: nothing grows or fades but by
//! the residual sums, whatever the number of layers. Norms have weights around one (but see [`tensors`] for the last).
//!
//! In memory ([`checkpoint`]) a tensor exists only while someone reads it: it is made when a device packs it, and
//! goes when that is done. So a model takes what its packed weights take, and opening one takes nothing.

mod error;
mod families;
mod metadata;
mod spec;
mod tensors;

use std::{collections::HashMap, io::Write, path::Path, thread};

pub use error::SynthError;
pub use families::architectures;
pub use spec::{PREFIX, Spec};

use tessera_formats::{Bytes, Gguf, GgufWriter, Tensor, codec::random};

use crate::{Checkpoint, Error, weights::Progress};
use tensors::Planned;

/// Bytes of a tensor that are written to a file at a time.
const SLAB_BYTES: usize = 32 << 20;
/// Bytes that are worth a thread of their own.
const THREAD_BYTES: usize = 1 << 20;

/// The model as a checkpoint in memory. Tensors are made by `threads` threads when they are read.
///
/// # Errors
/// If what describes it cannot be read back.
pub fn checkpoint(spec: &Spec, threads: usize) -> Result<Checkpoint, Error> {
    let name = spec.to_string();
    // What is the same in several layers is made by one function, so that a device can know it.
    let mut made: HashMap<_, Bytes> = HashMap::new();
    let tensors = spec.tensors().into_iter().map(|planned| {
        let (name, dtype, shape) = (planned.name.clone(), planned.dtype, planned.shape.clone());
        let bytes = made.entry((planned.key, dtype, shape.clone())).or_insert_with(|| {
            Bytes::produced(planned.bytes(), move || {
                let mut out = vec![0; planned.bytes()];
                make(&planned, 0, &mut out, threads);
                out
            })
        });
        Tensor { name, dtype, shape, bytes: bytes.clone() }
    });
    let gguf = Gguf::from_parts(&name, metadata::all(spec), tensors.collect())?;
    Ok(Checkpoint::from_gguf(&name, gguf))
}

/// Writes the model as a GGUF file, by `threads` threads, and tells `report` of its progress. A file at `path` is
/// replaced once the new one is whole.
///
/// # Errors
/// If a format has no place in GGUF, or the file cannot be written.
pub fn write(spec: &Spec, path: &Path, threads: usize, report: &mut dyn FnMut(Progress)) -> Result<(), Error> {
    let tensors = spec.tensors();
    if let Some(planned) = tensors.iter().find(|t| t.dtype.ggml_id().is_none()) {
        return Err(SynthError::NoGguf { format: planned.dtype.name() }.into());
    }
    let mut writer = GgufWriter::new();
    for (key, value) in metadata::all(spec) {
        writer = writer.set(key, value);
    }
    let bytes_total = tensors.iter().map(|t| t.bytes() as u64).sum();
    // Tensors are written one after another, and each of them reports.
    let shared = std::cell::RefCell::new((Progress { bytes_done: 0, bytes_total }, report));
    for planned in &tensors {
        let shared = &shared;
        writer = writer.produced_tensor(&planned.name, planned.dtype, &*planned.shape, move |out| {
            let (progress, report) = &mut *shared.borrow_mut();
            write_tensor(planned, out, threads, &mut |bytes| {
                progress.bytes_done += bytes as u64;
                report(*progress);
            })
        });
    }
    Ok(writer.write_file(path)?)
}

fn write_tensor(
    planned: &Planned,
    out: &mut dyn Write,
    threads: usize,
    done: &mut dyn FnMut(usize),
) -> std::io::Result<()> {
    let block = planned.dtype.block_bytes();
    let slab_blocks = SLAB_BYTES / block;
    let blocks = planned.bytes() / block;
    let mut slab = vec![0; planned.bytes().min(slab_blocks * block)];
    for first in (0..blocks).step_by(slab_blocks) {
        let slab = &mut slab[..slab_blocks.min(blocks - first) * block];
        make(planned, first, slab, threads);
        out.write_all(slab)?;
        done(slab.len());
    }
    Ok(())
}

/// Fills `out` with the blocks of a tensor from `first_block` on, shared out to at most `threads` threads.
fn make(planned: &Planned, first_block: usize, out: &mut [u8], threads: usize) {
    let block = planned.dtype.block_bytes();
    let blocks = planned.is_random().then(|| random::RandomBlocks::new(planned.dtype, planned.deviation));
    let threads = threads.clamp(1, out.len() / THREAD_BYTES + 1);
    let part_blocks = (out.len() / block).div_ceil(threads).max(1);
    thread::scope(|scope| {
        let mut parts = out.chunks_mut(part_blocks * block).enumerate();
        // One part is this thread's own.
        let own = parts.next();
        let fill = |i: usize, part: &mut [u8]| {
            if let Some(blocks) = &blocks {
                blocks.fill(planned.key, (first_block + i * part_blocks) as u64, part);
            }
            planned.finish(first_block + i * part_blocks, part);
        };
        for (i, part) in parts {
            scope.spawn(move || fill(i, part));
        }
        if let Some((i, part)) = own {
            fill(i, part);
        }
    });
}

/// Refuses a checkpoint of which more is made when it is read than this machine has memory for, before the system kills the process:
/// for devices that keep weights in it.
///
/// # Errors
/// If there is not the memory, as far as can be known.
pub fn check_memory(checkpoint: &Checkpoint) -> Result<(), Error> {
    let made = checkpoint.tensors().iter().filter(|tensor| tensor.bytes.held().is_none());
    Ok(fits(made.map(|tensor| tensor.bytes.len() as u64).sum(), available_memory())?)
}

fn fits(needed: u64, available: Option<u64>) -> Result<(), SynthError> {
    match available {
        Some(available) if needed > available => Err(SynthError::Memory { needed, available }),
        _ => Ok(()),
    }
}

/// Bytes that can be taken without swapping; none where the system does not say so in a file.
fn available_memory() -> Option<u64> {
    let facts = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = facts.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_beyond_the_memory_are_refused() {
        assert!(fits(1 << 30, Some(1 << 30)).is_ok() && fits(1 << 30, None).is_ok());
        let error = fits((1 << 30) + 1, Some(1 << 30)).unwrap_err().to_string();
        assert!(error.contains("memory") && error.contains("layers"), "{error}");
        for line in ["synth:llama,layers=2", "synth:llama,layers=100,width=16384"] {
            let spec = Spec::parse(line).unwrap();
            let has_room = available_memory().is_none_or(|available| spec.weight_bytes() <= available);
            assert_eq!(check_memory(&checkpoint(&spec, 1).unwrap()).is_ok(), has_room, "{line}");
        }
    }

    #[test]
    fn slabs_and_threads_do_not_show() {
        let spec = Spec::parse("synth:llama,layers=1,width=2048,vocabulary=1100,format=Q4_0,head=F32").unwrap();
        for planned in spec.tensors() {
            let mut whole = vec![0; planned.bytes()];
            make(&planned, 0, &mut whole, 1);
            let mut shared = vec![0; planned.bytes()];
            make(&planned, 0, &mut shared, 3);
            assert!(whole == shared, "{}", planned.name);
            let block = planned.dtype.block_bytes();
            let (mut a, mut b) = (whole[..7 * block].to_vec(), whole[7 * block..].to_vec());
            a.fill(0);
            b.fill(0);
            make(&planned, 0, &mut a, 2);
            make(&planned, 7, &mut b, 2);
            assert!(whole == [a, b].concat(), "{}", planned.name);
        }
    }
}
