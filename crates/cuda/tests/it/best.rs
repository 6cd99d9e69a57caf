//! The likeliest tokens, on a card or on the emulated one (`tools/emulate cargo test -p tessera-cuda`), also of rows that no sound model
//! gives.

use tessera_formats::DType;
use tessera_ops::{Batch, Device, MatrixSource, Role, ranking};

#[test]
fn the_likeliest_tokens_are_those_of_the_definition() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    for (vocabulary, count) in [(1, 1), (63, 7), (1024, 128), (1025, 1), (3001, 40), (9000, 128)] {
        // Few values, so that many are equal.
        let value = |i: usize| match i * 7919 % 997 {
            0..40 => f32::NEG_INFINITY,
            n => (n / 50) as f32 - 9.5,
        };
        let mut rows: Vec<f32> = (0..4 * vocabulary).map(value).collect();
        // The second has a token that must be seen, the third none that may come.
        rows[vocabulary + vocabulary / 3] = f32::INFINITY;
        rows[2 * vocabulary..3 * vocabulary].fill(f32::NEG_INFINITY);
        // A table must be finite: what is not comes by way of sums that grow beyond all numbers.
        let finite: Vec<u8> = rows.iter().flat_map(|v| if v.is_finite() { *v } else { 0.0 }.to_le_bytes()).collect();
        let source = |bytes: Vec<u8>| MatrixSource {
            name: "logits".to_owned(),
            dtype: DType::F32,
            rows: 4,
            depth: vocabulary,
            bytes: bytes.into(),
        };
        let mut batch = Batch::default();
        batch.push(&[0, 1, 2, 3], 0, &[0], Role::Decode, 0);
        let mut logits = card.embed(&card.load_embedding(&source(finite)).unwrap(), &batch, 1.0);
        let beyond = rows.iter().map(|v| {
            if *v == f32::NEG_INFINITY {
                f32::MIN
            } else if v.is_finite() {
                0.0
            } else {
                f32::MAX
            }
        });
        let beyond: Vec<u8> = beyond.flat_map(|v| v.to_le_bytes()).collect();
        let beyond = card.embed(&card.load_embedding(&source(beyond)).unwrap(), &batch, 1.0);
        card.add(&mut logits, &beyond);
        card.add(&mut logits, &beyond);
        let (mut values, mut found, mut want) = (vec![], vec![], vec![]);
        card.read(&logits, &mut values).unwrap();
        values.chunks_exact(vocabulary).for_each(|row| ranking::best(row, count, &mut want));
        card.best(&logits, 4, count, &mut found).unwrap();
        let bits = |c: &tessera_ops::Candidate| (c.id, c.logit.to_bits());
        assert!(found.iter().map(bits).eq(want.iter().map(bits)), "{count} of {vocabulary}");
    }
}
