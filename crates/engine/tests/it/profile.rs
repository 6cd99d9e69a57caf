//! A measured device changes no bit, and what it writes down is what the model computes.

use std::{collections::BTreeMap, num::NonZero, sync::Arc};

use tessera_cpu::CpuDevice;
use tessera_engine::{LoadOptions, Session, models, profile, synth};
use tessera_ops::{Device, Profiled, profile::Entry};

const LAYERS: usize = 3;
const TOKENS: usize = 70;

fn cpu() -> CpuDevice {
    CpuDevice::new(NonZero::new(2), None).unwrap()
}

fn session<D: Device>(device: Arc<D>, architecture: &str) -> Session {
    let sizes = "width=256,heads=4,kv_heads=2,head_dim=64,feed_forward=512,vocabulary=300,format=Q8_0";
    let line = format!("{architecture},layers={LAYERS},{sizes}");
    let checkpoint = synth::checkpoint(&line.parse().unwrap(), 1).unwrap();
    Session::new(models::load(&checkpoint, device, &LoadOptions::default(), &mut |_| {}).unwrap(), 512)
}

/// Entries of a prompt; the logits are compared with those of the plain device.
fn entries(architecture: &str) -> Vec<Entry> {
    let device = Arc::new(Profiled::new(cpu(), profile::label));
    let (mut plain, mut measured) = (session(Arc::new(cpu()), architecture), session(device.clone(), architecture));
    let tokens: Vec<u32> = (0..TOKENS as u32).collect();
    plain.prefill(&tokens).unwrap();
    measured.prefill(&tokens).unwrap();
    assert!(device.take().unwrap().len() > 10 * LAYERS);
    // A second step, of one token.
    plain.decode(7).unwrap();
    measured.decode(7).unwrap();
    let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
    assert!(bits(plain.logits()) == bits(measured.logits()), "{architecture}");
    let decoded = device.take().unwrap();
    assert!(device.take().unwrap().is_empty());
    measured.rewind(0);
    measured.prefill(&tokens).unwrap();
    let prefilled = device.take().unwrap();
    assert_eq!(prefilled.len(), decoded.len(), "a prompt and a token take the same course");
    prefilled
}

#[test]
fn every_op_is_written_down_with_its_layer() {
    for (architecture, norms) in [("llama", 2), ("qwen2", 2), ("qwen3", 4), ("gemma3", 6)] {
        let mut counts = BTreeMap::new();
        for entry in entries(architecture) {
            *counts.entry((entry.label.layer, entry.label.stage)).or_insert(0) += 1;
        }
        for layer in (0..LAYERS).map(Some) {
            let stages = [
                ("norm", norms),
                ("q/k/v", 1),
                ("rope", 2),
                ("store k/v", 1),
                ("attention", 1),
                ("output", 1),
                ("gate/up", 1),
                ("gate", 1),
                ("down", 1),
                ("residual", 2),
            ];
            for (stage, count) in stages {
                assert_eq!(counts.remove(&(layer, stage)), Some(count), "{architecture}: {stage} of {layer:?}");
            }
        }
        let ropes = if architecture == "gemma3" { 2 } else { 1 };
        let rest = [("embed", 1), ("head", 2), ("norm", 1), ("read", 1), ("rope", ropes)];
        assert_eq!(counts, rest.into_iter().map(|(stage, count)| ((None, stage), count)).collect(), "{architecture}");
    }
}

#[test]
fn operations_and_bytes_are_those_of_the_shapes() {
    let mut found = BTreeMap::new();
    for entry in entries("llama").into_iter().filter(|e| e.label.layer == Some(1)) {
        let (bytes, operations) = found.entry(entry.label.stage).or_insert((0, 0));
        *bytes += entry.bytes;
        *operations += entry.operations;
    }
    let matrix = |rows: usize, depth: usize| {
        // 34 bytes for 32 weights.
        let bytes = rows * depth / 32 * 34 + TOKENS * rows * 4;
        (bytes, 2 * TOKENS * rows * depth)
    };
    let projections = |input: usize, shapes: &[(usize, usize)]| {
        let each = shapes.iter().map(|(rows, depth)| matrix(*rows, *depth));
        let (bytes, operations) = each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        Some(((bytes + TOKENS * input * 4) as u64, operations as u64))
    };
    assert_eq!(found.remove("q/k/v"), projections(256, &[(256, 256), (128, 256), (128, 256)]));
    assert_eq!(found.remove("output"), projections(256, &[(256, 256)]));
    assert_eq!(found.remove("gate/up"), projections(256, &[(512, 256), (512, 256)]));
    assert_eq!(found.remove("down"), projections(512, &[(256, 512)]));
    // Each row sees itself and all before it; keys and values are two bytes each, queries and results four.
    let (pairs, row) = (TOKENS * (TOKENS + 1) / 2, 4 * 64);
    let bytes = TOKENS * 2 * 64 * 2 * 2 + 2 * TOKENS * row * 4;
    assert_eq!(found.remove("attention"), Some((bytes as u64, (4 * pairs * row) as u64)));
    assert_eq!(found.remove("store k/v"), Some(((TOKENS * 2 * 64 * 2 * (4 + 2)) as u64, 0)));
    assert_eq!(found.remove("norm"), Some((2 * (2 * TOKENS * 256 + 256) as u64 * 4, 0)));
}
