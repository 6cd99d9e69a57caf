// Causal softmax attention in the canonical order of numerics.rs: page by page, a thread for each key, then one for each feature.
// One block is a row and a query head. Every sum is a chain in the order that numerics.rs gives, so a row has the reference's bits.

#define PER_THREAD ((HEAD_DIM + THREADS - 1) / THREADS)
static_assert(THREADS >= PAGE && THREADS % 32 == 0, "a thread for each key of a page");

KERNEL __launch_bounds__(THREADS) attention(const float* queries, const u8* key_pages, const u8* value_pages, const float* sinks,
                                            float* y, const u32* rows, const u32* lists, u32 heads, u32 kv_heads, u32 ring,
                                            u32 window, float scale, u32 capped, float cap) {
    __shared__ float query[HEAD_DIM];
    __shared__ float weights[PAGE];
    __shared__ u64 pages[PAGE];
    __shared__ float state[3]; // highest so far, total, factor on earlier sums
    Step step = {rows, lists};
    const u32 head = blockIdx.x, row = blockIdx.y, t = threadIdx.x, kv_head = head / (heads / kv_heads);
    const u64 at = ((u64)row * heads + head) * HEAD_DIM;
    for (u32 d = t; d < HEAD_DIM; d += THREADS) query[d] = queries[at + d] * scale;
    const u32 end = step.position(row) + 1, begin = window && window < end ? end - window : 0;
    float highest = sinks ? sinks[head] : __uint_as_float(0xff800000u), total = sinks ? 1.0f : 0.0f;
    bool known = sinks != 0;
    float sums[PER_THREAD] = {};
    __syncthreads();

    for (u32 page = begin / PAGE; page * PAGE < end; page++) {
        const u32 first = page * PAGE;
        const u32 from = begin > first ? begin - first : 0, to = end < first + PAGE ? end - first : PAGE;
        if (t < PAGE) {
            float score = __uint_as_float(0xff800000u);
            if (t >= from && t < to) {
                u32 place = step.place(row, first + t);
                u64 base = ((u64)step.page(row, place, ring) * kv_heads + kv_head) * HEAD_BYTES;
                // The page of the slot, and the slot in its low bits: pages are multiples of 64 bytes.
                pages[t] = base | (place % PAGE);
                score = 0.0f;
#pragma unroll 16
                for (u32 d = 0; d < HEAD_DIM; d++) score = fma(query[d], kept_key(key_pages + base, d, place % PAGE), score);
                if (capped) score = canonical_soft_cap(score, cap);
            }
            weights[t] = score;
        }
        __syncthreads();
        if (t < 32) {
            // Maxima ignore NaN.
            float a = weights[t], b = weights[t + 32], now = highest;
            now = a > now ? a : now;
            now = b > now ? b : now;
#pragma unroll
            for (int width = 16; width > 0; width /= 2) {
                float other = __shfl_xor_sync(0xffffffffu, now, width);
                now = other > now ? other : now;
            }
            a = t >= from && t < to ? canonical_exp(a - now) : 0.0f;
            b = t + 32 >= from && t + 32 < to ? canonical_exp(b - now) : 0.0f;
            weights[t] = a;
            weights[t + 32] = b;
            __syncwarp();
            float lane = t < 16 ? ((weights[t] + weights[t + 16]) + weights[t + 32]) + weights[t + 48] : 0.0f;
            float sum = add_lanes(lane);
            float factor = known ? canonical_exp(highest - now) : 0.0f;
            if (t == 0) {
                state[0] = now;
                state[1] = fma(total, factor, sum);
                state[2] = factor;
            }
        }
        __syncthreads();
        highest = state[0];
        total = state[1];
        known = true;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) sums[i] = sums[i] * state[2];
        for (u32 s = from; s < to; s++) {
            const u64 place = pages[s];
            const float weight = weights[s];
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++) {
                u32 d = t + i * THREADS;
                if (d < HEAD_DIM) sums[i] = fma(weight, kept_value(value_pages + (place & ~63ull), d, place & 63), sums[i]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        u32 d = t + i * THREADS;
        if (d < HEAD_DIM) y[at + d] = total == 0.0f ? 0.0f : sums[i] / total;
    }
}
