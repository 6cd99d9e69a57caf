//! Q8_0: 32 weights, f16 scale, signed bytes.

use super::{Integers, bits};

/// Layout: `d: f16`, `values: 32 x i8`. weight = d * value; the code is value + 128.
pub(super) fn unpack(block: &[u8], out: Integers<'_>) {
    out.scales[0] = bits::f16_at(block);
    for (code, value) in out.codes.iter_mut().zip(&block[2..34]) {
        *code = value ^ 0x80;
    }
}
