// Packed keys of a page on their way into shared memory, where they are operands of matrix units: through registers, in which they become
// f16, of the same bits as if the row had been kept so. Slabs of 64 numbers are codes of one scale, or f16 already.

// Keys of a page, 64 numbers of each.
#define SLAB_BYTES (PAGE * 128)

#if IS_PACKED
static_assert(FORMAT == 3 && CODED % 64 == 0 && WIDTH % 64 == 0, "whole slabs of E4M3, one scale each");

#define CODE_SLABS (CODED / 64)
#define HALF_SLABS ((WIDTH - CODED) / 64)

// Eight bytes of a row, whose places are multiples of four, or of eight where rows are.
DEVICE uint2 eight_bytes(const u8* at) {
    if (ROW_BYTES % 8 == 0) return *(const uint2*)at;
    return make_uint2(((const u32*)at)[0], ((const u32*)at)[1]);
}

// A scale as f16, twice: 2^(scale - 127), up to 2^15. No scale is below 2^-22 (rounding.cuh, `FP8_FLOOR`).
DEVICE u32 scale_as_halves(u32 scale) {
    const u32 half = scale > 112 ? (scale - 112) << 10 : 1u << (scale - 103);
    return half << 16 | half;
}

// Eight codes as f16, each product rounded once.
DEVICE uint4 widened(uint2 codes, u32 scale) {
    u32 pairs[4] = {halves_of_fp8(codes.x), halves_of_fp8(codes.x >> 16), halves_of_fp8(codes.y), halves_of_fp8(codes.y >> 16)};
    const u32 factor = scale_as_halves(scale < 142 ? scale : 142);
    // Beyond, no product that is left is a fraction: all are exact, or infinite. Else it is by one: a branch would cost more.
    const u32 more = scale_as_halves(scale <= 142 ? 127 : scale - 15 < 142 ? scale - 15 : 142);
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = multiply_halves(multiply_halves(pairs[i], factor), more);
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// A warp's ROWS keys of a page, from slot `first` on. Of each row eight lanes have parts of eight numbers.
template <u32 ROWS> struct PackedKeys {
    static constexpr u32 EACH = ROWS / 4;
    uint2 codes[EACH][CODE_SLABS ? CODE_SLABS : 1];
    uint2 halves[EACH][HALF_SLABS ? HALF_SLABS : 1][2];
    uint2 scales[EACH];

    // Where they lie: a lane finds one of the rows. Slots that are not seen become zeros, for they may hold anything.
    static DEVICE_MEMBER u64 find(const Sight& sight, u32 page, u32 first) {
        const u32 lane = threadIdx.x % 32;
        return lane < ROWS ? sight.seen_key(page, first + lane) : 0;
    }

    // Starts to read them: of what lanes have found, from lane `from_lane` on.
    DEVICE_MEMBER void load(u64 own, u32 from_lane = 0) {
        const u32 lane = threadIdx.x % 32, part = lane % 8;
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const u8* from = (const u8*)__shfl_sync(0xffffffffu, own, from_lane + i * 4 + lane / 8);
            scales[i] = make_uint2(0x7f7f7f7fu, 0x7f7f7f7fu);
            if (CODE_SLABS && from) scales[i].x = *(const u32*)(from + SCALES_AT);
            if (CODE_SLABS > 4 && from) scales[i].y = *(const u32*)(from + SCALES_AT + 4);
#pragma unroll
            for (u32 s = 0; s < CODE_SLABS; s++)
                codes[i][s] = from ? eight_bytes(from + CODES_AT + s * 64 + part * 8) : make_uint2(0, 0);
#pragma unroll
            for (u32 s = 0; s < HALF_SLABS; s++)
#pragma unroll
                for (u32 h = 0; h < 2; h++)
                    halves[i][s][h] = from ? eight_bytes(from + s * 128 + part * 16 + h * 8) : make_uint2(0, 0);
        }
    }

    // Waits for them, and puts them into a stage.
    DEVICE_MEMBER void put(u8* stage, u32 first) const {
        const u32 lane = threadIdx.x % 32, part = lane % 8;
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const u32 slot = first + i * 4 + lane / 8;
            u8* to = stage + slot * 128 + (part ^ (slot % 8)) * 16;
#pragma unroll
            for (u32 s = 0; s < CODE_SLABS; s++) {
                const u32 scale = (s < 4 ? scales[i].x : scales[i].y) >> s % 4 * 8 & 0xff;
                *(uint4*)(to + s * SLAB_BYTES) = widened(codes[i][s], scale);
            }
#pragma unroll
            for (u32 s = 0; s < HALF_SLABS; s++) {
                const uint2 low = halves[i][s][0], high = halves[i][s][1];
                *(uint4*)(to + (CODE_SLABS + s) * SLAB_BYTES) = make_uint4(low.x, low.y, high.x, high.y);
            }
        }
    }
};
#endif
