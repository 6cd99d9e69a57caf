//! Every way of attention gives the reference's bits: forced for all shapes, with rings and trees.

#[path = "../../../ops/tests/it/scripts.rs"]
mod scripts;

use std::num::NonZero;

use tessera_cpu::{
    CpuDevice,
    attention::select::Way,
    isa::Isa,
    matmul::{Kernels, Overrides},
};
use tessera_ops::{
    Batch, Device, KvEntry, KvFormat, KvLayout, RingPart, Role, mask::ring_rows_max, reference::ReferenceDevice,
};

use crate::{
    tensors::{read, same, tensor},
    weights::activations,
};
use scripts::{Script, kinds, tree};

fn numbers(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    activations(rows, width, seed)
}

/// Each way on each instruction set, with poisoned memory.
fn devices(threads: usize) -> Vec<CpuDevice> {
    let of = |isa: Isa, way: Way| {
        let overrides = Overrides { attention: Some(way), ..Overrides::default() };
        CpuDevice::under_audit(NonZero::new(threads), Kernels { overrides, ..Kernels::new(isa) })
    };
    Isa::available().into_iter().flat_map(|isa| Way::ALL.map(|way| of(isa, way))).collect()
}

#[track_caller]
fn check(script: &Script, want: &[f32], threads: usize, what: &str) {
    for device in devices(threads) {
        same(&script.run(&device, 0), want, &format!("{what}, {:?}, {}", script.spec, device.name()));
    }
}

#[test]
fn every_way_gives_the_reference_s_bits() {
    let windows = [(None, None), (Some(1), None), (Some(50), Some(3.0)), (Some(65), None), (Some(300), None)];
    for (i, shape) in [(4, 2, 64), (5, 1, 80), (8, 1, 128), (2, 1, 256), (2, 2, 512), (3, 3, 5)].into_iter().enumerate()
    {
        for (j, (window, soft_cap)) in windows.into_iter().enumerate().filter(|(j, _)| (i + j) % 4 == 0) {
            let mut script = Script::new(shape, KvFormat::ALL[(i + j) % 3], 8);
            (script.spec.window, script.spec.soft_cap) = (window, soft_cap);
            script.sinks = (i % 2 == 1).then(|| numbers(1, shape.0, 4));
            // Two sequences of different lengths in each step: tiles of four pages begin and end inside.
            let (mut batch, mut next) = (Batch::default(), Batch::default());
            batch.push(&[0; 70], 0, &[5, 6], Role::Prefill, 0);
            batch.push(&[0; 290], 0, &[7, 2, 4, 0, 1], Role::Prefill, 0);
            next.push(&[0; 2], 70, &[5, 6], Role::Decode, 0);
            next.push(&[0; 5], 290, &[7, 2, 4, 0, 1], Role::Decode, 0);
            script.steps = vec![(batch, (0..360).collect()), (next, (360..367).collect())];
            let want = script.run(&ReferenceDevice, 0);
            check(&script, &want, 1 + j % 2, "two sequences");
        }
    }
}

#[test]
fn trees_give_the_reference_s_bits() {
    for (i, (mut script, prefix)) in kinds().enumerate().filter(|(i, _)| i % 3 == 0) {
        tree(&mut script, prefix, i % 2 == 0);
        let want = script.run(&ReferenceDevice, 0);
        check(&script, &want, 1 + i % 2, &format!("a tree behind {prefix}"));
    }
}

#[test]
fn rings_give_what_the_whole_cache_gives() {
    for (i, (window, ring, tokens)) in [(1, 1, 150), (64, 2, 200), (70, 2, 300), (200, 5, 310)].into_iter().enumerate()
    {
        let mut script = Script::new((4, 2, 24), KvFormat::ALL[i % 3], 7);
        script.spec.window = Some(window);
        let table = [0, 1, 2, 3, 4, 5, 6];
        script.line(0, 0..tokens, tokens, &table);
        let want = script.run(&ReferenceDevice, 0);
        for chunk in [ring_rows_max(window, ring), 29] {
            script.ring_pages = Some(ring);
            script.steps.clear();
            script.line(0, 0..tokens, chunk, &table);
            check(&script, &want, 2, &format!("a ring of {ring} in chunks of {chunk}"));
        }
    }
}

#[test]
fn a_step_that_overwrites_what_it_sees_is_refused() {
    for (window, ring) in [(64, 2), (100, 2)] {
        for rows in [ring_rows_max(window, ring), ring_rows_max(window, ring) + 1] {
            let mut script = Script::new((2, 1, 16), KvFormat::F16, 2);
            (script.spec.window, script.ring_pages) = (Some(window), Some(ring));
            script.line(0, 0..rows, rows, &[0, 1]);
            let run = || script.run(&CpuDevice::with_kernels(NonZero::new(1), Kernels::new(Isa::best())), 0);
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            assert_eq!(ran.is_ok(), rows <= ring_rows_max(window, ring), "{rows} rows");
        }
    }
}

/// A copy of a ring goes on as the original does.
#[test]
fn rings_are_copied() {
    let device = CpuDevice::with_kernels(NonZero::new(2), Kernels::new(Isa::best()));
    for format in KvFormat::ALL {
        let entries = vec![KvEntry::pairs(2, 20).in_ring(Some(2)), KvEntry::pairs(1, 16)];
        let layout = KvLayout::new(entries, format);
        let mut cache = device.kv_cache(&layout, 4, 2).unwrap();
        let x = tensor(&device, 50, 40, &numbers(50, 40, 1));
        for start in (0..200).step_by(50) {
            let mut batch = Batch::default();
            batch.push(&[0; 50], start, &[0, 1, 2, 3], Role::Prefill, 0);
            batch.in_ring(1);
            device.store_kv(&mut cache, 0, &x, &x, &batch);
        }
        let mut copy = device.kv_cache(&layout, 1, 3).unwrap();
        let ring = |cache: &_, ring: u32| {
            let mut bytes = vec![];
            device.read_ring(cache, ring, RingPart::Whole, &mut bytes).map(|()| bytes).unwrap()
        };
        let (unused, used) = (ring(&cache, 0), ring(&cache, 1));
        assert!(used.iter().any(|b| *b != 0) && unused.iter().all(|b| *b == 0), "{format:?}");
        device.write_ring(&mut copy, 2, RingPart::Whole, &used).unwrap();
        assert_eq!((ring(&copy, 2), ring(&copy, 1)), (used, unused));
        assert!(device.write_ring(&mut copy, 0, RingPart::Whole, &[0; 7]).is_err());
    }
}
