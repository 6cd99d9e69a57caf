// Plain weights (F32, F16, BF16) times unquantized activations: one chain of fused multiply-adds a segment, as numerics.rs says.
//
// A lane holds one segment of one weight row, and COLUMNS columns: a warp is all segments of 4 rows where the depth has eight, of 8 where
// it has four, and so on. A chain of thousands of links allows no pause, so weights and activations of the next steps are on their
// way to shared memory meanwhile, and matrices of a few rows are spread over several processors. A step is RUNS runs of each segment.
//
// Weights lie [row tiles][depth / RUN][32][RUN]. The depth is padded to whole runs; the padding is not read.
//
// A launch may have several matrices of one input: each has blocks of its own, one behind the other.

// Features of a segment in a step, and numbers between two segments' activations: apart by as much as spreads them over all banks.
#define STEP_FEATURES (RUNS * RUN)
#define STEP_QUADS (STEP_FEATURES / 4)
#define X_STRIDE (STEP_FEATURES + 4)
// Pieces of 16 bytes that a warp's weights of a step take, with as much between segments.
#define WARP_PIECES (32 * (RUNS + 1))
// Quads of activations of a column that are in registers at once.
#define HELD_QUADS (COLUMNS == 1 ? STEP_QUADS : COLUMNS == 4 ? 2 : 1)
static_assert(COLUMNS >= 1 && STAGES >= 2, "a tile of plain numbers");

// Where a matrix of the launch is: its weights, result, bias, rows, and first block.
struct Matrix {
    const uint4* weights;
    float* y;
    const float* bias;
    u32 rows;
    u32 first_block;
};

