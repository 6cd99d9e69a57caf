//! Products with what follows them, codes of their results or a gate and its codes, are one launch: the same bits as several, and the
//! reference's. On a card, or on the emulated one (`EMULATED_CARD=capability=9.0 tools/emulate cargo test -p tessera-cuda followed`).

use tessera_formats::{DType, codec::RandomBlocks};
use tessera_ops::{
    Batch, Device, Gate, Linear, LinearStack, MatrixSource, Role, Router, Routing, Score, reference::ReferenceDevice,
};

const EXPERTS: usize = 5;
const SLOTS: usize = 2;
const GROUPS: usize = 3;

/// What is multiplied, and what follows.
#[derive(Clone, Copy, Debug)]
enum Form {
    Dense(Gate),
    Routed(Gate),
    /// Slices of a row, whose results are multiplied again.
    Grouped,
}

/// Rows of a matrix, and its depth.
type Shape = (usize, usize);

/// With tokens, and launches that are saved with clusters and without.
type Case = (Form, DType, Shape, &'static [usize], [u64; 2]);

fn weights(seed: u64, dtype: DType, (rows, depth): Shape) -> MatrixSource {
    let mut bytes = vec![0; rows * dtype.row_bytes(depth).unwrap()];
    RandomBlocks::new(dtype, 0.2).fill(seed, 0, &mut bytes);
    MatrixSource { name: "weights".to_owned(), dtype, rows, depth, bytes: bytes.into() }
}

fn table(seed: usize, rows: usize, width: usize) -> MatrixSource {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * width).flat_map(|i| value(i).to_le_bytes()).collect();
    MatrixSource { name: "rows".to_owned(), dtype: DType::F32, rows, depth: width, bytes: bytes.into() }
}

/// Every tensor; `after` is called behind each op.
fn computed<D: Device>(
    device: &D,
    (form, dtype): (Form, DType),
    (rows, depth): Shape,
    tokens: usize,
    after: &dyn Fn(),
) -> Vec<Vec<u32>> {
    let mut batch = Batch::default();
    batch.push(&(0..tokens as u32).collect::<Vec<_>>(), 0, &[0], Role::Decode, 0);
    let rows_of = |seed, width| device.embed(&device.load_embedding(&table(seed, tokens, width)).unwrap(), &batch, 1.0);
    let groups = if let Form::Grouped = form { GROUPS } else { 1 };
    // Its codes are kept with it, so that their memory is not given out again meanwhile.
    let x = device.rms_norm(&rows_of(1, groups * depth), &vector(device, groups * depth), 1e-5);
    let count = match form {
        Form::Dense(_) => 1,
        Form::Routed(_) => EXPERTS,
        Form::Grouped => GROUPS,
    };
    let stack = |seed| {
        let matrices = device.load_stack(&weights(seed, dtype, (count * rows, depth)), count).unwrap();
        LinearStack { matrices, bias: Some(vector(device, count * rows)) }
    };
    let linear = |seed| Linear {
        matrix: device.load_matrix(&weights(seed, dtype, (rows, depth))).unwrap(),
        bias: Some(vector(device, rows)),
    };
    let probe =
        Linear { matrix: device.load_matrix(&weights(4, DType::Q8_0, (16, groups * rows))).unwrap(), bias: None };
    let read = |tensors: &[&D::Tensor]| {
        let bits = |tensor: &&D::Tensor| {
            let mut out = vec![];
            device.read(tensor, &mut out).unwrap();
            out.iter().map(|v| v.to_bits()).collect()
        };
        tensors.iter().map(bits).collect()
    };
    // What a step sends is sent, and nothing is held back.
    let ready = || device.read(&x, &mut vec![]).unwrap();
    match form {
        Form::Dense(kind) => {
            let [gate, up] = [linear(2), linear(3)];
            ready();
            let [gate, up] = device.project(&x, [&gate, &up]);
            after();
            let y = device.gate(&gate, &up, kind);
            after();
            let [product] = device.project(&y, [&probe]);
            read(&[&gate, &up, &y, &product])
        }
        Form::Routed(kind) => {
            let routing = Routing { score: Score::Softmax, slots: SLOTS, groups: None, normalise: true, scale: 1.0 };
            let routes = device.route(&rows_of(5, EXPERTS), &Router { routing, bias: None, factors: None });
            let [gate, up] = [stack(2), stack(3)];
            ready();
            let [gate, up] = device.project_routed(&x, [&gate, &up], &routes);
            after();
            let y = device.gate(&gate, &up, kind);
            after();
            let [product] = device.project(&y, [&probe]);
            read(&[&gate, &up, &y, &product])
        }
        Form::Grouped => {
            let narrow = stack(2);
            ready();
            let y = device.project_grouped(&x, &narrow);
            after();
            let [product] = device.project(&y, [&probe]);
            read(&[&y, &product])
        }
    }
}

