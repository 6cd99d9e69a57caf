//! What is sent to steps, and what they answer, by memory of the host's that the card reads and writes (`EMULATED_CARD=pinned=none`: by
//! copies of the driver).

use tessera_cuda::CudaDevice;
use tessera_formats::DType;
use tessera_ops::{Batch, Candidate, Device, MatrixSource, Role, Rope, RopeLayout, Table, math, ranking};

/// A table whose rows have numbers of their own.
fn table(card: &CudaDevice, rows: usize, width: usize) -> (Table, Vec<f32>) {
    let values: Vec<f32> = (0..rows * width).map(|i| (i * 2_654_435_761 % 65_521) as f32 / 1024.0 - 32.0).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let source = MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows, depth: width, bytes: bytes.into() };
    (card.load_embedding(&source).unwrap(), values)
}

fn batch(tokens: &[u32], position: usize) -> Batch {
    let mut batch = Batch::default();
    batch.push(tokens, position, &[0, 1], Role::Decode, 1);
    batch
}

/// Of one number and of many, sent again and again without a wait, until there is room for no more, and beyond: all arrive.
#[test]
fn what_is_sent_arrives() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    for (width, steps) in [(1, 40), (3, 300), (1021, 9), (16_384, 30), (70_001, 3)] {
        let (table, values) = table(&card, 5, width);
        for _ in 0..2 {
            let tokens = |i: usize| [i as u32 % 5, (i as u32 * 3 + 1) % 5];
            let sent: Vec<_> = (0..steps).map(|i| card.embed(&table, &batch(&tokens(i), i % 32), 1.0)).collect();
            for (i, x) in sent.iter().enumerate() {
                let mut got = vec![];
                card.read(x, &mut got).unwrap();
                let want: Vec<f32> =
                    tokens(i).iter().flat_map(|t| &values[*t as usize * width..][..width]).copied().collect();
                assert!(got == want, "{width} numbers, {i}");
            }
        }
    }
}

/// Whatever tokens and positions: a step sends other numbers from the same places, and is the same launches.
#[test]
fn a_step_with_other_numbers_comes_again() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let (width, head_dim) = (64, 32);
    let (table, values) = table(&card, 50, width);
    let rope = Rope {
        layout: RopeLayout::Halves,
        frequencies: (0..head_dim / 2).map(|i| 0.9f64.powi(i)).collect(),
        magnitude: 1.0,
    };
    let mut step = |number: usize| {
        let token = (number * 7 % 50) as u32;
        let before = card.counts();
        let batch = batch(&[token], number);
        let mut x = card.embed(&table, &batch, 1.0);
        let angles = card.rope_angles(&rope, &batch);
        // So many launches that they are worth a graph.
        for _ in 0..8 {
            card.scale(&mut x, 2.0);
        }
        let picked = card.logit_rows(&x, &batch);
        let mut best = vec![];
        card.best(&picked, 1, 3, &mut best).unwrap();
        let after = card.counts();
        let (mut want, mut turned) = (vec![], vec![]);
        let row: Vec<f32> = values[token as usize * width..][..width].iter().map(|v| v * 256.0).collect();
        ranking::best(&row, 3, &mut want);
        assert_eq!(
            best.iter().map(|c: &Candidate| c.id).collect::<Vec<_>>(),
            want.iter().map(|c| c.id).collect::<Vec<_>>()
        );
        card.read(&angles, &mut turned).unwrap();
        assert_eq!(turned[1], math::sin_cos(number as f64 * 0.9).1, "{number}");
        (after.graphs - before.graphs, after.launches - before.launches)
    };
    let steps: Vec<_> = (0..12).map(&mut step).collect();
    assert_eq!(steps[0].0, 0);
    // What a step gives back rests during the next one, so there are two sets of places; a card that gave them out in another order than that
    // of addresses has each set once as it came, then once as it stays. What comes again after that is a graph.
    assert!(steps[4..].iter().all(|step| *step == steps[4] && step.0 > 0), "{steps:?}");
}
