// Attention of few rows on Hopper: keys and values pass once, and the matrix units hide what is done with them.
//
// A block is a tile of columns (tiles.cuh), a head of keys and values, and a span of tokens. A page's scores are the product of its keys,
// 64 rows of `wgmma`, by the columns' queries; weighed values are values, turned, by weights. So both kinds of slabs are operands as they
// lie in memory, and slabs are on their way while others are multiplied. With two warpgroups each has a page's scores and half the numbers
// of values: they take two pages at a time, and meet twice, for the highest scores and for weights.
//
// What a column gets depends on no other: pages that it does not see add zero times its factor of one.

#define GROUPS (SLABS % 2 == 0 ? 2 : 1)
#define OWN (SLABS / GROUPS)
#define CONSUMERS (GROUPS * 128)
#define WARPS (GROUPS * 4)
#define SUMS (COLUMNS / 2)
#define OPERAND_BYTES (PAGE * 128)
#define QUERY_BYTES (SLABS * COLUMNS * 128)
#define WEIGHT_BYTES (GROUPS * COLUMNS * 128)
// Wide tiles need more registers than a third of a processor's.
#define SHARES_REGISTERS (GROUPS == 2 && RESIDENT == 1)
// Codes become f16 in operands of their own.
#define EXPANDED_BYTES (FORMAT == 2 ? GROUPS * 2 * OPERAND_BYTES : 0)
#define REST_BYTES (WARPS * COLUMNS * 8 + COLUMNS * 12 + STAGES * 16)

static_assert(STAGES % BRINGERS == 0, "each place of the ring has its warp");
static_assert(THREADS == CONSUMERS + 128 && OWN * SUMS <= 128, "warpgroups that multiply, and one that copies");
static_assert(SHARED_BYTES == 1024 + QUERY_BYTES + WEIGHT_BYTES + EXPANDED_BYTES + STAGES * SLAB_BYTES + REST_BYTES, "as the host reckons");

// A warpgroup at its slabs.
struct Consumer {
    SlabRing ring;
    u8* slabs;
    u32 group, expanded;
    u8* expanded_at;
    // Slabs whose products are on their way are given back behind those of the next.
    u32 pending;
    u32 count;

    DEVICE_MEMBER void wait_for_group() const { wait_for_threads(2 + group, 128); }

    // The operand of a slab, of whose tokens `from .. to` are seen; others are zeros, for they may hold anything.
    DEVICE_MEMBER u32 operand(u32 index, bool is_whole, u32 from, u32 to) {
        ring.wait(index);
        const u32 token = threadIdx.x % 128 / 2, half = threadIdx.x % 2;
        const bool is_seen = is_whole || (token >= from && token < to);
#if FORMAT == 1
        if (!is_whole) {
            uint4* row = (uint4*)(slabs + index % STAGES * SLAB_BYTES + token * 128 + half * 64);
            if (!is_seen)
                for (int i = 0; i < 4; i++) row[i] = make_uint4(0, 0, 0, 0);
            writes_before_copies();
            wait_for_group();
        }
        return ring.slab(index);
#else
        const u32 place = (group * 2 + count++ % 2) * OPERAND_BYTES;
        const u8* slab = slabs + index % STAGES * SLAB_BYTES;
        const float scale = *(const float*)(slab + SLAB_CODES + (token * 2 + half) * 4);
        const u32 scales = pair_of_halves(scale, scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 halves = halves_of_codes(*(const uint2*)(slab + token * 64 + half * 32 + i * 8), scales);
            if (!is_seen) halves = make_uint4(0, 0, 0, 0);
            *(uint4*)(expanded_at + place + token * 128 + ((half * 4 + i) ^ (token % 8)) * 16) = halves;
        }
        ring.give_back(index);
        writes_before_copies();
        products_wait<0>();
        wait_for_group();
        return expanded + place;
#endif
    }
    // Behind the products of a slab.
    DEVICE_MEMBER void commit(u32 index) {
        products_commit();
#if FORMAT == 1
        products_wait<1>();
        if (pending != 0xffffffffu) ring.give_back(pending);
        pending = index;
#endif
    }
    DEVICE_MEMBER void finish() {
        products_wait<0>();
        if (pending != 0xffffffffu) ring.give_back(pending);
        pending = 0xffffffffu;
    }
};

