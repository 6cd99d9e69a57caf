//! A step that comes again is sent as graphs.

use tessera_formats::DType;
use tessera_ops::{Batch, Device, MatrixSource, Role};

const WIDTH: usize = 64;

/// The memory of a step's results comes back in any order. If the next step had it in that order, its launches would differ from those
/// before, and be sent one by one, which the host is too slow for.
#[test]
fn memory_given_back_in_any_order_makes_the_same_step() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let numbers = |count: usize| (0..count).map(|i| (i * 7 % 64) as f32 / 32.0 - 1.0).collect::<Vec<_>>();
    let bytes: Vec<u8> = numbers(WIDTH).into_iter().flat_map(f32::to_le_bytes).collect();
    let table =
        MatrixSource { name: "a row".to_owned(), dtype: DType::F32, rows: 1, depth: WIDTH, bytes: bytes.into() };
    let table = card.load_embedding(&table).unwrap();
    let weights = card.load_vector(&numbers(WIDTH)).unwrap();
    let mut batch = Batch::default();
    batch.push(&[0], 0, &[0], Role::Decode, 0);
    let x = card.embed(&table, &batch, 1.0);
    card.wait().unwrap();
    let step = || {
        let mut results: Vec<_> = (0..8).map(|_| card.rms_norm(&x, &weights, 1e-6)).collect();
        // Given back in this order, and given out again the last first, seven steps would pass before one came again.
        for place in [2, 0, 0, 1, 1, 1, 1, 0] {
            results.remove(place);
        }
        let before = card.counts().graphs;
        card.wait().unwrap();
        card.counts().graphs - before
    };
    // The first is not known, the second makes the graph.
    assert_eq!([step(), step(), step(), step()], [0, 1, 1, 1]);
}
