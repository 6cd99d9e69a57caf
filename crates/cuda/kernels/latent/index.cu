// The choice of compressed rows by an indexer; crates/ops/src/numerics.rs, crates/ops/src/latent.rs.

// Heads whose queries are in shared memory at a time, and those whose chains a thread runs at once.
#define STAGED 16
#define AT_ONCE 4

// Keys that fit into a thread's registers.
#define IS_HELD (WIDTH <= 128 && WIDTH % 4 == 0)

// scores [row of the chunk][stride]: of the compressed rows that a row sees, where these are more than are selected. One thread a
// compressed row.
KERNEL __launch_bounds__(THREADS) index_scores(const float* queries, const float* head_weights, const u8* pages, float* scores,
                                               const u32* rows, const u32* lists, u32 first, u32 heads, u32 ratio, u32 top_k,
                                               u32 stride, float scale) {
    __shared__ __align__(16) float query[STAGED][WIDTH];
    __shared__ float weights[STAGED];
    begin_in_turn();
    const Step step = {rows, lists};
    const u32 row = first + blockIdx.y, complete = (step.position(row) + 1) / ratio;
    if (complete <= top_k || blockIdx.x * THREADS >= complete) return;
    const u32 own = blockIdx.x * THREADS + threadIdx.x, index = own < complete ? own : complete - 1;
    const u8* at = pages + place_of_compressed(step, row, index, ratio);
#if IS_HELD
    float key[WIDTH];
#pragma unroll
    for (int d = 0; d < WIDTH; d++) key[d] = number_of(at, d);
#endif
    float score = 0.0f;
    for (u32 from = 0; from < heads; from += STAGED) {
        const u32 count = heads - from < STAGED ? heads - from : STAGED;
        __syncthreads();
        for (u32 i = threadIdx.x; i < STAGED * WIDTH; i += THREADS)
            query[i / WIDTH][i % WIDTH] = i / WIDTH < count ? queries[((u64)row * heads + from) * WIDTH + i] : 0.0f;
        if (threadIdx.x < count) weights[threadIdx.x] = head_weights[(u64)row * heads + from + threadIdx.x] * scale;
        __syncthreads();
        for (u32 head = 0; head < count; head += AT_ONCE) {
            float dots[AT_ONCE] = {};
#if IS_HELD
#pragma unroll
            for (int d = 0; d < WIDTH; d += 4) {
#pragma unroll
                for (int h = 0; h < AT_ONCE; h++) {
                    const float4 q = *(const float4*)&query[head + h][d];
                    dots[h] = fma(q.x, key[d], dots[h]);
                    dots[h] = fma(q.y, key[d + 1], dots[h]);
                    dots[h] = fma(q.z, key[d + 2], dots[h]);
                    dots[h] = fma(q.w, key[d + 3], dots[h]);
                }
            }
#else
            for (u32 d = 0; d < WIDTH; d++) {
                const float key = number_of(at, d);
#pragma unroll
                for (int h = 0; h < AT_ONCE; h++) dots[h] = fma(query[head + h][d], key, dots[h]);
            }
#endif
#pragma unroll
            for (int h = 0; h < AT_ONCE; h++)
                if (head + h < count) score = fma(dots[h] < 0.0f ? 0.0f : dots[h], weights[head + h], score);
        }
    }
    if (own < complete) scores[(u64)blockIdx.y * stride + own] = score;
}
