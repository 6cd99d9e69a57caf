//! Thousands of small damages to sound files. Whatever comes of one, it is no panic, and what is accepted keeps the
//! promises that callers rely on. Seeded, so a failure repeats; `fuzz/` searches further.

use tessera_formats::{
    Bytes, DType, Gguf,
    codec::{self, Integers},
    gguf::{Array, Value},
    safetensors,
};

use crate::{decode::random_bytes, gguf_bytes::Parts};

/// A stream of random numbers.
struct Random {
    seed: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.seed += 1;
        u64::from_le_bytes(random_bytes(self.seed << 8, 8).try_into().expect("eight bytes"))
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Numbers at which lengths, counts and offsets go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    7,
    31,
    255,
    u16::MAX as u64,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 40,
    i64::MAX as u64,
    u64::MAX - 31,
    u64::MAX,
];

/// One to four damages: bits flipped, numbers put in, pieces copied, removed or put in.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let piece = (1 + random.below(16)).min(bytes.len() - at);
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 | 3 => {
                let width = [4, 8][random.below(2)].min(bytes.len() - at);
                let number = EDGES[random.below(EDGES.len())].to_le_bytes();
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => drop(bytes.drain(at..at + piece)),
            _ => {
                let from = random.below(bytes.len() - piece + 1);
                let copied = bytes[from..from + piece].to_vec();
                bytes.splice(at..at, copied);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

/// Bytes that a value holds on the heap, at least.
fn held(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len(),
        Value::Array(Array::Strings(v)) => v.iter().map(|s| size_of::<String>() + s.len()).sum(),
        Value::Array(array) => 8 * array.len(),
        _ => 0,
    }
}

/// What every accepted file promises.
fn check(file: &Gguf, len: usize) {
    let metadata: usize = file.metadata().map(|(k, v)| k.len() + size_of::<Value>() + held(v)).sum();
    // A boolean of one byte counts as eight here, and a replaced byte of a string takes three: nothing grows more.
    assert!(metadata <= 16 * len, "{metadata} bytes held of a file of {len}");
    for tensor in file.tensors() {
        assert!((1..=4).contains(&tensor.shape.len()) && !tensor.is_empty(), "{tensor:?}");
        let row = tensor.dtype.row_bytes(tensor.depth()).expect("whole blocks");
        assert_eq!(tensor.bytes.len(), row * tensor.rows(), "{tensor:?}");
        assert_eq!(tensor.decode().len(), tensor.len());
        assert_eq!(file.tensor(&tensor.name).expect("found by name").bytes.as_ptr(), tensor.bytes.as_ptr());
    }
}

#[test]
fn damaged_gguf_files_are_refused_or_sound() {
    let sound = Parts::sound();
    let (header, whole) = (sound.header(), sound.build());
    let mut random = Random { seed: 1 };
    let (mut accepted, mut refused) = (0, 0);
    for i in 0..20_000 {
        // Every other time only the header is damaged, where nearly all that can go wrong lies.
        let mut bytes = if i % 2 == 0 { header.clone() } else { whole.clone() };
        damage(&mut bytes, &mut random);
        if i % 2 == 0 {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&sound.data);
        }
        let len = bytes.len();
        match Gguf::parse("f", Bytes::new(bytes)) {
            Ok(file) => {
                check(&file, len);
                accepted += 1;
            }
            Err(error) => {
                assert!(error.to_string().len() < 2000 + len, "{error}");
                refused += 1;
            }
        }
    }
    // Both must occur, or the damages are too weak or too strong to test anything.
    assert!(accepted > 500 && refused > 5_000, "{accepted} accepted, {refused} refused");
}

#[test]
fn damaged_safetensors_are_refused_or_sound() {
    let header = br#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"I8","shape":[3],"data_offsets":[16,19]}}"#;
    let whole = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 19]].concat();
    assert!(safetensors::parse("f", whole.clone().into()).is_ok());
    let mut random = Random { seed: 1 << 32 };
    for _ in 0..10_000 {
        let mut bytes = whole.clone();
        damage(&mut bytes, &mut random);
        let len = bytes.len();
        for tensor in safetensors::parse("f", bytes.into()).unwrap_or_default() {
            assert!(tensor.bytes.len() < len);
        }
    }
}

#[test]
fn blocks_of_equal_bytes_decode() {
    for dtype in DType::all() {
        for byte in 0..=255 {
            let block = vec![byte; dtype.block_bytes()];
            let mut weights = vec![0.0; dtype.block_len()];
            codec::decode(dtype, &block, &mut weights);
            if dtype.is_float() {
                continue;
            }
            let subs = dtype.block_len() / dtype.sub_block_len();
            let (mut codes, mut scales, mut mins) = (vec![0; dtype.block_len()], vec![0.0; subs], vec![0.0; subs]);
            let out = Integers { codes: &mut codes, scales: &mut scales, mins: &mut mins };
            codec::integers(dtype, &block, out);
            // Equal to the decoder where both are numbers.
            let offset = f32::from(dtype.code_offset());
            let again = scales[0] * (f32::from(codes[0]) - offset) + mins[0];
            assert!(again == weights[0] || again.is_nan() && weights[0].is_nan(), "{dtype}, bytes {byte:#x}");
        }
    }
}
