//! Matrices whose bytes one function makes are packed once, and copied on the card.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tessera_formats::{Bytes, DType};
use tessera_ops::{Batch, Device, Linear, MatrixSource, Role};

const ROWS: usize = 80;
const DEPTH: usize = 64;

#[test]
fn what_is_made_alike_is_packed_once() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let numbers = |count: usize| (0..count).map(|i| (i * 7 % 64) as f32 / 32.0 - 1.0);
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let unread = Bytes::produced(ROWS * DEPTH * 2, move || {
        counted.fetch_add(1, Ordering::Relaxed);
        numbers(ROWS * DEPTH).flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect()
    });
    let source = |bytes: &Bytes| MatrixSource {
        name: "w".to_owned(),
        dtype: DType::F16,
        rows: ROWS,
        depth: DEPTH,
        bytes: bytes.clone(),
    };
    let bytes = numbers(DEPTH).flat_map(f32::to_le_bytes).collect::<Vec<_>>().into();
    let table = MatrixSource { name: "a row".to_owned(), dtype: DType::F32, rows: 1, depth: DEPTH, bytes };
    let table = card.load_embedding(&table).unwrap();
    let mut batch = Batch::default();
    batch.push(&[0], 0, &[0], Role::Decode, 0);
    let x = card.embed(&table, &batch, 1.0);
    let product = |linear: &Linear<_>| {
        let [y] = card.project(&x, [linear]);
        let mut values = vec![];
        card.read(&y, &mut values).unwrap();
        values
    };
    let load = |bytes: &Bytes| Linear { matrix: card.load_matrix(&source(bytes)).unwrap(), bias: None };

    let first = load(&unread);
    assert_eq!(made.load(Ordering::Relaxed), 1);
    let second = load(&unread);
    assert_eq!(made.load(Ordering::Relaxed), 1, "the second is a copy");
    let expected = product(&first);
    assert_eq!(product(&second), expected);
    assert!(expected.iter().any(|v| *v != 0.0));
    // Each has memory of its own.
    drop(first);
    assert_eq!(product(&second), expected);
    // Of none that is left there is no copy.
    let third = load(&unread);
    assert_eq!((made.load(Ordering::Relaxed), product(&third)), (1, expected.clone()));
    drop((second, third));
    assert_eq!((product(&load(&unread)), made.load(Ordering::Relaxed)), (expected, 2));
}
