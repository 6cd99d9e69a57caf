//! Steps of attention written down, to be run on any device: lines, trees, rings. The tests of other devices use them too;
//! whoever does gives `numbers`, `tensor` and `read`.

use std::ops::Range;

use tessera_ops::{Attention, Batch, Device, KvEntry, KvFormat, KvLayout, Role};

use super::{numbers, read, tensor};

/// Rings of a cache: lines have the last.
const RINGS: usize = 3;

/// Steps over one layer, whose rows are named by ids: an id's query, key and value are the same wherever it stands.
pub(super) struct Script {
    pub(super) spec: Attention,
    pub(super) sinks: Option<Vec<f32>>,
    pub(super) format: KvFormat,
    pub(super) ring_pages: Option<usize>,
    pub(super) pages: usize,
    pub(super) steps: Vec<(Batch, Vec<usize>)>,
}

impl Script {
    pub(super) fn new((heads, kv_heads, head_dim): (usize, usize, usize), format: KvFormat, pages: usize) -> Script {
        let scale = 2.0 / (head_dim as f32).sqrt();
        let spec = Attention { layer: 1, heads, kv_heads, head_dim, scale, window: None, soft_cap: None };
        Script { spec, sinks: None, format, ring_pages: None, pages, steps: vec![] }
    }

    /// `count` rows of one sequence from `start` on, at most `chunk` a step; their ids are their positions and `first_id`.
    pub(super) fn line(&mut self, first_id: usize, range: Range<usize>, chunk: usize, table: &[u32]) {
        for start in range.clone().step_by(chunk) {
            let rows = chunk.min(range.end - start);
            let mut batch = Batch::default();
            batch.push(&vec![0; rows], start, table, Role::Prefill, 0);
            batch.in_ring(RINGS as u32 - 1);
            self.steps.push((batch, (first_id + start..first_id + start + rows).collect()));
        }
    }

    /// The outputs of all rows of the steps from `from` on, in order.
    pub(super) fn run<D: Device>(&self, device: &D, from: usize) -> Vec<f32> {
        let Attention { heads, kv_heads, head_dim, layer, .. } = self.spec;
        let entry = KvEntry::pairs(kv_heads, head_dim).in_ring(self.ring_pages);
        let layers = vec![KvEntry::pairs(1, 3), entry];
        let layout = KvLayout::new(layers, self.format);
        let mut cache = device.kv_cache(&layout, self.pages, RINGS).unwrap();
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
pub(super) const TREE: [Option<u32>; 7] = [None, Some(0), Some(0), Some(0), Some(2), Some(1), Some(5)];

/// A sequence of `prefix` committed tokens and a step of the tree, beside another sequence where there is to be one.
pub(super) fn tree(script: &mut Script, prefix: usize, beside: bool) {
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

/// Every kind of window, cap, sink and format, with a shape of heads and a length around the end of a page.
pub(super) fn kinds() -> impl Iterator<Item = (Script, usize)> {
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
