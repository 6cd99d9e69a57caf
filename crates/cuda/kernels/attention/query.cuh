// Queries on their way into shared memory as f16, slab by slab: [slabs of 64 numbers][columns][128 bytes], as operands of matrix units are,
// the 16-byte parts of a row swizzled by row.

// A query of DIM numbers. One warp.
template <u32 DIM> struct Query {
    static constexpr int PARTS = (DIM / 8 + 31) / 32;
    float4 numbers[PARTS][2];

    // Zeros where there is none.
    DEVICE_MEMBER void load(const float* query) {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const u32 part = i * 32 + lane;
            const bool is_one = query && part < DIM / 8;
            numbers[i][0] = is_one ? *(const float4*)(query + part * 8) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            numbers[i][1] = is_one ? *(const float4*)(query + part * 8 + 4) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }
    // As row `row`, where a slab has `rows` of them. A power of two brings the largest number near 1; what undoes it is returned.
    DEVICE_MEMBER float keep(u8* out, u32 rows, u32 row) const {
        const u32 lane = threadIdx.x % 32;
        float largest = 0.0f;
#pragma unroll
        for (int i = 0; i < PARTS; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float4 v = numbers[i][h];
                largest = fmaxf(fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
            }
#pragma unroll
        for (int width = 16; width > 0; width /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, width));
        // Its exponent, within what has an inverse.
        const u32 bits = __float_as_uint(largest) >> 23 & 0xff, exponent = bits < 27 ? 27 : bits > 227 ? 227 : bits;
        const float up = __uint_as_float((254 - exponent) << 23);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const u32 part = i * 32 + lane;
            const float4 a = numbers[i][0], b = numbers[i][1];
            const uint4 halves = make_uint4(pair_of_halves(a.x * up, a.y * up), pair_of_halves(a.z * up, a.w * up),
                                            pair_of_halves(b.x * up, b.y * up), pair_of_halves(b.z * up, b.w * up));
            if (part < DIM / 8) *(uint4*)(out + (part / 8 * rows + row) * 128 + ((part % 8) ^ (row % 8)) * 16) = halves;
        }
        return __uint_as_float(exponent << 23);
    }
};

// The queries of ROWS columns, which a block's SHARERS warps share out, up to MOST of a warp's on their way at once. `query_of` names a
// column's numbers, or none; `put` takes what undoes its factor.
template <u32 DIM, u32 ROWS, u32 SHARERS, u32 MOST, class From, class Put>
DEVICE void keep_queries(u8* out, const From& query_of, const Put& put) {
    constexpr u32 AT_ONCE = ROWS / SHARERS > MOST ? MOST : ROWS / SHARERS;
#pragma unroll 1
    for (u32 c = threadIdx.x / 32; c < ROWS; c += SHARERS * AT_ONCE) {
        Query<DIM> several[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) several[i].load(query_of(c + i * SHARERS));
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float down = several[i].keep(out, ROWS, c + i * SHARERS);
            if (threadIdx.x % 32 == 0) put(c + i * SHARERS, down);
        }
    }
}
