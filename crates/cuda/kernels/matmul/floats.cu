// Plain weights (F32, F16, BF16) times unquantized activations, in short chains of fused multiply-adds (chains.cuh).
//
// A lane has LANE_ROWS rows: a number that it reads from shared memory meets as many weights, since to read one takes longer than to
// multiply it. A warp has 4 or 8 times as many rows, and the chains of two parts or of one; the warps of a block have 1, 2 or 4 such groups
// of rows, and share the parts of each. Where a depth has more parts, they go through it in passes, a pass in steps: of each step,
// activations of all chains come to shared memory meanwhile.
//
// A launch may have several matrices of one input: each has blocks of its own, one behind the other.

#define WARPS (THREADS / 32)
// Chains of a pass of a block with a single group of four lanes of rows.
#define CHAIN_BITS_MAX 5
#define CHAINS_MAX (1 << CHAIN_BITS_MAX)
#define STEPS (CHAIN_DEPTH / STEP_FEATURES)
static_assert(COLUMNS >= 1 && STAGES == 2 && THREADS == 4 * CHAINS_MAX, "a tile of plain numbers, and two steps in shared memory");

// Where a matrix of the launch is: its weights, result, bias, rows, and first block.
struct Matrix {
    const uint4* weights;
    float* y;
    const float* bias;
    u32 rows;
    u32 first_block;
};

