//! Wrong GGUF files: each ends in one error that names the file, the key or tensor, and what was wrong.

use tessera_formats::{Bytes, Gguf};

use crate::gguf_bytes::{Parts, entry, string, tensor};

fn refused(bytes: Vec<u8>) -> String {
    let error = Gguf::parse("model.gguf", Bytes::new(bytes)).expect_err("must be refused").to_string();
    assert!(error.starts_with("model.gguf: "), "{error}");
    error
}

/// Asserts that `change` on a sound file leads to an error that contains all of `wants`.
#[track_caller]
fn check(change: impl FnOnce(&mut Parts), wants: &[&str]) {
    let mut parts = Parts::sound();
    change(&mut parts);
    let error = refused(parts.build());
    for want in wants {
        assert!(error.contains(want), "`{want}` is not in: {error}");
    }
}

#[test]
fn wrong_magic_and_versions() {
    check(|p| p.magic = *b"GGML", &["not a GGUF file"]);
    for (version, want) in [(0, "version 0"), (1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")] {
        check(|p| p.version = version, &[want, "convert"]);
    }
}

#[test]
fn counts_beyond_the_file() {
    for count in [1_000, 1 << 40, u64::MAX] {
        check(|p| p.tensor_count = Some(count), &["tensors", "damaged"]);
        check(|p| p.entry_count = Some(count), &["metadata entries", "damaged"]);
        let long_string = [&count.to_le_bytes()[..], b"x"].concat();
        check(|p| p.entries.push(entry(b"long", 8, &long_string)), &["`long`", "ends inside"]);
        for value_type in (0..=8).chain(10..=12u32) {
            let array = [&value_type.to_le_bytes()[..], &count.to_le_bytes()].concat();
            check(|p| p.entries.push(entry(b"array", 9, &array)), &["`array`", &count.to_string()]);
        }
    }
}

#[test]
fn wrong_metadata() {
    check(|p| p.entries.push(entry(b"u8", 0, &[1])), &["`u8`", "twice"]);
    check(|p| p.entries.push(entry(b"\xff", 0, &[1])), &["UTF-8"]);
    check(|p| p.entries.push(entry(b"odd", 13, &[0; 8])), &["`odd`", "type 13"]);
    check(|p| p.entries.push(entry(b"maybe", 7, &[2])), &["`maybe`", "boolean"]);
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &0u32.to_le_bytes(), &0u64.to_le_bytes()].concat();
    check(|p| p.entries.push(entry(b"nest", 9, &nested)), &["`nest`", "array of arrays"]);
    let unknown = [&77u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat();
    check(|p| p.entries.push(entry(b"nest", 9, &unknown)), &["`nest`", "type 77"]);
}

#[test]
fn wrong_alignments() {
    for alignment in [0u32, 1, 2, 4, 24, 33, u32::MAX] {
        let value = alignment.to_le_bytes();
        let want = alignment.to_string();
        check(|p| p.entries.push(entry(b"general.alignment", 4, &value)), &["`general.alignment`", &want]);
    }
    check(|p| p.entries.push(entry(b"general.alignment", 8, &string(b"32"))), &["`general.alignment`"]);
    // A sound alignment that puts the data beyond the file.
    let far = (1u64 << 63).to_le_bytes();
    check(|p| (p.entries.push(entry(b"general.alignment", 10, &far)), p.tensors.truncate(1)).1, &["`a`", "beyond"]);
}

#[test]
fn wrong_shapes() {
    let cases: [(&[u64], u32, &str); 10] = [
        (&[], 0, "0 dimensions"),
        (&[1, 1, 1, 1, 1], 0, "5 dimensions"),
        (&[0], 0, "dimension of zero"),
        (&[4, 0, 2], 0, "dimension of zero"),
        (&[31], 8, "Q8_0 blocks of 32"),
        (&[255], 12, "Q4_K blocks of 256"),
        (&[u64::MAX], 0, "too large"),
        (&[1 << 32, 1 << 32], 0, "too large"),
        (&[1 << 21, 1 << 21, 1 << 21], 26, "too large"),
        (&[1 << 61], 28, "too large"),
    ];
    for (shape, id, want) in cases {
        check(|p| p.tensors[0] = tensor(b"bad", shape, id, 0), &["`bad`", want]);
    }
    check(|p| p.tensors[0] = tensor(b"bad", &[1; 4000], 0, 0), &["`bad`", "4000 dimensions"]);
}

#[test]
fn unknown_types_are_named() {
    for (id, name) in [(4, "Q4_2"), (9, "Q8_1"), (15, "Q8_K"), (31, "interleaved"), (42, "unknown"), (u32::MAX, "type")]
    {
        check(
            |p| p.tensors[0] = tensor(b"bad", &[256], id, 0),
            &["`bad`", &id.to_string(), name, "supported are F32, F16", "IQ4_XS"],
        );
    }
}

#[test]
fn wrong_offsets_and_names() {
    check(|p| p.tensors[1] = tensor(b"b", &[32], 8, 16), &["`b`", "byte 16", "alignment 32"]);
    check(|p| p.tensors[1] = tensor(b"b", &[32], 8, 0), &["`b`", "`a`", "overlap"]);
    check(|p| p.tensors[0] = tensor(b"a", &[9], 0, 0), &["`b`", "`a`", "overlap"]);
    check(|p| p.tensors[2] = tensor(b"c", &[3], 26, 128), &["`c`", "beyond the file"]);
    check(|p| p.tensors[2] = tensor(b"c", &[3], 26, u64::MAX - 31), &["`c`", "beyond the file"]);
    check(|p| p.tensors[2] = tensor(b"c", &[1 << 60], 24, u64::MAX - 31), &["`c`", "beyond the file"]);
    check(|p| p.tensors[2] = tensor(b"a", &[3], 26, 96), &["`a`", "twice"]);
    check(|p| p.tensors[2] = tensor(b"\xc3", &[3], 26, 96), &["UTF-8"]);
    check(|p| p.data.truncate(107), &["`c`", "beyond the file"]);
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = Parts::sound().build();
    for len in 0..whole.len() {
        refused(whole[..len].to_vec());
    }
}
