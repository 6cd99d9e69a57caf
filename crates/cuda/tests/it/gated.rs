//! What a gate gives, and its f16 for the next product of prompt rows, are one launch: the same bits as two, and the gate's own are the
//! reference's. Rows longer than a block's threads hold are read by more of them.

use tessera_formats::DType;
use tessera_ops::{Batch, Device, Gate, Linear, MatrixSource, Role, reference::ReferenceDevice};

fn table(seed: usize, rows: usize, width: usize) -> MatrixSource {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * width).flat_map(|i| value(i).to_le_bytes()).collect();
    MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows, depth: width, bytes: bytes.into() }
}

/// The gate's result and its product.
fn computed<D: Device>(device: &D, rows: usize, width: usize, gate: Gate, after: &dyn Fn()) -> [Vec<u32>; 2] {
    let mut batch = Batch::default();
    batch.push(&(0..rows as u32).collect::<Vec<_>>(), 3, &[0], Role::Prefill, 0);
    let rows_of = |seed| device.embed(&device.load_embedding(&table(seed, rows, width)).unwrap(), &batch, 1.0);
    let (x, up) = (rows_of(1), rows_of(2));
    let probe = Linear { matrix: device.load_matrix(&table(3, 5, width)).unwrap(), bias: None };
    device.read(&x, &mut vec![]).unwrap();
    let y = device.gate(&x, &up, gate);
    after();
    let [product] = device.project(&y, [&probe]);
    [&y, &product].map(|tensor| {
        let mut out = vec![];
        device.read(tensor, &mut out).unwrap();
        out.iter().map(|v| v.to_bits()).collect()
    })
}

#[test]
fn gates_and_their_halves_are_one_launch() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    for (rows, width, gate, saved) in [
        (3, 256, Gate::Silu, 1),
        (9, 4096 + 256, Gate::SiluClamped(0.7), 1),
        (2, 8192 + 256, Gate::GeluTanh, 1),
        (2, 32768 + 256, Gate::Silu, 0),
        (2, 320, Gate::Silu, 0),
        (3, 48, Gate::SwigluOai, 0),
    ] {
        let launches = |after: &dyn Fn()| {
            let before = card.counts().launches;
            let results = computed(&card, rows, width, gate, after);
            (results, card.counts().launches - before)
        };
        let (single, many) = launches(&|| card.wait().unwrap());
        let (joined, few) = launches(&|| {});
        assert!(joined == single, "{rows} rows of {width}");
        let [reference, _] = computed(&ReferenceDevice, rows, width, gate, &|| {});
        assert!(joined[0] == reference, "{rows} rows of {width}: the reference");
        assert_eq!(many - few, saved, "{rows} rows of {width}");
    }
}
