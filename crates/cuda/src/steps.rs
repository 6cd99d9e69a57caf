//! What kernels know of a step: positions, page tables, and where the rows of a tree are kept. Sent once a step.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use tessera_ops::Batch;

use crate::driver::{Gpu, Memory};

/// Numbers of a row: position, start of its page table, committed tokens, start of its places, the rows that can be taken together
/// with it, from and to, and its ring.
const ROW_NUMBERS: usize = 7;

/// A step on the card: `rows` (rows, 7), and `lists` that they point into.
pub(crate) struct Step {
    batch: Batch,
    pub(crate) rows: Memory,
    pub(crate) lists: Memory,
    /// The rows whose logits are wanted.
    pub(crate) logit_rows: Memory,
}

/// The last step that was sent: the ops of a step come one after another.
#[derive(Default)]
pub(crate) struct Steps(Mutex<Option<Arc<Step>>>);

impl Steps {
    /// The step on the card.
    pub(crate) fn get(&self, gpu: &Arc<Gpu>, batch: &Batch) -> Arc<Step> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(step) = last.as_ref().filter(|s| is_same(&s.batch, batch)) {
            return step.clone();
        }
        let (rows, lists) = numbers(batch);
        let send = |numbers: &[u32]| {
            let memory = gpu.take(size_of_val(numbers));
            gpu.send(&memory, numbers);
            memory
        };
        let step =
            Step { batch: batch.clone(), rows: send(&rows), lists: send(&lists), logit_rows: send(&batch.logit_rows) };
        last.insert(Arc::new(step)).clone()
    }
}

/// Whether kernels see the same; tokens and roles are nothing to them.
fn is_same(a: &Batch, b: &Batch) -> bool {
    let Batch { tokens: _, positions, sequences, roles: _, parents, page_tables, rings, logit_rows } = a;
    (positions, sequences, parents, page_tables, rings, logit_rows)
        == (&b.positions, &b.sequences, &b.parents, &b.page_tables, &b.rings, &b.logit_rows)
}

/// Rows and lists, as `kernels/attention/step.cuh` reads them.
fn numbers(batch: &Batch) -> (Vec<u32>, Vec<u32>) {
    let (mut lists, mut tables) = (vec![], vec![]);
    for table in &batch.page_tables {
        tables.push(lists.len() as u32);
        lists.extend_from_slice(table);
    }
    let mut rows = Vec::with_capacity(batch.len() * ROW_NUMBERS);
    let mut run = 0..0;
    for row in 0..batch.len() {
        let position = batch.positions[row];
        // Where nothing branches, each position is its own place.
        let is_tree = batch.is_tree(row);
        let committed = if is_tree { batch.committed(row) as u32 } else { u32::MAX };
        // Rows of a long run share it: to look for its ends at each of them would take as long as the run, as often.
        if is_tree || !run.contains(&row) {
            run = run_of(batch, row);
        }
        let table = tables[batch.sequences[row] as usize];
        let ring = batch.rings[batch.sequences[row] as usize];
        rows.extend([position, table, committed, lists.len() as u32, run.start as u32, run.end as u32, ring]);
        lists.extend((committed..=position).map(|p| batch.place(row, p as usize) as u32));
    }
    (rows, lists)
}

/// The rows that can be taken together with a row, itself among them.
pub(crate) fn run_of(batch: &Batch, row: usize) -> Range<usize> {
    if batch.is_tree(row) { row..row + 1 } else { batch.rows_of_sequence(row) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_ops::{PAGE_TOKENS, Role};

    use super::*;

    /// What `Step` of step.cuh computes.
    fn place(rows: &[u32], lists: &[u32], row: usize, position: u32, ring_pages: u32) -> (u32, u32) {
        let [_, table, committed, places, _, _, ring] = rows[row * ROW_NUMBERS..][..ROW_NUMBERS] else {
            panic!("seven numbers")
        };
        let place = if position < committed { position } else { lists[(places + position - committed) as usize] };
        let index = place / PAGE_TOKENS as u32;
        let page = match ring_pages {
            0 => lists[(table + index) as usize],
            pages => ring * pages + index % pages,
        };
        (page, place % PAGE_TOKENS as u32)
    }

    proptest! {
        #[test]
        fn rows_find_what_they_see(
            start in 0usize..200,
            parents in prop::collection::vec(0usize..6, 1..12),
            before in 1usize..9,
            ring_pages in 0u32..4,
        ) {
            let mut batch = Batch::default();
            batch.push(&vec![0; before], 7, &[3, 9], Role::Prefill, 1);
            batch.in_ring(5);
            let parents: Vec<Option<u32>> =
                parents.iter().enumerate().map(|(i, p)| (*p < i).then(|| (i - 1 - p) as u32)).collect();
            batch.push_tree(&vec![1; parents.len()], &parents, start, &[5, 1, 0, 8, 2, 4], Role::Decode, 0);
            let (rows, lists) = numbers(&batch);
            for row in 0..batch.len() {
                for position in 0..=batch.positions[row] {
                    let ring = (ring_pages > 0).then_some(ring_pages as usize);
                    let (page, slot) = batch.slot(row, position as usize, ring);
                    prop_assert_eq!(place(&rows, &lists, row, position, ring_pages), (page, slot as u32));
                }
            }
        }
    }
}
