//! Masks: a draft of a tree is what it is in a line, and a ring is what the whole cache is.

#[path = "scripts.rs"]
mod scripts;

use tessera_ops::reference::{ReferenceDevice, float64::Float64Device};
use tessera_ops::{Batch, Device, KvEntry, KvFormat, KvLayout, RingPart, Role, mask::ring_rows_max};

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
            let mut script = Script { ring_pages: Some(ring), steps: vec![], ..whole };
            script.line(0, 0..tokens, chunk, &table);
            assert_eq!(bits(&script.run(&ReferenceDevice, 0)), want, "window {window}, chunks of {chunk}");
            let wide = ring_rows_max(window, ring) + 1;
            script.steps.clear();
            script.line(0, 0..wide, wide, &table);
            let refused = || script.run(&ReferenceDevice, 0);
            assert!(std::panic::catch_unwind(refused).is_err(), "{wide} rows");
            whole = Script { ring_pages: None, ..script };
        }
    }
}

/// Two sequences with rings and pages of their own, which are then exchanged.
#[test]
fn rings_and_pages_are_copied_apart() {
    let device = ReferenceDevice;
    let entries = vec![
        KvEntry::pairs(1, 2).in_ring(Some(2)),
        KvEntry::pairs(1, 2),
        KvEntry::latent(3, Some(1)),
        KvEntry::Inputs { width: 5, ring_pages: 1 },
    ];
    let layout = KvLayout::new(entries, KvFormat::F32);
    assert_eq!(layout.page_bytes(), 2 * 64 * 2 * 4);
    assert_eq!(layout.ring_bytes(), 2 * layout.page_bytes() + 64 * 8 * 4);
    let mut cache = device.kv_cache(&layout, 2, 2).unwrap();
    for sequence in 0..2 {
        let mut batch = Batch::default();
        batch.push(&[0; 64], 64, &[9, sequence], Role::Prefill, 0);
        batch.in_ring(1 - sequence);
        let rows =
            |width: usize| tensor(&device, 64, width, &numbers(64, width, 7 * width as u64 + u64::from(sequence)));
        for layer in 0..2 {
            device.store_kv(&mut cache, layer, &rows(2), &rows(2), &batch);
        }
        device.store_rows(&mut cache, 2, &rows(3), &batch);
        device.store_rows(&mut cache, 3, &rows(5), &batch);
    }
    let copies = |cache: &_| {
        let copy = |index: u32| {
            let (mut page, mut ring) = (vec![], vec![]);
            device.read_page(cache, index, &mut page).unwrap();
            device.read_ring(cache, index, RingPart::Whole, &mut ring).unwrap();
            (page, ring)
        };
        [copy(0), copy(1)]
    };
    let before = copies(&cache);
    assert_eq!((before[0].0.len(), before[0].1.len()), (layout.page_bytes(), layout.ring_bytes()));
    assert!(before[0].0 != before[1].0 && before[0].1 != before[1].1);
    for (index, (page, ring)) in before.iter().rev().enumerate() {
        device.write_page(&mut cache, index as u32, page).unwrap();
        device.write_ring(&mut cache, index as u32, RingPart::Whole, ring).unwrap();
    }
    let [first, second] = copies(&cache);
    assert_eq!([second, first], before);
    assert!(device.write_ring(&mut cache, 0, RingPart::Whole, &before[0].0).is_err());
    assert!(device.write_page(&mut cache, 0, &before[0].1).is_err());
}
