//! Weights from a file's blocks to packed groups, once, when a model is loaded: in parallel, losing nothing.

use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use tessera_formats::codec::{self, Integers, MAX_BLOCK_LEN, MAX_SUB_BLOCKS};
use tessera_ops::{Error, MatrixSource};

use super::{
    layout::{
        Layout, RowBlock,
        floats::{self, Float},
    },
    select::{Packed, Visitor, select},
    tile::{BLOCK, ROWS},
};
use crate::{memory::Buffer, threads::Threads};

/// A weight matrix, or several of one shape, in the form the kernels read.
pub struct PackedMatrix {
    layout: Packed,
    segments: usize,
    rows: usize,
    depth: usize,
    group_bytes: usize,
    buffer: Buffer,
}

impl PackedMatrix {
    /// Packs a matrix.
    ///
    /// # Errors
    /// Formats that hold no weights, shapes that do not fit, scales or weights that are not finite, no memory.
    pub fn pack(source: &MatrixSource, pool: &Threads) -> Result<PackedMatrix, Error> {
        PackedMatrix::pack_stack(source, 1, pool)
    }

    /// Packs `segments` matrices that lie one after another, each in groups of its own.
    ///
    /// # Errors
    /// As [`PackedMatrix::pack`], and where the rows are not that many equal parts.
    pub fn pack_stack(source: &MatrixSource, segments: usize, pool: &Threads) -> Result<PackedMatrix, Error> {
        let (row_bytes, rows) = (source.row_bytes()?, source.rows_each(segments)?);
        let layout = select(source.dtype).ok_or_else(|| Error::Unsupported {
            device: "CPU".to_owned(),
            what: format!("a projection with {} weights (tensor {})", source.dtype, source.name),
            remedy: "convert the model to a format of weights, such as Q8_0",
        })?;
        let group_bytes = layout.group_bytes(source.depth);
        let groups = rows.div_ceil(ROWS);
        let bytes = groups.saturating_mul(group_bytes).saturating_mul(segments);
        let mut buffer = Buffer::zeroed(bytes, &format!("tensor {}", source.name))?;
        let bad_row = AtomicUsize::new(usize::MAX);
        if bytes > 0 {
            pool.run_chunks(&mut buffer.as_mut_slice()[..bytes], group_bytes, |first, part| {
                for (i, group) in part.chunks_exact_mut(group_bytes).enumerate() {
                    let (segment, index) = ((first + i) / groups, (first + i) % groups);
                    let in_group = index * ROWS..rows.min((index + 1) * ROWS);
                    for (lane, row) in in_group.map(|r| segment * rows + r).enumerate() {
                        let bytes = &source.bytes[row * row_bytes..(row + 1) * row_bytes];
                        if !layout.put_row(group, lane, source, bytes) {
                            bad_row.fetch_min(row, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        match bad_row.into_inner() {
            usize::MAX => Ok(PackedMatrix { layout, segments, rows, depth: source.depth, group_bytes, buffer }),
            row => Err(Error::NotFinite {
                tensor: source.name.clone(),
                row,
                what: if layout.is_float() { "weight" } else { "scale" },
            }),
        }
    }

    /// How many matrices.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Output features of each.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        self.segments * self.groups() * self.group_bytes
    }

    /// The layout its format got.
    pub fn layout(&self) -> Packed {
        self.layout
    }

    /// Groups of 16 rows of each matrix; the last may be padded with zeros.
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Bytes from one group to the next.
    pub(super) fn group_bytes(&self) -> usize {
        self.group_bytes
    }

    /// Where a group of a matrix starts.
    pub(super) fn group(&self, segment: usize, index: usize) -> *const u8 {
        assert!(index < self.groups(), "a matrix has its own groups");
        self.buffer.as_slice()[(segment * self.groups() + index) * self.group_bytes..self.bytes()].as_ptr()
    }
}

impl Packed {
    /// Bytes of 16 rows.
    pub fn group_bytes(self, depth: usize) -> usize {
        match self {
            Packed::F32 => floats::group_bytes::<f32>(depth),
            Packed::F16 => floats::group_bytes::<f16>(depth),
            Packed::BF16 => floats::group_bytes::<bf16>(depth),
            codes => codes.visit(GroupBytes(depth / BLOCK)),
        }
    }

    /// Writes a row's bytes into a lane of its group; false where a number is not finite.
    fn put_row(self, group: &mut [u8], lane: usize, source: &MatrixSource, bytes: &[u8]) -> bool {
        match self {
            Packed::F32 => put_floats::<f32>(group, lane, bytes),
            Packed::F16 => put_floats::<f16>(group, lane, bytes),
            Packed::BF16 => put_floats::<bf16>(group, lane, bytes),
            codes => codes.visit(PutRow { group, lane, source, bytes }),
        }
    }
}

fn put_floats<T: Float>(group: &mut [u8], lane: usize, bytes: &[u8]) -> bool {
    floats::put::<T>(group, lane, bytes);
    T::is_finite(bytes)
}

struct GroupBytes(usize);

impl Visitor for GroupBytes {
    type Output = usize;

    fn visit<L: Layout>(self) -> usize {
        L::group_bytes(self.0)
    }
}

struct PutRow<'a> {
    group: &'a mut [u8],
    lane: usize,
    source: &'a MatrixSource,
    bytes: &'a [u8],
}

impl Visitor for PutRow<'_> {
    type Output = bool;

    fn visit<L: Layout>(self) -> bool {
        let dtype = self.source.dtype;
        let (length, subs) = (dtype.block_len(), dtype.block_len() / dtype.sub_block_len());
        let (mut codes, mut scales, mut mins) = ([0; MAX_BLOCK_LEN], [0.0; MAX_SUB_BLOCKS], [0.0; MAX_SUB_BLOCKS]);
        let (codes, scales, mins) = (&mut codes[..length], &mut scales[..subs], &mut mins[..subs]);
        let shift = L::CODE_OFFSET.wrapping_sub(dtype.code_offset());
        let mut finite = true;
        for (i, raw) in self.bytes.chunks_exact(dtype.block_bytes()).enumerate() {
            codec::integers(dtype, raw, Integers { codes, scales, mins });
            if !scales.iter().chain(mins.iter()).all(|v| v.is_finite()) {
                finite = false;
                continue;
            }
            if shift != 0 {
                codes.iter_mut().for_each(|c| *c = c.wrapping_add(shift));
            }
            let weights = RowBlock { raw, codes: codes.as_chunks().0, scales, mins };
            L::put(self.group, self.source.depth / BLOCK, self.lane, i * length / BLOCK, &weights);
        }
        finite
    }
}
