// Attention, the first of three: scores of queries with the keys of each page, and the highest of a page.
//
// A warp is a page: each thread takes two keys that lie side by side, for all columns of the tile, so that a key is read once for
// all rows and heads that share it. A score is a chain over the head's numbers in order (numerics.rs), and no chain is cut.

#define WARPS (THREADS / 32)
// Numbers of a key that are on their way while as many are multiplied.
#define STEP (HEAD_DIM % 32 == 0 && COLUMNS < 16 ? 32 : HEAD_DIM % 16 == 0 ? 16 : HEAD_DIM % 8 == 0 ? 8 : HEAD_DIM % 4 == 0 ? 4 : 1)

static_assert(COLUMNS % 4 == 0 && THREADS % 32 == 0, "columns go by fours");

// Two numbers of neighbouring keys as they lie in a page, and their scale.
struct Pair {
#if FORMAT == 0
    float2 raw;
    DEVICE_MEMBER void load(const u8* head, u32 d, u32 slot) { raw = *(const float2*)(head + (d * PAGE + slot) * 4); }
    DEVICE_MEMBER float2 get(float2) const { return raw; }
#elif FORMAT == 1
    u32 raw;
    DEVICE_MEMBER void load(const u8* head, u32 d, u32 slot) { raw = *(const u32*)(head + (d * PAGE + slot) * 2); }
    DEVICE_MEMBER float2 get(float2) const { return make_float2(half_to_float(raw), half_to_float(raw >> 16)); }
#else
    u16 raw;
    DEVICE_MEMBER void load(const u8* head, u32 d, u32 slot) { raw = *(const u16*)(head + d * PAGE + slot); }
    DEVICE_MEMBER float2 get(float2 scale) const {
        return make_float2(scale.x * (float)(signed char)(raw & 255), scale.y * (float)(signed char)(raw >> 8));
    }
#endif
};

DEVICE float2 scales_of(const u8* head, u32 d, u32 slot) {
#if FORMAT == 2
    return *(const float2*)(head + NUMBERS + (d / 32 * PAGE + slot) * 4);
#else
    return make_float2(1.0f, 1.0f);
#endif
}

DEVICE void add_product(float (&sums)[2][COLUMNS], const float* query, float2 key) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c += 4) {
        const float4 q = *(const float4*)(query + c);
        const float four[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[0][c + i] = fma(four[i], key.x, sums[0][c + i]);
            sums[1][c + i] = fma(four[i], key.y, sums[1][c + i]);
        }
    }
}

// Keys `slot` and `slot + 1` of one page.
DEVICE void multiply_pairs(float (&sums)[2][COLUMNS], const float* query, const u8* head, u32 slot) {
    Pair ahead[STEP];
    float2 scale = scales_of(head, 0, slot);
#pragma unroll
    for (int i = 0; i < STEP; i++) ahead[i].load(head, i, slot);
    for (u32 d = 0; d < HEAD_DIM; d += STEP) {
        Pair now[STEP];
#pragma unroll
        for (int i = 0; i < STEP; i++) now[i] = ahead[i];
        const float2 factor = scale;
        if (d + STEP < HEAD_DIM) {
#pragma unroll
            for (int i = 0; i < STEP; i++) ahead[i].load(head, d + STEP + i, slot);
            scale = scales_of(head, d + STEP, slot);
        }
#pragma unroll
        for (int i = 0; i < STEP; i++) add_product(sums, query + (d + i) * COLUMNS, now[i].get(factor));
    }
}

// Out of the line of what every model does.
static __device__ __noinline__ float soft_cap_apart(float score, float cap) { return canonical_soft_cap(score, cap); }

