// Chains of products with plain weights; numerics.rs, `dot_plain`. A lane has a chain of a row: a warp has some rows and as many
// neighbouring chains of each as make it full, whole parts. Chains allow no pause, so a lane's weights of a step are in registers before it
// begins, and what comes next takes their place one by one.
//
// Weights lie [row tiles][depth / RUN][32][RUN].

static_assert(PART_DEPTH == 4 * CHAIN_DEPTH && CHAIN_DEPTH % STEP_FEATURES == 0, "four chains a part, whole steps a chain");

#define STEP_PIECES (STEP_FEATURES / RUN)
// Numbers from one chain's step to the next in shared memory: apart by as much as spreads neighbours over the banks.
#define STEP_STRIDE (STEP_FEATURES + 4)

// A step of a lane's weights.
struct Weights {
    uint4 held[STEP_PIECES];

    // From feature `first` of a row at `row`, as far as there are any.
    DEVICE_MEMBER void bring(int piece, const uint4* row, u32 first, u32 end) {
        if (first + piece * RUN < end) held[piece] = load_once(row + (u64)(first / RUN + piece) * 32);
    }
    DEVICE_MEMBER void bring_all(const uint4* row, u32 first, u32 end) {
#pragma unroll
        for (int i = 0; i < STEP_PIECES; i++) bring(i, row, first, end);
    }

    // Goes on with the chains of `COLUMNS_HERE` inputs, `stride` numbers apart, from feature `first`; meanwhile the step from `next` comes.
    template <int COLUMNS_HERE>
    DEVICE_MEMBER void go_on(float (&acc)[COLUMNS_HERE], const float* x, u32 stride, const uint4* row, u32 first, u32 next, u32 end) {
        if (first + STEP_FEATURES <= end) {
#pragma unroll
            for (int i = 0; i < STEP_PIECES; i++) {
                const uint4 piece = held[i];
                bring(i, row, next, end);
#pragma unroll
                for (int v = 0; v < RUN; v += 4) {
                    const float w[4] = {value_of(piece, v), value_of(piece, v + 1), value_of(piece, v + 2), value_of(piece, v + 3)};
#pragma unroll
                    for (int c = 0; c < COLUMNS_HERE; c++) {
                        const float4 in = *(const float4*)(x + c * stride + i * RUN + v);
                        acc[c] = fma(w[0], in.x, acc[c]);
                        acc[c] = fma(w[1], in.y, acc[c]);
                        acc[c] = fma(w[2], in.z, acc[c]);
                        acc[c] = fma(w[3], in.w, acc[c]);
                    }
                }
            }
        } else {
            // The end of the depth.
#pragma unroll
            for (int k = 0; k < STEP_FEATURES; k++)
                if (first + k < end)
#pragma unroll
                    for (int c = 0; c < COLUMNS_HERE; c++) acc[c] = fma(value_of(held[k / RUN], k % RUN), x[c * stride + k], acc[c]);
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