KERNEL __launch_bounds__(THREADS, RESIDENT) spans(const float* queries, const u8* key_pages, const u8* value_pages, float* parts,
                                                  float2* stats, const float* sinks, float* y, const u32* rows, const u32* lists,
                                                  u32 first, u32 count, u32 heads, u32 kv_heads, u32 ring_pages, u32 window,
                                                  u32 stride, u32 run, float scale, float cap) {
    DYNAMIC_SHARED(u8, dynamic);
    u8* const shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const weights = shared + QUERY_BYTES;
    u8* const expanded = weights + WEIGHT_BYTES;
    u8* const slabs = expanded + EXPANDED_BYTES;
    float2* const tops = (float2*)(slabs + STAGES * SLAB_BYTES); // [WARPS][COLUMNS / 2]
    float* const totals = (float*)tops + WARPS * COLUMNS;       // [WARPS][COLUMNS]
    float* const factors = totals + WARPS * COLUMNS;
    u32* const begins = (u32*)factors + COLUMNS;
    u32* const ends = begins + COLUMNS;
    const u32 barriers = shared_address(ends + COLUMNS);
    const SlabRing ring = {shared_address(slabs), barriers, barriers + 8 * STAGES};
    if (threadIdx.x == 0) ring.begin(4);
    __syncthreads();
    after_earlier_work();

    const Step step = {rows, lists};
    // Long spans come last, and begin first: those of all heads where a processor has one block, so that none waits for short ones.
#if RESIDENT == 1
    const u32 place = blockIdx.z * gridDim.y + blockIdx.y, kv_head = place % kv_heads, turn = place / kv_heads;
#else
    const u32 kv_head = blockIdx.z, turn = blockIdx.y;
#endif
    const Tile tile = tile_of(step, first, count, heads, kv_heads, kv_head, run);
    if (tile.columns == 0) return;
    const Seen oldest = seen_by(step, tile.row, window), newest = seen_by(step, tile.row_of(tile.columns - 1), window);
    const Cut cut(window);
    const u32 last_span = cut.span_of(newest.end - 1), span = last_span - turn;
    if (turn > last_span - cut.first(oldest)) return;
    const u32 begin = max(oldest.begin, cut.begin_of(span)), end = min(newest.end, cut.begin_of(span + 1));
    const u32 from_page = begin / PAGE, to_page = (end + PAGE - 1) / PAGE;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    if (warp >= WARPS) {
#if SHARES_REGISTERS
        give_registers<40>();
#endif
        const Source source = {step, tile.row, newest.end, kv_heads, kv_head, ring_pages};
        SlabBringer bringer = {source, ring, slabs, 0, warp - WARPS};
        // A lane looks up a page.
        u32 known = GATHERED;
        if (from_page + lane < to_page && source.is_plain(from_page + lane)) known = source.page_of((from_page + lane) * PAGE);
        auto place = [&](u32 page) { return __shfl_sync(0xffffffffu, known, page - from_page); };
        for (u32 i = from_page / GROUPS * GROUPS; i < to_page; i += GROUPS) {
            const u32 low = max(i, from_page), high = min(i + GROUPS, to_page);
            const u32 at_low = place(low), at_high = place(high - 1);
            for (u32 s = 0; s < SLABS; s++)
                for (u32 p = low; p < high; p++) bringer.bring(key_pages, p, p == low ? at_low : at_high, s);
            for (u32 p = low; p < high; p++)
                for (u32 s = 0; s < SLABS; s++)
                    bringer.bring(value_pages, p, p == low ? at_low : at_high, s % GROUPS * OWN + s / GROUPS);
        }
        return;
    }

#if SHARES_REGISTERS
    take_registers<232>();
#endif
    auto query_of = [&](u32 c) {
        return c < tile.columns ? queries + ((u64)tile.row_of(c) * heads + tile.head_of(c)) * HEAD_DIM : 0;
    };
    auto put = [&](u32 c, float down) { factors[c] = down * scale * (CAPPED ? 1.0f : LOG2_E); };
    keep_queries<HEAD_DIM, COLUMNS, WARPS, 4>(shared, query_of, put);
    if (threadIdx.x < COLUMNS) {
        const bool is_one = threadIdx.x < tile.columns;
        const Seen seen = seen_by(step, tile.row_of(is_one ? threadIdx.x : 0), window);
        begins[threadIdx.x] = seen.begin;
        ends[threadIdx.x] = is_one ? seen.end : 0;
    }
    writes_before_copies();
    wait_for_threads(1, CONSUMERS);

    const u32 group = warp / 4, own_key = warp % 4 * 16 + lane / 4, column = lane % 4 * 2;
    Consumer consumer = {ring, slabs, group, shared_address(expanded), expanded, 0xffffffffu, 0};
    const u32 queries_at = shared_address(shared), weights_at = shared_address(weights);
    float sums[OWN][SUMS] = {}, highest[SUMS / 2], total[SUMS / 2] = {};
#pragma unroll
    for (int i = 0; i < SUMS / 2; i++) highest[i] = minus_infinity();
    u32 next = 0;
#pragma unroll 1
    for (u32 i = from_page / GROUPS * GROUPS; i < to_page; i += GROUPS) {
        const u32 low = max(i, from_page), high = min(i + GROUPS, to_page), present = high - low, page = i + group;
        const bool is_here = page >= low && page < high;
        // Whether all columns see all of a page.
        auto is_whole = [&](u32 p) { return p * PAGE >= newest.begin && (p + 1) * PAGE <= oldest.end; };
        float scores[SUMS];
#pragma unroll
        for (int j = 0; j < SUMS; j++) scores[j] = 0.0f;
        if (is_here) {
#pragma unroll
            for (int s = 0; s < SLABS; s++) {
                const u32 index = next + s * present + (page - low);
                const u64 keys = operand_of(consumer.operand(index, true, 0, PAGE));
                const u64 others = operand_of(queries_at + s * COLUMNS * 128);
                products_begin();
#pragma unroll
                for (int k = 0; k < 4; k++) multiply_shared<COLUMNS>(scores, keys + k * 2, others + k * 2);
                consumer.commit(index);
            }
            consumer.finish();
        }
        next += SLABS * present;

        if (!is_here || !is_whole(page)) {
            // What is not seen is lower than all else, with any factor.
#pragma unroll
            for (int j = 0; j < SUMS; j++) {
                const u32 position = page * PAGE + own_key + j / 2 % 2 * 8, c = j / 4 * 8 + column + j % 2;
                if (!is_here || position < begins[c] || position >= ends[c]) scores[j] = minus_infinity();
            }
        }
        float2 now[SUMS / 4];
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
            const float2 up = *(const float2*)&factors[j * 8 + column];
            float top[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float& score = scores[j * 4 + h * 2 + e];
                    score = score * (e ? up.y : up.x);
                    if (CAPPED) score = capped(score, cap);
                }
                top[e] = highest_of_keys(scores[j * 4 + e], scores[j * 4 + 2 + e]);
            }
            now[j] = make_float2(top[0], top[1]);
            if (lane < 4) tops[warp * (COLUMNS / 2) + j * 4 + lane] = now[j];
        }
        wait_for_threads(1, CONSUMERS);
        bool is_moved = false;
        float keep[SUMS / 2];
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float2 other = tops[w * (COLUMNS / 2) + j * 4 + lane % 4];
                now[j] = make_float2(larger(now[j].x, other.x), larger(now[j].y, other.y));
            }
            float base[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float& before = highest[j * 2 + e];
                const float top = larger(before, e ? now[j].y : now[j].x);
                base[e] = base_of(top);
                is_moved |= top != before;
                keep[j * 2 + e] = factor_of(before, top);
                before = top;
                total[j * 2 + e] = total[j * 2 + e] * keep[j * 2 + e];
            }
            u32 halves[2];
            weigh_pairs(halves, scores + j * 4, base, total + j * 2);
            // Of lanes 0 to 15, each names where eight keys of a column go.
            const u32 to = j * 8 + lane % 8, part = warp % 4 * 2 + lane / 8 % 2;
            store_turned(weights_at + (group * COLUMNS + to) * 128 + (part ^ (to % 8)) * 16, halves[0], halves[1]);
        }
        if (__any_sync(0xffffffffu, is_moved)) {
#pragma unroll
            for (int o = 0; o < OWN; o++)
#pragma unroll
                for (int j = 0; j < SUMS; j++) sums[o][j] = sums[o][j] * keep[j / 4 * 2 + j % 2];
        }
        writes_before_copies();
        wait_for_threads(1, CONSUMERS);