// queries (rows, heads · HEAD_DIM). scores [row of the chunk][head][stride pages][64] and highest [row][head][stride]: the pages that a
// row sees, from its first on. Scores of positions that a row does not see are -inf.
KERNEL __launch_bounds__(THREADS) scores(const float* queries, const u8* key_pages, float* scores, float* highest, const u32* rows,
                                         const u32* lists, u32 first, u32 count, u32 heads, u32 kv_heads, u32 ring, u32 window,
                                         u32 stride, float scale, u32 capped, float cap) {
    begin_in_turn();
    __shared__ float query[HEAD_DIM * COLUMNS];
    const Step step = {rows, lists};
    const Tile tile = tile_of(step, first, count, heads, kv_heads);
    if (tile.columns == 0) return;
    const u32 lane = threadIdx.x % 32;
    const u32 page = seen_by(step, tile.row, window).first_page() + blockIdx.y * WARPS + threadIdx.x / 32;
    const u32 end = seen_by(step, tile.row_of(tile.columns - 1), window).end;
    if ((page - threadIdx.x / 32) * PAGE >= end) return;
    const bool plain = page * PAGE < end && step.is_plain(tile.row, page * PAGE + PAGE);
    const u8* keys = key_pages;
    if (plain) {
        keys += ((u64)step.page(tile.row, page * PAGE, ring) * kv_heads + blockIdx.z) * HEAD_BYTES;
        // All of the page at once: what is multiplied meanwhile is less than memory gives.
        for (u32 i = lane * 128; i < HEAD_BYTES; i += 32 * 128) prefetch(keys + i);
    }
    // All threads of a column, so that its row is found once; neighbours take neighbouring numbers.
    const u32 column = threadIdx.x % COLUMNS, row = tile.row_of(column < tile.columns ? column : 0);
    const float* from = queries + ((u64)row * heads + tile.head_of(column < tile.columns ? column : 0)) * HEAD_DIM;
#pragma unroll 16
    for (u32 d = threadIdx.x / COLUMNS; d < HEAD_DIM; d += THREADS / COLUMNS)
        query[d * COLUMNS + column] = column < tile.columns ? from[d] * scale : 0.0f;
    __syncthreads();
    if (page * PAGE >= end) return;

    float sums[2][COLUMNS] = {};
    const u32 at = page * PAGE + 2 * lane;
    if (plain) {
        multiply_pairs(sums, query, keys, 2 * lane);
    } else {
        // A page that a draft's path reaches into: each position has a place of its own. A tree's tile is one row.
        const u8* head[2];
        u32 slot[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 place = step.place(tile.row, at + i < end ? at + i : end - 1);
            head[i] = key_pages + ((u64)step.page(tile.row, place, ring) * kv_heads + blockIdx.z) * HEAD_BYTES;
            slot[i] = place % PAGE;
        }
#pragma unroll 4
        for (u32 d = 0; d < HEAD_DIM; d++) {
            const float2 key = make_float2(kept_key(head[0], d, slot[0]), kept_key(head[1], d, slot[1]));
            add_product(sums, query + d * COLUMNS, key);
        }
    }

    if (capped) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            sums[0][c] = soft_cap_apart(sums[0][c], cap);
            sums[1][c] = soft_cap_apart(sums[1][c], cap);
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const u32 column = c < tile.columns ? c : 0, row = tile.row_of(column);
        const Seen seen = seen_by(step, row, window);
        float most = __uint_as_float(0xff800000u), score[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            score[i] = at + i >= seen.begin && at + i < seen.end ? sums[i][c] : __uint_as_float(0xff800000u);
            most = score[i] > most ? score[i] : most; // NaN never becomes it
        }
#pragma unroll
        for (int width = 16; width > 0; width /= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, most, width);
            most = other > most ? other : most;
        }
        if (c >= tile.columns || page < seen.first_page() || page * PAGE >= seen.end) continue;
        const u64 out = (((u64)row - first) * heads + tile.head_of(column)) * stride + page - seen.first_page();
        *(float2*)(scores + out * PAGE + 2 * lane) = make_float2(score[0], score[1]);
        if (lane == 0) highest[out] = most;
    }
}
