//! Builds GGUF files byte by byte, right or wrong, without this crate's writer.

/// The parts of a file; a test changes one and builds.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

impl Parts {
    /// A sound file: every value type, and tensors `a` (F32, 4 x 2), `b` (Q8_0, 32), `c` (I32, 3).
    pub(crate) fn sound() -> Parts {
        let mut data: Vec<u8> = (0..8).flat_map(|i| (i as f32 - 2.5).to_le_bytes()).collect();
        data.extend([0x00, 0x3c]); // Q8_0 with scale 1
        data.extend((0..32).map(|i| (i as u8).wrapping_sub(16)));
        data.resize(32 + 64, 0);
        data.extend([7i32, -8, 1 << 20].iter().flat_map(|i| i.to_le_bytes()));
        Parts {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: sound_entries(),
            tensors: vec![tensor(b"a", &[4, 2], 0, 0), tensor(b"b", &[32], 8, 32), tensor(b"c", &[3], 26, 96)],
            alignment: 32,
            data,
        }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        out.extend(self.entries.concat());
        out.extend(self.tensors.concat());
        out
    }
}

fn sound_entries() -> Vec<Vec<u8>> {
    vec![
        entry(b"general.architecture", 8, &string(b"llama")),
        entry(b"u8", 0, &[200]),
        entry(b"i8", 1, &[0xff]),
        entry(b"u16", 2, &60000u16.to_le_bytes()),
        entry(b"i16", 3, &(-2i16).to_le_bytes()),
        entry(b"u32", 4, &4_000_000_000u32.to_le_bytes()),
        entry(b"i32", 5, &(-3i32).to_le_bytes()),
        entry(b"f32", 6, &1.5f32.to_le_bytes()),
        entry(b"bool", 7, &[1]),
        entry(b"u64", 10, &u64::MAX.to_le_bytes()),
        entry(b"i64", 11, &(-4i64).to_le_bytes()),
        entry(b"f64", 12, &0.25f64.to_le_bytes()),
        entry(b"tokens", 9, &[&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &string(b"a"), &string(b"\xff")].concat()),
        entry(b"scores", 9, &[&6u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0; 8]].concat()),
        entry(b"flags", 9, &[&7u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[0, 1, 0]].concat()),
    ]
}

pub(crate) fn string(s: &[u8]) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s].concat()
}

pub(crate) fn entry(key: &[u8], value_type: u32, value: &[u8]) -> Vec<u8> {
    [&string(key)[..], &value_type.to_le_bytes(), value].concat()
}

pub(crate) fn tensor(name: &[u8], shape: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let dims = shape.iter().flat_map(|d| d.to_le_bytes()).collect::<Vec<_>>();
    [&string(name)[..], &(shape.len() as u32).to_le_bytes(), &dims, &type_id.to_le_bytes(), &offset.to_le_bytes()]
        .concat()
}