// As `codes` in codes.cu; `x_width` is the length of a row of x, 2^row_bits lanes of rows a warp has, 2^group_bits groups a block.
// Matrix m of the launch begins with block from_m. Shared memory has [2][COLUMNS][chains of a pass][STEP_STRIDE] numbers.
KERNEL __launch_bounds__(THREADS) floats(const u8* weights, const u8* weights_1, const u8* weights_2, const u8* weights_3, const float* x,
                                         float* y, float* y_1, float* y_2, float* y_3, const float* bias, const float* bias_1,
                                         const float* bias_2, const float* bias_3, const u32* starts, const u32* order, u32 rows,
                                         u32 rows_1, u32 rows_2, u32 rows_3, u32 from_1, u32 from_2, u32 from_3, u32 depth, u32 tokens,
                                         u32 slots, u32 x_width, u32 row_bits, u32 group_bits, u32 sliced,
                                         u32 beside) {
    const Turn turn(beside);
    DYNAMIC_SHARED(float, shared);
    __shared__ u64 inputs[COLUMNS];
    // Sums of parts of a pass, and of the one before; then of all parts before.
    __shared__ float sums[2][CHAINS_MAX * LANE_ROWS * COLUMNS], totals[8 * WARPS * LANE_ROWS * COLUMNS];
    Matrix m = {(const uint4*)weights, y, bias, rows, 0};
    if (blockIdx.x >= from_1) m = {(const uint4*)weights_1, y_1, bias_1, rows_1, from_1};
    if (blockIdx.x >= from_2) m = {(const uint4*)weights_2, y_2, bias_2, rows_2, from_2};
    if (blockIdx.x >= from_3) m = {(const uint4*)weights_3, y_3, bias_3, rows_3, from_3};

    // All but the depth are powers of two. The rows of a lane are `apart`.
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, apart = 1 << row_bits;
    const u32 chain_bits = CHAIN_BITS_MAX + 2 - row_bits - group_bits, chains = 1 << chain_bits, parts_of_pass = chains / 4;
    const u32 rows_of_block = LANE_ROWS << (row_bits + group_bits), first_row = (blockIdx.x - m.first_block) * rows_of_block;
    const u32 of_warp = warp << (5 - row_bits) | lane >> row_bits, chain = of_warp & (chains - 1);
    const u32 row_of_block = (of_warp >> chain_bits) * LANE_ROWS << row_bits | lane & (apart - 1), row = first_row + row_of_block;
    const u32 parts = (depth + PART_DEPTH - 1) / PART_DEPTH, passes = max((parts + parts_of_pass - 1) / parts_of_pass, 1u);
    const u32 tiles = (m.rows + 31) / 32, runs = (depth + RUN - 1) / RUN, pass_features = parts_of_pass * PART_DEPTH;
    // Lanes without a row have no weights, and so no features.
    const u32 end = row / 32 < tiles ? depth : 0;
    const uint4* base = m.weights + (blockIdx.z * (u64)tiles + row / 32) * runs * 32 + row % 32;
    auto first_of = [&](u32 step) { return step / STEPS * pass_features + chain * CHAIN_DEPTH + step % STEPS * STEP_FEATURES; };

    const u32 stage = COLUMNS * chains * STEP_STRIDE;
    const bool is_aligned = (x_width | depth) % 4 == 0;
    auto copy_x = [&](u32 step) {
        float* to = shared + step % STAGES * stage;
        const u32 quads = STEP_FEATURES / 4, before = step / STEPS * pass_features + step % STEPS * STEP_FEATURES;
        for (u32 piece = threadIdx.x; piece < COLUMNS * chains * quads; piece += THREADS) {
            const u32 quad = piece % quads, of_chain = piece / quads & (chains - 1), column = piece / quads >> chain_bits;
            const u32 k = before + of_chain * CHAIN_DEPTH + quad * 4;
            float* place = to + (column * chains + of_chain) * STEP_STRIDE + quad * 4;
            const float* from = x + inputs[column] + k;
            if (is_aligned && k + 4 <= depth) {
                copy_16(place, from);
            } else {
                for (u32 i = 0; i < 4; i++)
                    if (k + i < depth) copy_4(place + i, from + i);
            }
        }
    };

    // Weights do not wait for earlier work; lists of places do.
    const bool is_listed = starts != 0;
    Weights<LANE_ROWS> mine;
    if (!is_listed) mine.bring_all(base, apart, first_of(0), end);
    after_earlier_work(turn);
    const Columns columns = columns_of_tile(blockIdx.z, starts, order, tokens, slots, COLUMNS, blockIdx.y);
    if (columns.first >= columns.count) return;
    const u32 slice = sliced ? blockIdx.z : 0;
    if (threadIdx.x < COLUMNS) inputs[threadIdx.x] = (u64)columns.row(threadIdx.x) * x_width + slice * depth;
    if (is_listed) mine.bring_all(base, apart, first_of(0), end);
    __syncthreads();
    copy_x(0);
    end_of_copies();

    // Adds the parts of a pass, in order, to those before.
    const u32 cells = rows_of_block * COLUMNS, y_stride = sliced ? gridDim.z * m.rows : m.rows;
    auto add_parts = [&](u32 pass) {
        const u32 count = min(parts - pass * parts_of_pass, parts_of_pass);
        for (u32 cell = threadIdx.x; cell < cells; cell += THREADS) {
            float* of_cell = sums[pass % 2] + cell;
            if (pass > 0) of_cell[0] = totals[cell] + of_cell[0];
            float sum = sum_in_order(of_cell, cells, count);
            totals[cell] = sum;
            const u32 of_matrix = first_row + (cell & (rows_of_block - 1)), c = (cell >> (row_bits + group_bits)) / LANE_ROWS;
            if (pass + 1 < passes || of_matrix >= m.rows || !columns.has(c)) continue;
            if (m.bias) sum = sum + m.bias[blockIdx.z * m.rows + of_matrix];
            m.y[(u64)columns.place(c) * y_stride + slice * m.rows + of_matrix] = sum;
        }
    };
    float acc[LANE_ROWS][COLUMNS] = {};
    for (u32 step = 0; step < passes * STEPS; step++) {
        wait_for_copies<0>();
        __syncthreads();
        if (step + 1 < passes * STEPS) copy_x(step + 1);
        end_of_copies();
        if (step > 0 && step % STEPS == 0) add_parts(step / STEPS - 1);
        const float* x_here = shared + step % STAGES * stage + chain * STEP_STRIDE;
        mine.go_on(acc, x_here, chains * STEP_STRIDE, base, apart, first_of(step), first_of(step + 1), end);
        if (step % STEPS + 1 < STEPS) continue;
        const u32 pass = step / STEPS, begin = pass * pass_features + chain / 4 * PART_DEPTH;
#pragma unroll
        for (u32 i = 0; i < LANE_ROWS * COLUMNS; i++) {
            const u32 r = i / COLUMNS, c = i % COLUMNS;
            const float sum = part_of_chains(acc[r][c], apart, depth - begin);
            acc[r][c] = 0.0f;
            if (chain % 4 != 0 || begin >= depth && begin > 0) continue;
            sums[pass % 2][(chain / 4 * COLUMNS + c) * rows_of_block + row_of_block + r * apart] = sum;
        }
    }
    __syncthreads();
    add_parts(passes - 1);
}
