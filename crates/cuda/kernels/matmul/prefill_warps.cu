// Products of prompt rows on cards that are not Hopper: the arithmetic of prefill.cu, by the matrix instruction of a warp.
//
// A warp holds 16 weight rows and TOKENS columns. It reads its weights once, expands them into the first operand, and reads the second
// through the first-level cache, which the warps of a block share. Operands, the order along the depth and the parts of a sum are those of
// prefill.cu; what a tensor core rounds within an instruction is its own.

#define BLOCK 64

static_assert(TOKENS % 8 == 0 && SPAN * BLOCK % CHUNK_FEATURES == 0, "columns by eights, parts of whole chunks");

// Parameters as in prefill.cu. blockIdx: rows, columns, segments.
KERNEL __launch_bounds__(THREADS) prefill_warps(const u8* weights, const u8* x, const float* x_scales, float* y, const float* bias,
                                                const u32* starts, const u32* order, u32 rows, u32 depth, u32 tokens, u32 x_eights,
                                                u32 y_stride, u32 splits, u32 sliced, float up, float down) {
    after_earlier_work();
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, segment = blockIdx.z, slice = sliced ? segment : 0;
    const u32 start = starts ? starts[segment] : 0, count = starts ? starts[segment + 1] - start : tokens;
    const u32 first = blockIdx.y * TOKENS, first_row = (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * 16;
    if (first >= count || first_row >= rows) return;
    const u32 tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, chunks = (depth + CHUNK_FEATURES - 1) / CHUNK_FEATURES;
    const u8* own = weights + ((u64)segment * tiles + first_row / TILE_ROWS) * chunks * CHUNK + first_row % TILE_ROWS * 16;
    // Eights of rows never hold two segments' (quantize/halves.cu).
    const u32 first_x = (starts ? (start + 7) / 8 * 8 + 8 * segment : 0) + first;
    const u32 blocks = (depth + BLOCK - 1) / BLOCK, spans = (blocks + SPAN - 1) / SPAN, up_pair = pair_of_halves(up, up);
    const u8* x_own = x + ((u64)slice * blocks * x_eights + first_x / 8) * (8 * BLOCK * 2) + g * (BLOCK * 2) + t * 4;

    float totals[TOKENS / 8][4];
    for (u32 s = 0; s < splits; s++) {
        float sums[TOKENS / 8][4] = {};
        u32 last = spans * (s + 1) / splits * SPAN;
        for (u32 b = spans * s / splits * SPAN; b < last && b < blocks; b++) {
            Unit units[2];
            if ((b + 1) * BLOCK <= depth) {
                load_block(units, own, b, lane, up, up_pair);
            } else {
                units[0].load_within(own, 2 * b, lane, up, up_pair, chunks);
                units[1].load_within(own, 2 * b + 1, lane, up, up_pair, chunks);
            }
            Operands a[2];
            units[0].expand(a[0], up);
            units[1].expand(a[1], up);
            const u8* at = x_own + (u64)b * x_eights * (8 * BLOCK * 2);
#pragma unroll
            for (int c = 0; c < TOKENS / 8; c++) {
                // An eight that holds no column may lie beyond the numbers.
                if (first + c * 8 >= count) break;
#pragma unroll
                for (u32 h = 0; h < 4; h++) {
                    const u8* parts = at + c * (8 * BLOCK * 2);
                    u32 even = *(const u32*)(parts + ((2 * h) ^ g) * 16), odd = *(const u32*)(parts + ((2 * h + 1) ^ g) * 16);
                    multiply_numbers(sums[c], a[h / 2].half[h % 2], even, odd);
                }
            }
        }
#pragma unroll
        for (int c = 0; c < TOKENS / 8; c++)
#pragma unroll
            for (int i = 0; i < 4; i++) totals[c][i] = s == 0 ? sums[c][i] : totals[c][i] + sums[c][i];
    }
#pragma unroll
    for (int c = 0; c < TOKENS / 8; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 column = first + c * 8 + t * 2 + i % 2, row = first_row + g + i / 2 * 8;
            if (column >= count || row >= rows) continue;
            float value = totals[c][i] * (x_scales[first_x + c * 8 + t * 2 + i % 2] * down);
            const u32 place = order ? order[start + column] : column;
            y[(u64)place * y_stride + slice * rows + row] = bias ? value + bias[segment * rows + row] : value;
        }
}
