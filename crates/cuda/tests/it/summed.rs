//! A residual sum goes to the end of the product before it: the same bits as two launches, and the reference's. On a card, or on the
//! emulated one (`tools/emulate cargo test -p tessera-cuda`). A machine without either has nothing to show.

use tessera_formats::{DType, codec::RandomBlocks};
use tessera_ops::{Batch, Device, Linear, MatrixSource, Role, reference::ReferenceDevice};

fn table(seed: usize, rows: usize, width: usize) -> MatrixSource {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * width).flat_map(|i| value(i).to_le_bytes()).collect();
    MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows, depth: width, bytes: bytes.into() }
}

fn linear<D: Device>(device: &D, seed: u64, dtype: DType, rows: usize, depth: usize) -> Linear<D> {
    let mut bytes = vec![0; rows * dtype.row_bytes(depth).unwrap()];
    RandomBlocks::new(dtype, 0.2).fill(seed, 0, &mut bytes);
    let source = MatrixSource { name: "weights".to_owned(), dtype, rows, depth, bytes: bytes.into() };
    Linear { matrix: device.load_matrix(&source).unwrap(), bias: Some(vector(device, rows)) }
}

fn vector<D: Device>(device: &D, count: usize) -> D::Vector {
    device.load_vector(&(0..count).map(|i| i as f32 / 512.0 - 0.5).collect::<Vec<_>>()).unwrap()
}

/// What is added, the sum, and a product of that; `after` is called behind each op.
fn computed<D: Device>(
    device: &D,
    dtype: DType,
    (rows, depth): (usize, usize),
    tokens: usize,
    after: &dyn Fn(),
) -> Vec<Vec<u32>> {
    let mut batch = Batch::default();
    batch.push(&(0..tokens as u32).collect::<Vec<_>>(), 0, &[0], Role::Decode, 0);
    let rows_of = |seed, width| device.embed(&device.load_embedding(&table(seed, tokens, width)).unwrap(), &batch, 1.0);
    let mut x = rows_of(1, rows);
    let mixed = device.rms_norm(&rows_of(2, depth), &vector(device, depth), 1e-5);
    let [output, probe] = [linear(device, 1, dtype, rows, depth), linear(device, 2, DType::Q8_0, 16, rows)];
    // What a step sends is sent, and nothing is held back.
    device.read(&mixed, &mut vec![]).unwrap();
    let [added] = device.project(&mixed, [&output]);
    after();
    device.add(&mut x, &added);
    after();
    let [product] = device.project(&x, [&probe]);
    let bits = |tensor: &D::Tensor| {
        let mut out = vec![];
        device.read(tensor, &mut out).unwrap();
        out.iter().map(|v| v.to_bits()).collect()
    };
    [&added, &x, &product].map(bits).into()
}

/// Weights, rows of the matrix and its depth, tokens, and whether it is surely one launch less.
type Case = (DType, (usize, usize), &'static [usize], bool);

/// Rows fill a block or leave some of it out; tiles of 16 and 32 rows, of one run of columns and of eight, whose threads have several
/// results each. It is one launch less, but for widths and shapes that other kernels may take, which the last word tells.
#[test]
fn sums_go_to_the_end_of_products() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let cases: &[Case] = &[
        (DType::Q8_0, (576, 1536), &[1, 2, 5, 8], true),
        (DType::Q8_0, (2560, 96), &[1, 8], true),
        (DType::Q8_0, (9760, 64), &[1, 4], true),
        (DType::Q4_K, (96, 2304), &[1, 7], true),
        (DType::Q2_K, (3296, 256), &[1, 3], false),
        (DType::IQ2_XXS, (64, 256), &[1, 3], true),
        (DType::Q4_1, (288, 64), &[1, 6], true),
        (DType::Q4_1, (288, 64), &[17, 33, 64], false),
        (DType::MXFP4, (352, 544), &[1, 8], true),
    ];
    for &(dtype, shape, widths, is_narrow) in cases {
        for &tokens in widths {
            let what = format!("{dtype} {shape:?}, {tokens} tokens");
            let launches = |after: &dyn Fn()| {
                let before = card.counts().launches;
                let results = computed(&card, dtype, shape, tokens, after);
                (results, card.counts().launches - before)
            };
            let (single, many) = launches(&|| card.wait().unwrap());
            let (joined, few) = launches(&|| {});
            let reference = computed(&ReferenceDevice, dtype, shape, tokens, &|| {});
            for (i, reference) in reference.iter().enumerate() {
                assert!(joined[i] == single[i], "{what}: tensor {i}");
                assert!(joined[i] == *reference, "{what}: tensor {i} of the reference");
            }
            assert!(many - few == 1 || many == few && !is_narrow, "{what}: {few} launches instead of {many}");
        }
    }
}