fn vector<D: Device>(device: &D, count: usize) -> D::Vector {
    device.load_vector(&(0..count).map(|i| i as f32 / 512.0 - 0.5).collect::<Vec<_>>()).unwrap()
}

/// Rows fill a cluster's blocks or leave some of the last one out; tiles of 16, 32 and 64 rows, those of experts, of many blocks, and
/// blocks that go on; the last numbers are how many launches less there are on a card with clusters, and on others.
#[test]
fn what_follows_a_product_is_done_where_it_is_summed() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let has_clusters = card.name().contains("sm_90a");
    let (dense, routed, grouped) = (Form::Dense, Form::Routed, Form::Grouped);
    let silu = Gate::Silu;
    let cases: &[Case] = &[
        (routed(silu), DType::IQ2_XXS, (96, 512), &[1, 2, 7], [1, 0]),
        (routed(Gate::SiluClamped(0.7)), DType::Q8_0, (160, 544), &[1, 6], [1, 0]),
        (routed(silu), DType::Q4_K, (2048, 256), &[1, 9], [1, 0]),
        (grouped, DType::Q8_0, (64, 288), &[1, 8], [1, 0]),
        (grouped, DType::Q8_0, (2048, 288), &[2, 8], [1, 1]),
        (dense(silu), DType::Q8_0, (96, 2144), &[1, 3, 8], [1, 0]),
        (dense(Gate::SiluClamped(0.7)), DType::Q4_K, (64, 512), &[1, 9], [1, 0]),
        (dense(Gate::GeluTanh), DType::Q8_0, (3232, 256), &[1, 2], [1, 0]),
        (dense(Gate::SwigluOai), DType::Q8_0, (8480, 64), &[1], [1, 0]),
        (dense(silu), DType::IQ2_XXS, (3232, 256), &[1, 5], [1, 0]),
        (dense(silu), DType::Q2_K, (3296, 256), &[1, 8], [1, 0]),
    ];
    for &(form, dtype, shape, widths, saved) in cases {
        for &tokens in widths {
            let what = format!("{form:?} {dtype} {shape:?}, {tokens} tokens");
            let launches = |after: &dyn Fn()| {
                let before = card.counts().launches;
                let results = computed(&card, (form, dtype), shape, tokens, after);
                (results, card.counts().launches - before)
            };
            // A graph and a launch by itself.
            let (single, many) = launches(&|| card.wait().unwrap());
            let (joined, few) = launches(&|| {});
            let reference = computed(&ReferenceDevice, (form, dtype), shape, tokens, &|| {});
            for (i, reference) in reference.iter().enumerate() {
                assert!(joined[i] == single[i], "{what}: tensor {i}");
                assert!(joined[i] == *reference, "{what}: tensor {i} of the reference");
            }
            let saved = saved[usize::from(!has_clusters)];
            // Codes of what slices give are taken with it; else: a norm, two products, and these.
            let want = if let Form::Grouped = form { 4 - saved } else { many - saved };
            // Other cards' tiles may have whole blocks of codes by themselves.
            assert!(few == want || !has_clusters && few < want, "{what}: {few} launches instead of {want}");
        }
    }
}
