// Plain weights (F32, F16, BF16) times unquantized activations: one chain of fused multiply-adds a segment, as numerics.rs says.
//
// A thread holds one weight row and COLUMNS columns; a warp is 32 rows of one segment. Weights lie [row tiles][depth / RUN][32][RUN],
// RUN of them 16 bytes, so that a warp's load is 512 bytes in a row. The depth is padded to whole runs; the padding is not read.

#define RUN (16 / VALUE_BYTES)
static_assert(COLUMNS >= 1 && (VALUE_BYTES == 2 || VALUE_BYTES == 4), "a tile of plain numbers");

DEVICE float value_of(const uint4& v, int i) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#if VALUE_BYTES == 4
    return __uint_as_float(words[i]);
#elif IS_BF16
    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
#else
    return half_to_float(words[i / 2] >> (i % 2 * 16));
#endif
}

// As `codes` in codes.cu; `x_width` is the length of a row of x.
KERNEL __launch_bounds__(THREADS) floats(const u8* weights, const float* x, float* y, const float* bias, const u32* starts,
                                         const u32* order, u32 rows, u32 depth, u32 tokens, u32 slots, u32 x_width, u32 y_stride,
                                         u32 split, u32 groups, u32 sliced) {
    begin_in_turn();
    DYNAMIC_SHARED(float, shared);
    Columns columns = columns_of_tile(blockIdx.z, starts, order, tokens, slots, COLUMNS, blockIdx.y);
    if (columns.first >= columns.count) return;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 tiles = (rows + 31) / 32, tile = blockIdx.x * groups + warp / split;
    const u32 runs = (depth + RUN - 1) / RUN, slice = sliced ? blockIdx.z : 0;
    u32 start, end;
    segment_of(depth, split, warp % split, start, end);
    float acc[COLUMNS] = {};
    if (tile < tiles) {
        const uint4* base = (const uint4*)weights + (blockIdx.z * (u64)tiles + tile) * runs * 32 + lane;
        const float* in[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) in[c] = x + (u64)columns.row(c) * x_width + slice * depth;
        u32 k = start;
#pragma unroll 2
        for (; k + RUN <= end; k += RUN) {
            uint4 w = load_once(base + (u64)(k / RUN) * 32);
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
#pragma unroll
                for (int i = 0; i < RUN; i++) acc[c] = fma(value_of(w, i), __ldg(in[c] + k + i), acc[c]);
        }
        if (k < end) {
            uint4 w = load_once(base + (u64)(k / RUN) * 32);
#pragma unroll
            for (int i = 0; i < RUN; i++)
                if (k + i < end)
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) acc[c] = fma(value_of(w, i), in[c][k + i], acc[c]);
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) shared[(warp * COLUMNS + c) * 32 + lane] = acc[c];
    __syncthreads();
    for (u32 cell = threadIdx.x; cell < groups * COLUMNS * 32; cell += blockDim.x) {
        u32 row_here = cell % 32, column = cell / 32 % COLUMNS, group = cell / (32 * COLUMNS);
        u32 row = (blockIdx.x * groups + group) * 32 + row_here;
        if (row >= rows || !columns.has(column)) continue;
        const float* part = shared + (group * split * COLUMNS + column) * 32 + row_here;
        float sum = part[0];
        for (u32 s = 1; s < split; s++) sum = sum + part[s * COLUMNS * 32];
        if (bias) sum = sum + bias[blockIdx.z * rows + row];
        y[(u64)columns.place(column) * y_stride + slice * rows + row] = sum;
    }
}