#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const u32 p = i + g;
            if (p < low || p >= high) continue;
            const u32 from = begin > p * PAGE ? begin - p * PAGE : 0, to = min(end - p * PAGE, (u32)PAGE);
#pragma unroll
            for (int o = 0; o < OWN; o++) {
                const u32 index = next + (p - low) * SLABS + o * GROUPS + group;
                const u64 values = turned_operand_of(consumer.operand(index, from == 0 && to == PAGE, from, to), OPERAND_BYTES);
                const u64 others = operand_of(weights_at + g * COLUMNS * 128);
                products_begin();
#pragma unroll
                for (int k = 0; k < 4; k++) multiply_turned<COLUMNS>(sums[o], values + k * 128, others + k * 2);
                consumer.commit(index);
            }
            consumer.finish();
        }
        next += SLABS * present;
    }

    // Each warp has the weights of its keys.
#pragma unroll
    for (int i = 0; i < SUMS / 2; i++) {
#pragma unroll
        for (int width = 4; width < 32; width *= 2) total[i] = total[i] + __shfl_xor_sync(0xffffffffu, total[i], width);
        if (lane < 4) totals[warp * COLUMNS + i / 2 * 8 + lane * 2 + i % 2] = total[i];
    }
    wait_for_threads(1, CONSUMERS);
    const Output out = {parts, stats, sinks, y, first, heads, stride};
#pragma unroll
    for (int i = 0; i < SUMS / 2; i++) {
        const u32 c = i / 2 * 8 + column + i % 2;
        if (c >= tile.columns) continue;
        const u32 row = tile.row_of(c), head = tile.head_of(c);
        const Seen seen = seen_by(step, row, window);
        // A tile's rows may begin, or end, a span apart.
        const u32 spans = cut.count(seen), index = span - cut.first(seen);
        if (index >= spans) continue;
        float weight = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) weight = weight + totals[w * COLUMNS + c];
        const bool is_one = spans == 1;
        const float factor = is_one ? out.factor(head, highest[i], weight) : 1.0f;
        float* to = is_one ? y + ((u64)row * heads + head) * HEAD_DIM : parts + out.place(row, head, index) * HEAD_DIM;
        if (!is_one && warp == 0 && lane < 4) stats[out.place(row, head, index)] = make_float2(highest[i], weight);
#pragma unroll
        for (int o = 0; o < OWN; o++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 d = (group * OWN + o) * 64 + own_key + h * 8;
                to[d] = sums[o][i / 2 * 4 + h * 2 + i % 2] * factor + 0.0f;
            }
    }
}
