// Attention of prompt rows over latent rows of f16, or packed ones that become such, on Hopper. A block is a row of the step and COLUMNS
// of its heads, and goes through all pages that the row sees: its heads share all keys, so a row alone fills the matrix units.
//
// Two warpgroups. Each has the scores of all 64 keys of a page with half the columns: keys, rows of `wgmma`, by queries. Weights go
// through shared memory; then each has half the features of the weighed sums: the same keys, turned, by all columns' weights. A page is
// copied by all threads while the one before is multiplied; what is packed waits in their registers, and is widened meanwhile. No bit
// depends on other rows.

#define COLUMNS 64
#define OWN_COLUMNS 32
#define SLABS (WIDTH / 64)
#define OWN (SLABS / 2)
#define WARPS (THREADS / 32)
#define QUERY_BYTES (SLABS * COLUMNS * 128)
#define WEIGHT_BYTES (COLUMNS * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define REST_BYTES ((2 * WARPS * OWN_COLUMNS + 3 * COLUMNS) * 4)

static_assert(WIDTH % 128 == 0 && (IS_PACKED || (FORMAT == 1 && ROW_BYTES == WIDTH * 2)), "whole slabs for each warpgroup");
static_assert(THREADS == 256 && OWN * 32 <= 128, "two warpgroups, whose sums fit into registers");
static_assert(SHARED_BYTES == 1024 + QUERY_BYTES + WEIGHT_BYTES + 2 * STAGE_BYTES + REST_BYTES, "as the host reckons");

#if !IS_PACKED
// Starts copies of a page's keys into a stage; slots that are not seen become zeros, for they may hold anything.
DEVICE void bring(u8* stage, const Sight& sight, u32 page) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // A lane finds one of the warp's rows.
    const u64 own = lane < PAGE / WARPS ? sight.seen_key(page, warp + lane * WARPS) : 0;
#pragma unroll
    for (u32 i = 0; i < PAGE / WARPS; i++) {
        const u8* from = (const u8*)__shfl_sync(0xffffffffu, own, i);
        const u32 slot = warp + i * WARPS;
        for (u32 part = lane; part < SLABS * 8; part += 32) {
            u8* to = stage + part / 8 * SLAB_BYTES + slot * 128 + ((part % 8) ^ (slot % 8)) * 16;
            if (from) copy_16(to, from + part * 16);
            else *(uint4*)to = make_uint4(0, 0, 0, 0);
        }
    }
    end_of_copies();
}
#endif

// queries, y (rows, heads · WIDTH). Grid: rows, tiles of heads.
KERNEL __launch_bounds__(THREADS, 1) latent_prompt(const float* queries, const u8* raw, const u8* compressed, const u32* selected,
                                                   const float* sinks, float* y, const u32* rows, const u32* lists, u32 first,
                                                   u32 heads, u32 ring, u32 window, u32 ratio, u32 top_k, float scale) {
    after_earlier_work();
    DYNAMIC_SHARED(u8, dynamic);
    u8* const shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const weights = shared + QUERY_BYTES;
    u8* const stages = weights + WEIGHT_BYTES;
    float* const tops = (float*)(stages + 2 * STAGE_BYTES); // [WARPS][OWN_COLUMNS]
    float* const totals = tops + WARPS * OWN_COLUMNS;      // the same
    float* const keeps = totals + WARPS * OWN_COLUMNS;     // [COLUMNS], as are those behind
    float* const factors = keeps + COLUMNS;
    float* const highs = factors + COLUMNS;

    const u32 row = first + blockIdx.x, first_head = blockIdx.y * COLUMNS;
    const Sight sight = {Step{rows, lists}.all_of(row), raw, compressed, selected_of(selected, row, top_k), ring, window, ratio, top_k};
    const u32 pages = sight.pages();
    const u32 count = heads - first_head < COLUMNS ? heads - first_head : COLUMNS;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4;
#if IS_PACKED
    PackedKeys<PAGE / WARPS> keys;
    const u32 own_keys = warp * (PAGE / WARPS);
    keys.load(keys.find(sight, 0, own_keys));
#else
    bring(stages, sight, 0);
#endif
    auto query_of = [&](u32 c) { return c < count ? queries + ((u64)row * heads + first_head + c) * WIDTH : 0; };
    keep_queries<WIDTH, COLUMNS, WARPS, 4>(shared, query_of, [&](u32 c, float down) { factors[c] = down * scale * LOG2_E; });

#if IS_PACKED
    keys.put(stages, own_keys);
    if (pages > 1) keys.load(keys.find(sight, 1, own_keys));
#endif

    // Of each product a lane has rows `own` and `own + 8` of its warpgroup's 64, and of each eight columns `column` and the next.
    const u32 own = warp % 4 * 16 + lane / 4, column = lane % 4 * 2, first_column = group * OWN_COLUMNS;
    const u32 queries_at = shared_address(shared) + first_column * 128, weights_at = shared_address(weights);
    float sums[OWN][32] = {}, highest[8], total[8] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) highest[i] = minus_infinity();
