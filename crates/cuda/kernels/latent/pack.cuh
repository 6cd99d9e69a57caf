// Numbers become a packed row; packed.cuh. A warp has 64 of them, a lane two neighbours.

// The code of a number, of those whose scale has this exponent.
DEVICE u32 fp8_code(float v, int scale) {
    const float near = rounded(v * power(-scale), 3, -6, 448.0f);
    if (near != near) return 0x7f;
    return __float_as_uint(fabsf(near) * power(-120)) >> 20 | __float_as_uint(near) >> 31 << 7;
}
DEVICE u32 fp4_code(float v, int scale) {
    const float near = rounded(v * power(-scale), 1, 0, 6.0f);
    return (__float_as_uint(fabsf(near) * power(-126)) >> 22 & 7) | __float_as_uint(near) >> 31 << 3;
}

// Numbers from `first` on, a multiple of 64; of those behind the row's end nothing is kept.
DEVICE void pack_numbers(u8* row, const Packed& form, u32 width, u32 first, float low, float high) {
    const u32 lane = threadIdx.x % 32, d = first + 2 * lane;
    const bool has_low = d < form.coded, has_high = d + 1 < form.coded;
    float size = form.is_fp4 ? FP4_FLOOR : FP8_FLOOR;
    // NaN is none.
    if (has_low && fabsf(low) > size) size = fabsf(low);
    if (has_high && fabsf(high) > size) size = fabsf(high);
    for (int step = form.is_fp4 ? 8 : 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, size, step);
        size = other > size ? other : size;
    }
    if (form.is_fp4) {
        const int scale = scale_exponent(size, 2, 1.5f);
        const u32 none = __ballot_sync(0xffffffffu, (has_low && low != low) || (has_high && high != high));
        // There is no code of what is no number: all of its block is none.
        const bool are_numbers = (none >> (lane & 16) & 0xffff) == 0;
        if (has_low) row[form.codes + d / 2] = (u8)(fp4_code(low, scale) | (has_high ? fp4_code(high, scale) << 4 : 0));
        if (has_low && lane % 16 == 0) row[form.scales + d / 32] = (u8)(are_numbers ? scale + 127 : 255);
    } else {
        const int scale = scale_exponent(size, 8, 1.75f);
        u8* to = row + form.codes + d;
        if (has_high) *(u16*)to = (u16)(fp8_code(low, scale) | fp8_code(high, scale) << 8);
        else if (has_low) *to = (u8)fp8_code(low, scale);
        if (has_low && lane == 0) row[form.scales + d / 64] = (u8)(scale + 127);
    }
    u16* halves = (u16*)row;
    if (!has_low && d < width) halves[d - form.coded] = float_to_half(low);
    if (!has_high && d + 1 < width) halves[d + 1 - form.coded] = float_to_half(high);
}

// All numbers of a row, by the warps of a block.
DEVICE void pack_row(u8* row, const Packed& form, u32 width, const float* numbers) {
    for (u32 first = threadIdx.x / 32 * 64; first < width; first += blockDim.x / 32 * 64) {
        const u32 d = first + threadIdx.x % 32 * 2;
        pack_numbers(row, form, width, first, d < width ? numbers[d] : 0.0f, d + 1 < width ? numbers[d + 1] : 0.0f);
    }
}
