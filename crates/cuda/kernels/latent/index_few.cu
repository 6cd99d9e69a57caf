// Scores (index.cuh) where a block has few keys, so that a decoded row is on many processors: of few rows. A warp has the products of 8
// keys by 16 heads, and then one warp the chains over heads, a lane a key.
//
// What is on its way from the turn on comes at once: queries, weights, and keys, whose places are looked up ahead of it, where they also
// start on their way into L2.

#define HEAD_TILES (TILE / 16)
#define KEY_TILES (KEYS / 8)
static_assert(KEYS == 32 && WARPS == HEAD_TILES * KEY_TILES, "a warp has the chains, and each a product");
static_assert(HEAD_TILES == KEY_TILES, "a key of each warp's eight is looked at by one of those that have it");

// Queries, and sums, each of a key together.
struct Multiplied {
    Whole whole;
    float dots[KEYS][TILE + 4];
};

// Sums of a warp's keys by its heads, none of them negative.
DEVICE void multiply_keys(Multiplied& shared, const KeyPart& key) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const u32 first_head = warp % HEAD_TILES * 16, first_key = warp / HEAD_TILES * 8;
    // Two sums of each, which are as exact as one, so that fewer products wait for each other.
    float sums[4] = {}, others[4] = {};
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const u8* at = shared.whole.queries + (first_head + g) * HEAD_BYTES + (p * 4 + t) * 16;
        const uint4 one = *(const uint4*)at, other = *(const uint4*)(at + 8 * HEAD_BYTES);
        const u32 low[4] = {one.x, other.x, one.y, other.y}, high[4] = {one.z, other.z, one.w, other.w};
        const uint4 piece = key.piece(p);
        multiply_numbers(sums, low, piece.x, piece.y);
        multiply_numbers(others, high, piece.z, piece.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 head = first_head + g + i / 2 * 8;
        const float dot = (sums[i] + others[i]) * shared.whole.downs[head];
        shared.dots[first_key + t * 2 + i % 2][head] = dot < 0.0f ? 0.0f : dot;
    }
}

// Goes on with a key's chain. Where there are no more heads, the weights are zeros that leave it as it is.
DEVICE float chain(const Multiplied& shared, const float* weights, u32 heads, float score) {
#pragma unroll 1
    for (u32 first = 0; first < heads; first += 16) {
        float4 dots[4], factors[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            dots[i] = *(const float4*)&shared.dots[threadIdx.x][first + i * 4];
            factors[i] = *(const float4*)&weights[first + i * 4];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            score = fma(dots[i].x, factors[i].x, score);
            score = fma(dots[i].y, factors[i].y, score);
            score = fma(dots[i].z, factors[i].z, score);
            score = fma(dots[i].w, factors[i].w, score);
        }
    }
    return score;
}

// As index.cu has it.
KERNEL __launch_bounds__(THREADS, RESIDENT) index_scores(const float* queries, const float* head_weights, const u8* pages, float* scores,
                                                         const u32* rows, const u32* lists, u32 first, u32 heads, u32 ratio, u32 top_k,
                                                         u32 stride, float scale) {
    __shared__ __align__(16) u8 shared[sizeof(Walked) > sizeof(Multiplied) ? sizeof(Walked) : sizeof(Multiplied)];
    __shared__ __align__(16) float weights[TILE];
    __shared__ __align__(16) u32 flags[WARPS];
    const u32 t = threadIdx.x, lane = t % 32, warp = t / 32;
    const u32 row = first + blockIdx.y, first_key = blockIdx.x * KEYS;
    const RowOfStep ahead = Step{rows, lists}.ahead(row);
    const u32 complete = (ahead.position + 1) / ratio;
    const bool has_work = complete > top_k && first_key < complete;
    const u8* own = pages;
    if (has_work) {
        const u32 index = first_key + warp / HEAD_TILES * 8 + lane / 4;
        own += place_ahead(ahead, index < complete ? index : complete - 1, ratio);
        if (warp % HEAD_TILES == 0) prefetch(own + lane % 4 * ROW_BYTES / 4);
    }
    after_earlier_work();
    if (!has_work) return;
    float score = 0.0f;
#pragma unroll 1
    for (u32 from = 0; from < heads; from += TILE) {
        const u32 count = heads - from < TILE ? heads - from : TILE;
        // Reckoned anew, for there are no registers to keep it in.
        const u64 first_head = (u64)(u32)opaque((int)row) * heads + from;
        const float* own_queries = queries + first_head * WIDTH;
        KeyPart key;
        key.load(own);
        key.ask();
        float weight = t < count ? head_weights[first_head + t] : 0.0f;
        asked(weight);
        QueryPart query;
        query.load(own_queries, count);
        query.ask();
        if (from > 0) __syncthreads();
        Multiplied& multiplied = *(Multiplied*)shared;
        bool are_whole = query.keep(multiplied.whole);
        if (t < TILE) weights[t] = t < count ? weight * scale : -0.0f;
        if (warp % HEAD_TILES == warp / HEAD_TILES) are_whole &= key.is_whole();
        if (all_of_block(are_whole, flags)) {
            multiply_keys(multiplied, key);
            __syncthreads();
            if (t < KEYS) score = chain(multiplied, weights, count, score);
        } else {
            const RowOfStep own_row = Step{rows, lists}.all_of(row);
            score = walk(*(Walked*)shared, Keys{own_row, pages, ratio, first_key, complete}, 0, {own_queries, weights, count}, score);
        }
    }
    if (t < KEYS && first_key + t < complete) scores[(u64)blockIdx.y * stride + first_key + t] = score;
}
