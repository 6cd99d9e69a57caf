// Chains of products with plain weights; numerics.rs, `dot_plain`. A lane has a chain of a row, or of several: a warp has some rows and as
// many neighbouring chains of each as make it full, whole parts. Chains allow no pause, so a lane's weights of a step are in registers
// before it begins, and what comes next takes their place one by one.
//
// Weights lie [row tiles][depth / RUN][32][RUN].

static_assert(PART_DEPTH == 4 * CHAIN_DEPTH && CHAIN_DEPTH % STEP_FEATURES == 0, "four chains a part, whole steps a chain");

#define STEP_PIECES (STEP_FEATURES / RUN)
// Numbers from one chain's step to the next in shared memory: apart by as much as spreads neighbours over the banks.
#define STEP_STRIDE (STEP_FEATURES + 4)

// A step of the weights of a lane's ROWS rows, which are `apart` from each other in a tile.
template <int ROWS> struct Weights {
    uint4 held[ROWS][STEP_PIECES];

    // From feature `first` of the rows from `row` on, as far as there are any.
    DEVICE_MEMBER void bring(int piece, const uint4* row, u32 apart, u32 first, u32 end) {
        if (first + piece * RUN >= end) return;
#pragma unroll
        for (int r = 0; r < ROWS; r++) held[r][piece] = load_once(row + (u64)(first / RUN + piece) * 32 + r * apart);
    }
    DEVICE_MEMBER void bring_all(const uint4* row, u32 apart, u32 first, u32 end) {
#pragma unroll
        for (int i = 0; i < STEP_PIECES; i++) bring(i, row, apart, first, end);
    }

    // Goes on with the chains of `COLUMNS_HERE` inputs, `stride` numbers apart, from feature `first`; meanwhile the step from `next` comes.
    template <int COLUMNS_HERE>
    DEVICE_MEMBER void go_on(float (&acc)[ROWS][COLUMNS_HERE], const float* x, u32 stride, const uint4* row, u32 apart, u32 first,
                             u32 next, u32 end) {
        if (first + STEP_FEATURES <= end) {
#pragma unroll
            for (int i = 0; i < STEP_PIECES; i++) {
                uint4 pieces[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; r++) pieces[r] = held[r][i];
                bring(i, row, apart, next, end);
#pragma unroll
                for (int v = 0; v < RUN; v += 4) {
                    float w[ROWS][4];
#pragma unroll
                    for (int k = 0; k < ROWS * 4; k++) w[k / 4][k % 4] = value_of(pieces[k / 4], v + k % 4);
#pragma unroll
                    for (int c = 0; c < COLUMNS_HERE; c++) {
                        const float4 in = *(const float4*)(x + c * stride + i * RUN + v);
#pragma unroll
                        for (int r = 0; r < ROWS; r++) {
                            acc[r][c] = fma(w[r][0], in.x, acc[r][c]);
                            acc[r][c] = fma(w[r][1], in.y, acc[r][c]);
                            acc[r][c] = fma(w[r][2], in.z, acc[r][c]);
                            acc[r][c] = fma(w[r][3], in.w, acc[r][c]);
                        }
                    }
                }
            }
        } else {
            // The end of the depth.
#pragma unroll
            for (int k = 0; k < STEP_FEATURES; k++)
                if (first + k < end)
#pragma unroll
                    for (int i = 0; i < ROWS * COLUMNS_HERE; i++) {
                        float& sum = acc[i / COLUMNS_HERE][i % COLUMNS_HERE];
                        sum = fma(value_of(held[i / COLUMNS_HERE][k / RUN], k % RUN), x[i % COLUMNS_HERE * stride + k], sum);
                    }
        }
    }
};

// The sum of a part, from its chains, which are `rows` lanes apart; the first of a part's chains has it. `end`: where the row ends behind
// the part's beginning.
DEVICE float part_of_chains(float chain, u32 rows, u32 end) {
    float sum = chain;
#pragma unroll
    for (u32 i = 1; i < 4; i++) {
        const float next = __shfl_down_sync(0xffffffffu, chain, i * rows);
        if (i * CHAIN_DEPTH < end) sum = sum + next;
    }
    return sum;
}