// As `codes` in codes.cu; `x_width` is the length of a row of x. Matrix m of the launch begins with block from_m.
KERNEL __launch_bounds__(THREADS) floats(const u8* weights, const u8* weights_1, const u8* weights_2, const u8* weights_3, const float* x,
                                         float* y, float* y_1, float* y_2, float* y_3, const float* bias, const float* bias_1,
                                         const float* bias_2, const float* bias_3, const u32* starts, const u32* order, u32 rows,
                                         u32 rows_1, u32 rows_2, u32 rows_3, u32 from_1, u32 from_2, u32 from_3, u32 depth, u32 tokens,
                                         u32 slots, u32 x_width, u32 split, u32 groups, u32 sliced) {
    let_next_start();
    DYNAMIC_SHARED(uint4, shared);
    __shared__ u32 begins[9];
    __shared__ u64 inputs[COLUMNS];
    Matrix m = {(const uint4*)weights, y, bias, rows, 0};
    if (blockIdx.x >= from_1) m = {(const uint4*)weights_1, y_1, bias_1, rows_1, from_1};
    if (blockIdx.x >= from_2) m = {(const uint4*)weights_2, y_2, bias_2, rows_2, from_2};
    if (blockIdx.x >= from_3) m = {(const uint4*)weights_3, y_3, bias_3, rows_3, from_3};

    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 wide_bits = split <= 1 ? 0 : split <= 2 ? 1 : split <= 4 ? 2 : 3, wide = 1 << wide_bits, rows_of_warp = 32 / wide;
    const u32 segment = lane / rows_of_warp;
    const u32 row = ((blockIdx.x - m.first_block) * groups + warp) * rows_of_warp + lane % rows_of_warp;
    const u32 tiles = (m.rows + 31) / 32, runs = (depth + RUN - 1) / RUN;
    u32 start = 0, end = 0, longest = 0;
    if (segment < split) segment_of(depth, split, segment, start, end);
    for (u32 s = 0; s < split; s++) {
        u32 from, to;
        segment_of(depth, split, s, from, to);
        longest = max(longest, to - from);
        if (threadIdx.x == 0) begins[s] = from;
    }
    if (threadIdx.x == 0) begins[split] = depth;
    const u32 steps = (longest + STEP_FEATURES - 1) / STEP_FEATURES;

    // Of each step: the warps' weights, then activations [column][segment][X_STRIDE].
    const u32 x_pieces = COLUMNS * wide * (X_STRIDE / 4), stage_pieces = groups * WARP_PIECES + x_pieces;
    const u32 own = warp * WARP_PIECES + segment * (RUNS + 1) * rows_of_warp + lane % rows_of_warp;
    const uint4* base = m.weights + (blockIdx.z * (u64)tiles + row / 32) * runs * 32 + row % 32;
    const bool has_row = row / 32 < tiles;
    auto copy_weights = [&](u32 step) {
        uint4* to = shared + step % STAGES * stage_pieces + own;
        const u32 first = start + step * STEP_FEATURES;
#pragma unroll
        for (u32 i = 0; i < RUNS; i++)
            if (has_row && first + i * RUN < end) copy_16_once(to + i * rows_of_warp, base + (u64)(first / RUN + i) * 32);
    };
    const bool is_aligned = (x_width | depth) % 4 == 0;
    auto copy_x = [&](u32 step) {
        float* to = (float*)(shared + step % STAGES * stage_pieces + groups * WARP_PIECES);
        for (u32 piece = threadIdx.x; piece < COLUMNS * wide * STEP_QUADS; piece += THREADS) {
            const u32 quad = piece % STEP_QUADS, s = piece / STEP_QUADS & (wide - 1), column = piece / STEP_QUADS >> wide_bits;
            if (s >= split) continue;
            const u32 k = begins[s] + step * STEP_FEATURES + quad * 4;
            float* place = to + (column * wide + s) * X_STRIDE + quad * 4;
            const float* from = x + inputs[column] + k;
            if (is_aligned && k + 4 <= begins[s + 1]) {
                copy_16(place, from);
            } else {
                for (u32 i = 0; i < 4; i++)
                    if (k + i < begins[s + 1]) copy_4(place + i, from + i);
            }
        }
    };

    // Weights do not wait for earlier work; lists of places do.
    const bool is_listed = starts != 0;
    if (!is_listed)
        for (u32 step = 0; step < STAGES - 1 && step < steps; step++) copy_weights(step);
    after_earlier_work();
    const Columns columns = columns_of_tile(blockIdx.z, starts, order, tokens, slots, COLUMNS, blockIdx.y);
    if (columns.first >= columns.count) return;
    const u32 slice = sliced ? blockIdx.z : 0;
    if (threadIdx.x < COLUMNS) inputs[threadIdx.x] = (u64)columns.row(threadIdx.x) * x_width + slice * depth;
    __syncthreads();
    for (u32 step = 0; step < STAGES - 1; step++) {
        if (step < steps && is_listed) copy_weights(step);
        if (step < steps) copy_x(step);
        end_of_copies();
    }
    float acc[COLUMNS] = {};
    for (u32 step = 0; step < steps; step++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        const u32 next = step + STAGES - 1;
        if (next < steps) {
            copy_weights(next);
            copy_x(next);
        }
        end_of_copies();
        const uint4* weights_here = shared + step % STAGES * stage_pieces + own;
        const float* x_here = (const float*)(shared + step % STAGES * stage_pieces + groups * WARP_PIECES) + segment * X_STRIDE;
        const u32 first = start + step * STEP_FEATURES;
        if (first + STEP_FEATURES <= end) {
            // All of a step comes to registers before the chains go on: they would wait for each load otherwise.
            uint4 w[RUNS];
#pragma unroll
            for (u32 i = 0; i < RUNS; i++) w[i] = weights_here[i * rows_of_warp];
#pragma unroll
            for (u32 at = 0; at < STEP_QUADS; at += HELD_QUADS) {
                float4 in[COLUMNS][HELD_QUADS];
#pragma unroll
                for (u32 c = 0; c < COLUMNS; c++)
#pragma unroll
                    for (u32 q = 0; q < HELD_QUADS; q++) in[c][q] = *(const float4*)(x_here + c * wide * X_STRIDE + 4 * (at + q));
#pragma unroll
                for (u32 q = 0; q < HELD_QUADS; q++)
#pragma unroll
                    for (u32 c = 0; c < COLUMNS; c++) {
                        const uint4 run = w[(at + q) * 4 / RUN];
                        const u32 first_value = (at + q) * 4 % RUN;
                        acc[c] = fma(value_of(run, first_value), in[c][q].x, acc[c]);
                        acc[c] = fma(value_of(run, first_value + 1), in[c][q].y, acc[c]);
                        acc[c] = fma(value_of(run, first_value + 2), in[c][q].z, acc[c]);
                        acc[c] = fma(value_of(run, first_value + 3), in[c][q].w, acc[c]);
                    }
            }
        } else {
            for (u32 k = first; k < end; k += RUN) {
                const uint4 w = weights_here[(k - first) / RUN * rows_of_warp];
#pragma unroll
                for (u32 i = 0; i < RUN; i++)
                    if (k + i < end)
#pragma unroll
                        for (u32 c = 0; c < COLUMNS; c++) acc[c] = fma(value_of(w, i), x_here[c * wide * X_STRIDE + k + i - first], acc[c]);
            }
        }
    }
    const u32 y_stride = sliced ? gridDim.z * m.rows : m.rows;
#pragma unroll
    for (u32 c = 0; c < COLUMNS; c++) {
        float sum = acc[c];
        for (u32 s = 1; s < split; s++) sum = sum + __shfl_sync(0xffffffffu, acc[c], s * rows_of_warp + lane % rows_of_warp);
        if (segment != 0 || row >= m.rows || !columns.has(c)) continue;
        if (m.bias) sum = sum + m.bias[blockIdx.z * m.rows + row];
        m.y[(u64)columns.place(c) * y_stride + slice * m.rows + row] = sum;
    }
}