#pragma unroll 1
    for (u32 page = 0; page < pages; page++) {
        u8* const stage = stages + page % 2 * STAGE_BYTES;
        const u32 stage_at = shared_address(stage);
        wait_for_copies<0>();
        writes_before_copies();
        __syncthreads();
        // The other stage is read to its end: all have come here.
        u8* const other = stages + (page + 1) % 2 * STAGE_BYTES;
#if !IS_PACKED
        if (page + 1 < pages) bring(other, sight, page + 1);
#endif

        float scores[16];
#pragma unroll
        for (int i = 0; i < 16; i++) scores[i] = 0.0f;
        products_begin();
#pragma unroll
        for (int s = 0; s < SLABS; s++) {
            const u64 slab = operand_of(stage_at + s * SLAB_BYTES), others = operand_of(queries_at + s * COLUMNS * 128);
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_shared<OWN_COLUMNS>(scores, slab + k * 2, others + k * 2);
        }
        products_commit();
#if IS_PACKED
        if (page + 1 < pages) keys.put(other, own_keys);
        if (page + 2 < pages) keys.load(keys.find(sight, page + 2, own_keys));
#endif
        products_wait<0>();

        const uint2 slots = sight.slots(page);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 up = *(const float2*)&factors[first_column + j * 8 + column];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float top = highest_seen(scores[j * 4 + e], scores[j * 4 + 2 + e], e ? up.y : up.x, own, slots);
                if (lane < 4) tops[warp * OWN_COLUMNS + j * 8 + column + e] = top;
            }
        }
        wait_for_threads(2 + group, 128);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float base[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float& before = highest[j * 2 + e];
                float top = before;
#pragma unroll
                for (int w = 0; w < 4; w++) top = larger(top, tops[(group * 4 + w) * OWN_COLUMNS + j * 8 + column + e]);
                const float keep = factor_of(before, top);
                base[e] = base_of(top);
                before = top;
                if (warp % 4 == 0 && lane < 4) keeps[first_column + j * 8 + column + e] = keep;
                total[j * 2 + e] = total[j * 2 + e] * keep;
            }
            u32 halves[2];
            weigh_pairs(halves, scores + j * 4, base, total + j * 2);
            // Of lanes 0 to 15, each names where eight keys of a column go.
            const u32 at = first_column + j * 8 + lane % 8, part = warp % 4 * 2 + lane / 8 % 2;
            store_turned(weights_at + at * 128 + (part ^ (at % 8)) * 16, halves[0], halves[1]);
        }
        writes_before_copies();
        __syncthreads();

        float2 keep[8];
        bool is_moved = false;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            keep[j] = *(const float2*)&keeps[j * 8 + column];
            is_moved |= keep[j].x != 1.0f || keep[j].y != 1.0f;
        }
        if (__any_sync(0xffffffffu, is_moved)) {
#pragma unroll
            for (int o = 0; o < OWN; o++)
#pragma unroll
                for (int i = 0; i < 32; i++) sums[o][i] = sums[o][i] * (i % 2 ? keep[i / 4].y : keep[i / 4].x);
        }
        products_begin();
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            const u32 slab = group * OWN + o;
            const u64 values = turned_operand_of(stage_at + slab * SLAB_BYTES, SLAB_BYTES), others = operand_of(weights_at);
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_turned<COLUMNS>(sums[o], values + k * 128, others + k * 2);
        }
        products_commit();
        products_wait<0>();
    }

    // Each warp has the weights of its keys.
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int width = 4; width < 32; width *= 2) total[i] = total[i] + __shfl_xor_sync(0xffffffffu, total[i], width);
        if (lane < 4) totals[warp * OWN_COLUMNS + i / 2 * 8 + column + i % 2] = total[i];
        if (warp % 4 == 0 && lane < 4) highs[first_column + i / 2 * 8 + column + i % 2] = highest[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const u32 c = i / 2 * 8 + column + i % 2, head = first_head + c;
        if (c >= count) continue;
        float weight = 0.0f;
#pragma unroll
        for (int w = 0; w < 4; w++) weight = weight + totals[(c / OWN_COLUMNS * 4 + w) * OWN_COLUMNS + c % OWN_COLUMNS];
        const float high = highs[c], sink = sinks[head] * LOG2_E, most = larger(high, sink), before = factor_of(high, most);
        weight = fma(weight, before, exp2_near(sink - most + WEIGHT_BITS));
        const float factor = weight == 0.0f ? 0.0f : before / weight;
        float* out = y + ((u64)row * heads + head) * WIDTH;
#pragma unroll
        for (int o = 0; o < OWN; o++) {
#pragma unroll
            for (int h = 0; h < 2; h++)
                out[(group * OWN + o) * 64 + own + h * 8] = sums[o][i / 2 * 4 + h * 2 + i % 2] * factor + 0.0f;
        }
    }
}
