// Scores of compressed rows for their choice by an indexer; crates/ops/src/numerics.rs. A block is a row of the step and 64 of its
// compressed rows: a product of keys by the queries of 64 heads, whose every sum is one chain along the features, and then a chain
// over heads for each key.

#define TILE 64
#define DEPTH 32
#define EACH 4

static_assert(THREADS == TILE / EACH * (TILE / EACH), "a thread has 4 keys and 4 heads");

// Numbers of a stage, those of a feature together. Where a key, or a head, stands goes by the feature too, so that what is written turned
// spreads over the banks.
struct Stage {
    float numbers[DEPTH][TILE + 4];

    DEVICE_MEMBER void put(u32 feature, u32 at, float value) { numbers[feature][at ^ feature / 8 * 8] = value; }
    DEVICE_MEMBER float4 get(u32 feature, u32 at) const { return *(const float4*)&numbers[feature][at ^ feature / 8 * 8]; }
};

// Eight numbers of a key from `d` on; zeros where there are none.
DEVICE void load_key(float (&out)[8], const u8* row, u32 d) {
#if FORMAT == 1 && WIDTH % 32 == 0
    const uint4 halves = *(const uint4*)(row + d * 2);
    const u32 words[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = half_to_float(i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu);
#else
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = d + i < WIDTH ? number_of(row, d + i) : 0.0f;
#endif
}

DEVICE void load_query(float (&out)[8], const float* query, u32 d) {
#if WIDTH % 32 == 0
    const float4 low = *(const float4*)(query + d), high = *(const float4*)(query + d + 4);
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
#else
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = d + i < WIDTH ? query[d + i] : 0.0f;
#endif
}

// scores [row of the chunk][stride]: of the compressed rows that a row sees, where these are more than are selected.
KERNEL __launch_bounds__(THREADS) index_scores(const float* queries, const float* head_weights, const u8* pages, float* scores,
                                               const u32* rows, const u32* lists, u32 first, u32 heads, u32 ratio, u32 top_k,
                                               u32 stride, float scale) {
    __shared__ __align__(16) Stage keys, others;
    __shared__ __align__(16) float dots[TILE][TILE + 4];
    __shared__ float weights[TILE];
    begin_in_turn();
    const Step step = {rows, lists};
    const u32 row = first + blockIdx.y, complete = (step.position(row) + 1) / ratio, first_key = blockIdx.x * TILE;
    if (complete <= top_k || first_key >= complete) return;
    const u32 t = threadIdx.x, key_at = t % 16 * EACH, head_at = t / 16 * EACH;
    // What a thread brings: 8 features of a key, and of a head.
    const u32 place = t / 4, part = t % 4 * 8;
    const u32 index = first_key + place < complete ? first_key + place : complete - 1;
    const u8* own_key = pages + place_of_compressed(step, row, index, ratio);
    float score = 0.0f;
    for (u32 from = 0; from < heads; from += TILE) {
        const u32 count = heads - from < TILE ? heads - from : TILE;
        const float* own_query = queries + ((u64)row * heads + from + (place < count ? place : 0)) * WIDTH;
        float sums[EACH][EACH] = {};
        for (u32 depth = 0; depth < WIDTH; depth += DEPTH) {
            float key[8], query[8];
            load_key(key, own_key, depth + part);
            load_query(query, own_query, depth + part);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 8; i++) {
                keys.put(part + i, place, key[i]);
                others.put(part + i, place, query[i]);
            }
            __syncthreads();
            const u32 end = WIDTH - depth < DEPTH ? WIDTH - depth : DEPTH;
#pragma unroll 8
            for (u32 d = 0; d < end; d++) {
                const float4 k = keys.get(d, key_at), q = others.get(d, head_at);
                const float of_heads[EACH] = {q.x, q.y, q.z, q.w};
#pragma unroll
                for (int h = 0; h < EACH; h++) {
                    sums[h][0] = fma(of_heads[h], k.x, sums[h][0]);
                    sums[h][1] = fma(of_heads[h], k.y, sums[h][1]);
                    sums[h][2] = fma(of_heads[h], k.z, sums[h][2]);
                    sums[h][3] = fma(of_heads[h], k.w, sums[h][3]);
                }
            }
        }
#pragma unroll
        for (int h = 0; h < EACH; h++)
            *(float4*)&dots[head_at + h][key_at] = make_float4(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
        if (t < count) weights[t] = head_weights[(u64)row * heads + from + t] * scale;
        __syncthreads();
        if (t < TILE) {
#pragma unroll 8
            for (u32 h = 0; h < count; h++) {
                const float dot = dots[h][t];
                score = fma(dot < 0.0f ? 0.0f : dot, weights[h], score);
            }
        }
    }
    if (t < TILE && first_key + t < complete) scores[(u64)blockIdx.y * stride + first_key + t] = score;
}
