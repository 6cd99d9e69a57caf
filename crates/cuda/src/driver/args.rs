//! What kernels are called with.

use std::ops::Deref;

use super::Memory;
use crate::queue::ARGS_MAX;

/// What a kernel is called with.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    Memory(&'a Memory),
    /// From so many bytes on.
    From(&'a Memory, usize),
    Null,
    U32(usize),
    U64(usize),
    F32(f32),
}

impl Arg<'_> {
    /// The bytes of the card's memory that a kernel gets with it, from the first to behind the last.
    pub(super) fn bytes(self) -> Option<[u64; 2]> {
        let from = |memory: &Memory, at: usize| [memory.pointer + at as u64, memory.pointer + memory.bytes as u64];
        match self {
            Arg::Memory(memory) => Some(from(memory, 0)),
            Arg::From(memory, at) => Some(from(memory, at)),
            _ => None,
        }
    }

    /// Writes the value; gives its size.
    pub(super) fn put(self, out: &mut [u8; 8]) -> usize {
        let small = |v: usize| u32::try_from(v).expect("counts of a launch fit into 32 bits").to_le_bytes();
        match self {
            Arg::Memory(memory) => *out = memory.pointer.to_le_bytes(),
            Arg::From(memory, at) => {
                assert!(at <= memory.bytes, "a part of the memory");
                *out = (memory.pointer + at as u64).to_le_bytes();
            }
            Arg::Null => *out = [0; 8],
            Arg::U64(v) => *out = (v as u64).to_le_bytes(),
            Arg::U32(v) => out[..4].copy_from_slice(&small(v)),
            Arg::F32(v) => out[..4].copy_from_slice(&v.to_le_bytes()),
        }
        if matches!(self, Arg::U32(_) | Arg::F32(_)) { 4 } else { 8 }
    }
}

/// All that a kernel is called with, put together where it is called: some hundred times a step, so it takes no memory of the heap.
pub(crate) struct Args<'a> {
    all: [Arg<'a>; ARGS_MAX],
    count: usize,
}

impl<'a> Args<'a> {
    pub(crate) fn of(first: impl IntoIterator<Item = Arg<'a>>) -> Args<'a> {
        let mut args = Args { all: [Arg::Null; ARGS_MAX], count: 0 };
        args.extend(first);
        args
    }

    pub(crate) fn push(&mut self, arg: Arg<'a>) {
        self.all[self.count] = arg;
        self.count += 1;
    }
}

impl<'a> Extend<Arg<'a>> for Args<'a> {
    fn extend<T: IntoIterator<Item = Arg<'a>>>(&mut self, more: T) {
        more.into_iter().for_each(|arg| self.push(arg));
    }
}

impl<'a> Deref for Args<'a> {
    type Target = [Arg<'a>];

    fn deref(&self) -> &[Arg<'a>] {
        &self.all[..self.count]
    }
}

impl<'a> From<Option<&'a Memory>> for Arg<'a> {
    fn from(memory: Option<&'a Memory>) -> Arg<'a> {
        memory.map_or(Arg::Null, Arg::Memory)
    }
}
