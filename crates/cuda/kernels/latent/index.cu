// Scores (index.cuh) where a block has many keys, which share the queries: of many rows, and of prompts. A thread has the chain over heads
// of a key.

static_assert(KEYS == THREADS, "a thread has a key");

#if UNITS
static_assert(HEAD_LANES == 4, "a thread has a quarter of a query");

// Queries, and sums of 16 heads and a warp's keys.
struct Multiplied {
    Whole whole;
    float dots[WARPS][16][40];
};

// Goes on with the chains of a warp's 32 keys, a lane a key. A lane has parts of four keys, eight of the warp's apart.
DEVICE float multiply_keys(Multiplied& shared, const u8* const (&own)[4], const Heads& heads, float score) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    float(*dots)[40] = shared.dots[warp];
    uint4 key[4][PIECES];
#pragma unroll
    for (int n = 0; n < 4; n++) {
        KeyPart part;
        part.load(own[n]);
#pragma unroll
        for (int p = 0; p < PIECES; p++) key[n][p] = part.piece(p);
    }
#pragma unroll 1
    for (u32 first = 0; first < heads.count; first += 16) {
        float sums[4][4] = {};
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const u8* at = shared.whole.queries + (first + g) * HEAD_BYTES + (p * 4 + t) * 16;
            const uint4 one = *(const uint4*)at, other = *(const uint4*)(at + 8 * HEAD_BYTES);
            const u32 low[4] = {one.x, other.x, one.y, other.y}, high[4] = {one.z, other.z, one.w, other.w};
#pragma unroll
            for (int n = 0; n < 4; n++) {
                multiply_numbers(sums[n], low, key[n][p].x, key[n][p].y);
                multiply_numbers(sums[n], high, key[n][p].z, key[n][p].w);
            }
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < 4; n++) {
            *(float2*)&dots[g][n * 8 + t * 2] = make_float2(sums[n][0], sums[n][1]);
            *(float2*)&dots[g + 8][n * 8 + t * 2] = make_float2(sums[n][2], sums[n][3]);
        }
        __syncwarp();
        const u32 count = heads.count < first + 16 ? heads.count : first + 16;
#pragma unroll 8
        for (u32 h = first; h < count; h++) score = next_score(score, dots[h - first][lane] * shared.whole.downs[h], heads.weights[h]);
    }
    return score;
}
#endif

// scores [row of the chunk][stride]: of the compressed rows that a row sees, where these are more than are selected.
KERNEL __launch_bounds__(THREADS, RESIDENT) index_scores(const float* queries, const float* head_weights, const u8* pages, float* scores,
                                                         const u32* rows, const u32* lists, u32 first, u32 heads, u32 ratio, u32 top_k,
                                                         u32 stride, float scale) {
#if UNITS
    __shared__ __align__(16) u8 shared[sizeof(Walked) > sizeof(Multiplied) ? sizeof(Walked) : sizeof(Multiplied)];
#else
    __shared__ __align__(16) u8 shared[sizeof(Walked)];
#endif
    __shared__ float weights[TILE];
    __shared__ u32 flags[WARPS];
    after_earlier_work();
    const u32 row = first + blockIdx.y;
    // What needs no lookup is asked for before it is known whether there is work; keys are looked up once queries have left their
    // registers.
    const float* const own_queries = queries + (u64)row * heads * WIDTH;
    const float* const own_weights = head_weights + (u64)row * heads;
    auto count_of = [&](u32 from) { return from >= heads ? 0 : heads - from < TILE ? heads - from : TILE; };
    float weight = threadIdx.x < count_of(0) ? own_weights[threadIdx.x] : 0.0f;
    asked(weight);
#if UNITS
    // Under a condition, which keeps the loads where they stand.
    QueryPart query = {};
    if (QueryPart::head() < count_of(0)) query.load(own_queries, count_of(0));
    query.ask();
#endif
    const RowOfStep own_row = Step{rows, lists}.all_of(row);
    const u32 complete = (own_row.position + 1) / ratio, first_key = blockIdx.x * KEYS, t = threadIdx.x;
    if (complete <= top_k || first_key >= complete) return;
    const Keys keys = {own_row, pages, ratio, first_key, complete};
#if UNITS
    const u8* own[4];
    bool are_whole = true;
#endif
    float score = 0.0f;
#pragma unroll 1
    for (u32 from = 0; from < heads; from += TILE) {
        const u32 count = count_of(from);
        const Heads some = {own_queries + (u64)from * WIDTH, weights, count};
        __syncthreads();
        if (t < count) weights[t] = weight * scale;
#if UNITS
        const bool is_whole = query.keep(((Multiplied*)shared)->whole);
        if (from == 0) {
#pragma unroll
            for (u32 n = 0; n < 4; n++) own[n] = keys.at(t / 32 * 32 + n * 8 + t % 32 / 4);
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                KeyPart key;
                key.load(own[n]);
                are_whole &= key.is_whole();
            }
        }
        const bool is_walked = !all_of_block(is_whole && are_whole, flags);
        if (!is_walked) score = multiply_keys(*(Multiplied*)shared, own, some, score);
#else
        const bool is_walked = true;
#endif
        for (u32 of_tile = 0; is_walked && of_tile < KEYS && first_key + of_tile < complete; of_tile += TILE)
            score = walk(*(Walked*)shared, keys, of_tile, some, score);
        const u32 next = from + TILE, more = count_of(next);
        if (more == 0) break;
        weight = t < more ? own_weights[next + t] : 0.0f;
#if UNITS
        query.load(own_queries + (u64)next * WIDTH, more);
#endif
    }
    if (first_key + t < complete) scores[(u64)blockIdx.y * stride + first_key + t] = score;
}
