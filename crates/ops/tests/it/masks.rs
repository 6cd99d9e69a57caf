//! Masks: a draft of a tree is what it is in a line, and a ring is what the whole cache is.

#[path = "scripts.rs"]
mod scripts;

use tessera_ops::reference::{ReferenceDevice, float64::Float64Device};
use tessera_ops::{Batch, Device, KvFormat, KvLayout, Role, kv::KvLayer, mask::ring_rows_max};

use crate::support::{Random, bits, close, read, tensor};
use scripts::{Script, TREE, kinds, tree};

fn numbers(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    Random(seed).values(rows * width)
}

/// The drafts from the root to one of them.
fn path(to: usize) -> Vec<usize> {
    let mut path: Vec<usize> = std::iter::successors(Some(to), |d| TREE[*d].map(|p| p as usize)).collect();
    path.reverse();
    path
}

/// The same sequence, whose drafts are a path alone.
fn line_of(script: &mut Script, prefix: usize, to: usize) {
    script.line(0, 0..prefix, prefix, &[4, 1, 3, 0]);
    let path = path(to);
    let mut batch = Batch::default();
    batch.push(&vec![0; path.len()], prefix, &[4, 1, 3, 0], Role::Decode, 0);
    script.steps.push((batch, path.into_iter().map(|draft| prefix + draft).collect()));
}

#[test]
fn a_draft_of_a_tree_has_the_bits_of_its_path_alone() {
    for (i, (mut script, prefix)) in kinds().enumerate() {
        tree(&mut script, prefix, i % 2 == 0);
        let width = script.spec.heads * script.spec.head_dim;
        let others = if i % 2 == 0 { 5 * width } else { 0 };
        let got = script.run(&ReferenceDevice, 1)[others..].to_vec();
        for to in [3, 4, 6] {
            script.steps.clear();
            line_of(&mut script, prefix, to);
            let line = script.run(&ReferenceDevice, 1);
            for (i, draft) in path(to).into_iter().enumerate() {
                let (got, want) = (&got[draft * width..][..width], &line[i * width..][..width]);
                assert_eq!(bits(got), bits(want), "draft {draft} of {prefix} tokens, {:?}", script.spec);
            }
        }
    }
}

#[test]
fn trees_are_close_to_the_truth() {
    for (mut script, prefix) in kinds().step_by(5) {
        script.format = KvFormat::F32;
        tree(&mut script, prefix, true);
        let (got, want) = (script.run(&ReferenceDevice, 0), script.run(&Float64Device, 0));
        close(&got, &want, 5e-6, &format!("{prefix} tokens, {:?}", script.spec));
    }
}

#[test]
fn a_ring_gives_what_the_whole_cache_gives() {
    for (window, ring, tokens) in [(1, 1, 150), (64, 2, 200), (70, 2, 300), (100, 3, 300)] {
        let table = [0, 1, 2, 3, 4];
        let mut whole = Script::new((4, 2, 24), KvFormat::F16, 5);
        whole.spec.window = Some(window);
        whole.line(0, 0..tokens, tokens, &table);
        let want = bits(&whole.run(&ReferenceDevice, 0));
        for chunk in [1, 17, ring_rows_max(window, ring)] {
            let mut script = Script { ring_pages: Some(ring), is_single: true, steps: vec![], ..whole };
            script.line(0, 0..tokens, chunk, &table);
            assert_eq!(bits(&script.run(&ReferenceDevice, 0)), want, "window {window}, chunks of {chunk}");
            let wide = ring_rows_max(window, ring) + 1;
            script.steps.clear();
            script.line(0, 0..wide, wide, &table);
            let refused = || script.run(&ReferenceDevice, 0);
            assert!(std::panic::catch_unwind(refused).is_err(), "{wide} rows");
            whole = Script { ring_pages: None, is_single: false, ..script };
        }
    }
}

#[test]
fn pages_that_a_ring_has_not_are_zeros() {
    let device = ReferenceDevice;
    let layers = vec![KvLayer { heads: 1, head_dim: 2, ring_pages: Some(2) }, KvLayer::new(1, 2)];
    let layout = KvLayout { layers, format: KvFormat::F16, is_single: true };
    assert_eq!(layout.cache_bytes(5), (2 + 5) * 2 * 64 * 2 * 2);
    assert_eq!(layout.cache_bytes(1), 2 * 2 * 64 * 2 * 2);
    let mut cache = device.kv_cache(&layout, 5).unwrap();
    let (mut in_ring, mut behind) = (vec![], vec![]);
    device.read_page(&cache, 1, &mut in_ring).unwrap();
    device.read_page(&cache, 2, &mut behind).unwrap();
    assert_eq!(in_ring.len(), behind.len());
    assert!(behind[..behind.len() / 2].iter().all(|b| *b == 0), "the ring has two pages");
    device.write_page(&mut cache, 4, &in_ring).unwrap();
    device.write_page(&mut cache, 0, &behind).unwrap();
    let (mut fourth, mut first) = (vec![], vec![]);
    device.read_page(&cache, 4, &mut fourth).unwrap();
    device.read_page(&cache, 0, &mut first).unwrap();
    assert_eq!(fourth[in_ring.len() / 2..], in_ring[in_ring.len() / 2..]);
    assert_eq!(first, behind);
}
