// Rows of small floats with scales that are powers of two, which lose nothing of rows that were rounded to these;
// crates/ops/src/packing.rs.

// How a row lies: numbers in f16, codes (E4M3, a byte each, the first in a row; or E2M1, four bits each), and a byte for the scale of 64 or
// 32 of them.
struct Packed {
    // Whether codes are E2M1.
    bool is_fp4;
    // Numbers that are codes; where codes and scales begin.
    u32 coded, codes, scales;
};

// What a scale multiplies with.
DEVICE float scale_factor(u32 scale) { return scale == 255 ? not_a_number() : __uint_as_float(scale << 23); }

// The number of a code.
DEVICE float fp8_value(u32 code) {
    const u32 size = code & 0x7f;
    return size == 0x7f ? not_a_number() : __uint_as_float(size << 20 | (code & 0x80) << 24) * __uint_as_float((120 + 127) << 23);
}
DEVICE float fp4_value(u32 code) { return __uint_as_float((code & 7) << 22 | (code & 8) << 28) * __uint_as_float((126 + 127) << 23); }

// Number `d` of a row.
DEVICE float packed_number(const u8* row, const Packed& form, u32 d) {
    if (d >= form.coded) return half_to_float(((const u16*)row)[d - form.coded]);
    if (form.is_fp4) return fp4_value(row[form.codes + d / 2] >> d % 2 * 4) * scale_factor(row[form.scales + d / 32]);
    return fp8_value(row[form.codes + d]) * scale_factor(row[form.scales + d / 64]);
}
