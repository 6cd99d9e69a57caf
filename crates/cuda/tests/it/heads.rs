//! Heads of many rows and of few: normed, turned, and brought into small floats, each by itself and as one launch, to the bits of the
//! reference device.

use tessera_formats::DType;
use tessera_ops::{
    Batch, Device, MatrixSource, Role, Rope, RopeLayout, Rotation, Rounding, reference::ReferenceDevice,
};

/// What is done to heads of rows.
#[derive(Clone, Copy, Debug)]
struct Work {
    rows: usize,
    heads: usize,
    head_dim: usize,
    /// The last pairs turn.
    pairs: usize,
    layout: RopeLayout,
    is_inverse: bool,
    what: What,
    /// Launches that joining saves.
    saved: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    /// Normed before.
    Norm,
    Turn,
    /// Rounded behind.
    Hadamard,
}

/// All that is done, and what there is of it at the end.
fn computed<D: Device>(device: &D, work: &Work, after: &dyn Fn()) -> Vec<u32> {
    let &Work { rows, heads, head_dim, pairs, layout, is_inverse, what, .. } = work;
    let width = heads * head_dim;
    let value = |i: usize| ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * width).flat_map(|i| value(i).to_le_bytes()).collect();
    let table = MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows, depth: width, bytes: bytes.into() };
    let mut batch = Batch::default();
    let ids: Vec<u32> = (0..rows as u32).collect();
    batch.push(&ids, 5, &[0, 1, 2], Role::Prefill, 0);
    let mut x = device.embed(&device.load_embedding(&table).unwrap(), &batch, 1.0);
    let weight = device.load_vector(&(0..head_dim).map(|i| 0.5 + i as f32 / 64.0).collect::<Vec<_>>()).unwrap();
    let frequencies = (0..pairs).map(|i| 0.9 / (1 + i) as f64).collect();
    let angles = device.rope_angles(&Rope { layout, frequencies, magnitude: 1.0 }, &batch);
    let rotation = Rotation::new(head_dim, layout).from(head_dim - 2 * pairs);
    // What a step sends is sent, and nothing is held back.
    device.read(&x, &mut vec![]).unwrap();
    if what == What::Norm {
        x = device.rms_norm(&x, &weight, 1e-5);
        after();
    }
    device.rotate(&mut x, &if is_inverse { rotation.inverted() } else { rotation }, &angles);
    after();
    if what == What::Hadamard {
        device.round(&mut x, head_dim, Rounding::HadamardFp4);
    }
    let mut out = vec![];
    device.read(&x, &mut out).unwrap();
    out.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn heads_of_many_rows_have_the_reference_s_bits() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let (halves, neighbours) = (RopeLayout::Halves, RopeLayout::Interleaved);
    let normed = |rows, heads, head_dim, pairs, layout| {
        let (is_inverse, what, saved) = (false, What::Norm, 1);
        Work { rows, heads, head_dim, pairs, layout, is_inverse, what, saved }
    };
    let alone = |work: Work| Work { what: What::Turn, is_inverse: true, saved: 0, ..work };
    let rounded = |work: Work, saved| Work { what: What::Hadamard, saved, ..work };
    let model = normed(33, 64, 512, 32, neighbours);
    // Heads that fill no whole block; a few; widths that are no whole vectors.
    let odd = normed(3, 683, 128, 64, neighbours);
    let works = [
        model,
        odd,
        Work { is_inverse: true, ..normed(9, 229, 256, 5, neighbours) },
        normed(9, 229, 384, 12, neighbours),
        normed(3, 683, 128, 64, halves),
        normed(3, 700, 80, 40, neighbours),
        normed(1, 3, 512, 32, neighbours),
        alone(model),
        alone(odd),
        alone(normed(2, 5, 96, 3, halves)),
        rounded(odd, 1),
        rounded(normed(2, 64, 128, 32, neighbours), 1),
        rounded(Work { is_inverse: true, ..normed(3, 5, 64, 7, neighbours) }, 1),
        rounded(normed(3, 5, 256, 128, neighbours), 1),
        rounded(normed(3, 5, 256, 128, halves), 0),
        rounded(normed(3, 5, 32, 16, neighbours), 0),
        rounded(normed(1, 5, 512, 32, neighbours), 0),
    ];
    for work in &works {
        let launches = |after: &dyn Fn()| {
            let before = card.counts().launches;
            let results = computed(&card, work, after);
            (results, card.counts().launches - before)
        };
        let (single, many) = launches(&|| card.wait().unwrap());
        let (joined, few) = launches(&|| {});
        let reference = computed(&ReferenceDevice, work, &|| {});
        assert!(single == reference, "{work:?}: one by one");
        assert!(joined == reference, "{work:?}: together");
        assert_eq!(many - few, work.saved, "{work:?}: launches");
    }
}
