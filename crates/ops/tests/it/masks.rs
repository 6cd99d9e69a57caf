//! Masks: a draft of a tree is what it is in a line, and a ring is what the whole cache is.

use std::ops::Range;

use tessera_ops::reference::{ReferenceDevice, float64::Float64Device};
use tessera_ops::{Attention, Batch, Device, KvFormat, KvLayout, Role, kv::KvLayer, mask::ring_rows_max};

use crate::support::{Random, bits, close, read, tensor};

fn numbers(rows: usize, width: usize, seed: u64) -> Vec<f32> {
    Random(seed).values(rows * width)
}

/// Steps over one layer, whose rows are named by ids: an id's query, key and value are the same wherever it stands.
struct Script {
    spec: Attention,
    sinks: Option<Vec<f32>>,
    format: KvFormat,
    ring_pages: Option<usize>,
    is_single: bool,
    pages: usize,
    steps: Vec<(Batch, Vec<usize>)>,
}

impl Script {
    fn new((heads, kv_heads, head_dim): (usize, usize, usize), format: KvFormat, pages: usize) -> Script {
        let scale = 2.0 / (head_dim as f32).sqrt();
        let spec = Attention { layer: 1, heads, kv_heads, head_dim, scale, window: None, soft_cap: None };
        Script { spec, sinks: None, format, ring_pages: None, is_single: false, pages, steps: vec![] }
    }

    /// `count` rows of one sequence from `start` on, at most `chunk` a step; their ids are their positions and `first_id`.
    fn line(&mut self, first_id: usize, range: Range<usize>, chunk: usize, table: &[u32]) {
        for start in range.clone().step_by(chunk) {
            let rows = chunk.min(range.end - start);
            let mut batch = Batch::default();
            batch.push(&vec![0; rows], start, table, Role::Prefill, 0);
            self.steps.push((batch, (first_id + start..first_id + start + rows).collect()));
        }
    }

    /// The outputs of all rows of the steps from `from` on, in order.
    fn run<D: Device>(&self, device: &D, from: usize) -> Vec<f32> {
        let Attention { heads, kv_heads, head_dim, layer, .. } = self.spec;
        let entry = KvLayer { heads: kv_heads, head_dim, ring_pages: self.ring_pages };
        let layers = vec![KvLayer::new(1, 3), entry];
        let layout = KvLayout { layers, format: self.format, is_single: self.is_single };
        let mut cache = device.kv_cache(&layout, self.pages).unwrap();
        let sinks = self.sinks.as_ref().map(|s| device.load_vector(s).unwrap());
        let ids = 1 + self.steps.iter().flat_map(|s| &s.1).max().unwrap();
        let mut out = vec![];
        for (index, (batch, rows)) in self.steps.iter().enumerate() {
            let part = |width: usize, seed: u64| {
                let all = numbers(ids, width, seed);
                let picked: Vec<f32> = rows.iter().flat_map(|id| all[id * width..][..width].to_vec()).collect();
                tensor(device, rows.len(), width, &picked)
            };
            let (keys, values) = (part(kv_heads * head_dim, 1), part(kv_heads * head_dim, 2));
            device.store_kv(&mut cache, layer, &keys, &values, batch);
            let y = device.attention(&part(heads * head_dim, 3), &cache, &self.spec, sinks.as_ref(), batch);
            if index >= from {
                out.extend(read(device, &y));
            }
        }
        out
    }
}

/// Drafts that branch: a root, three children, a grandchild of each of the first two, and one more behind the first.
const TREE: [Option<u32>; 7] = [None, Some(0), Some(0), Some(0), Some(2), Some(1), Some(5)];

/// The drafts from the root to one of them.
fn path(to: usize) -> Vec<usize> {
    let mut path: Vec<usize> = std::iter::successors(Some(to), |d| TREE[*d].map(|p| p as usize)).collect();
    path.reverse();
    path
}

/// A sequence of `prefix` committed tokens and a step of the tree, beside another sequence where there is to be one.
fn tree(script: &mut Script, prefix: usize, beside: bool) {
    let table = [4, 1, 3, 0];
    script.line(0, 0..prefix, prefix, &table);
    let mut batch = Batch::default();
    let mut ids = vec![];
    if beside {
        batch.push(&[0; 5], 0, &[2], Role::Prefill, 0);
        ids.extend(prefix + TREE.len()..prefix + TREE.len() + 5);
    }
    batch.push_tree(&[0; TREE.len()], &TREE, prefix, &table, Role::Decode, 0);
    ids.extend(prefix..prefix + TREE.len());
    script.steps.push((batch, ids));
}

/// The same sequence, whose drafts are a path alone.
fn line_of(script: &mut Script, prefix: usize, to: usize) {
    script.line(0, 0..prefix, prefix, &[4, 1, 3, 0]);
    let path = path(to);
    let mut batch = Batch::default();
    batch.push(&vec![0; path.len()], prefix, &[4, 1, 3, 0], Role::Decode, 0);
    script.steps.push((batch, path.into_iter().map(|draft| prefix + draft).collect()));
}

/// Every kind of window, cap, sink and format, with a shape of heads and a length around the end of a page.
fn kinds() -> impl Iterator<Item = (Script, usize)> {
    let windows = [(None, None, false), (Some(40), None, true), (Some(3), Some(3.0), false), (Some(70), None, false)];
    let shapes = [(4, 2, 24), (3, 1, 64), (2, 1, 80), (1, 1, 256)];
    let prefixes = [1, 60, 63, 64, 65, 126];
    windows.into_iter().enumerate().flat_map(move |(i, (window, soft_cap, has_sinks))| {
        prefixes.into_iter().enumerate().map(move |(j, prefix)| {
            let mut script = Script::new(shapes[(i + j) % shapes.len()], KvFormat::ALL[(i + j) % 3], 5);
            (script.spec.window, script.spec.soft_cap) = (window, soft_cap);
            script.sinks = has_sinks.then(|| numbers(1, script.spec.heads, 4));
            (script, prefix)
        })
    })
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
