// The highest of a row's scores, ascending; crates/ops/src/latent.rs, `select_rows`. One block a row.
//
// Scores become whole numbers in the same order. The lowest that is selected is found bit by bit, by counting; then each thread
// knows how many of a run of neighbours are selected, and how many before them.

#define WARPS (THREADS / 32)
// Scores that a thread holds; where there are more than all threads hold, they are read again and again.
#define HELD 32

// NaN before every number, and both zeros equal.
DEVICE u32 order_of(float score) {
    if (score != score) return 0xffffffffu;
    const u32 bits = __float_as_uint(score + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The sum over all threads, in all of them. `parts` has a place a warp.
DEVICE u32 sum_of_block(u32 value, u32* parts) {
    value = __reduce_add_sync(0xffffffffu, value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    u32 sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += parts[w];
    return sum;
}

// The sum over the threads before this one.
DEVICE u32 sum_before(u32 value, u32* parts) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 upto = value;
#pragma unroll
    for (int width = 1; width < 32; width *= 2) {
        const u32 other = __shfl_up_sync(0xffffffffu, upto, width);
        if (lane >= width) upto += other;
    }
    __syncthreads();
    if (lane == 31) parts[warp] = upto;
    __syncthreads();
    u32 before = upto - value;
    for (u32 w = 0; w < warp; w++) before += parts[w];
    return before;
}

// scores [row of the chunk][stride] as `index_scores` leaves them; selected (rows, top_k).
KERNEL __launch_bounds__(THREADS) select(const float* scores, u32* selected, const u32* rows, const u32* lists, u32 first, u32 ratio,
                                         u32 top_k, u32 stride) {
    __shared__ u32 parts[WARPS];
    begin_in_turn();
    const Step step = {rows, lists};
    const u32 row = first + blockIdx.x, complete = (step.position(row) + 1) / ratio, t = threadIdx.x;
    u32* out = selected + (u64)row * top_k;
    if (complete <= top_k) {
        for (u32 i = t; i < complete; i += THREADS) out[i] = i;
        return;
    }
    const float* score = scores + (u64)blockIdx.x * stride;
    const bool is_held = complete <= HELD * THREADS;
    u32 held[HELD] = {};
    if (is_held) {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (t + i * THREADS < complete) held[i] = order_of(score[t + i * THREADS]);
    }
    u32 lowest = 0;
    for (u32 bit = 0x80000000u; bit; bit >>= 1) {
        // What is not there is zero, and no candidate is.
        const u32 candidate = lowest | bit;
        u32 count = 0;
        if (is_held) {
#pragma unroll
            for (int i = 0; i < HELD; i++) count += held[i] >= candidate;
        } else {
#pragma unroll 4
            for (u32 i = t; i < complete; i += THREADS) count += order_of(score[i]) >= candidate;
        }
        if (sum_of_block(count, parts) >= top_k) lowest = candidate;
    }
    const u32 each = (complete + THREADS - 1) / THREADS;
    const u32 begin = t * each < complete ? t * each : complete, end = begin + each < complete ? begin + each : complete;
    u32 above = 0, equal = 0;
    for (u32 i = begin; i < end; i++) {
        const u32 order = order_of(score[i]);
        above += order > lowest;
        equal += order == lowest;
    }
    // Of those that are equal to the lowest, the first ones.
    const u32 taken = top_k - sum_of_block(above, parts);
    u32 equal_before = sum_before(equal, parts);
    u32 at = sum_before(above, parts) + (equal_before < taken ? equal_before : taken);
    for (u32 i = begin; i < end; i++) {
        const u32 order = order_of(score[i]);
        const bool is_selected = order > lowest || (order == lowest && equal_before < taken);
        equal_before += order == lowest;
        if (is_selected) out[at++] = i;
    }
}
