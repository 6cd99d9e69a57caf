// Attention of few rows on Hopper: keys and values pass once, and the matrix units hide what is done with them.
//
// A block takes a tile of columns (tiles.cuh), a head of keys and values, and a span of tokens; one that has a processor for itself takes
// such spans until all are taken (work.cuh). A page's scores are the product of its keys, 64 rows of `wgmma`, by the columns' queries;
// weighed values are values, turned, by weights. So both kinds of slabs are operands as they lie in memory, and slabs are on their way
// while others are multiplied. With two warpgroups each has a page's scores and half the numbers of values: they take two pages at a
// time, and meet twice, for the highest scores and for weights.
//
// What a column gets depends on no other: pages that it does not see add zero times its factor of one.
//
// Where a tile's spans are few (CLUSTERED) its blocks are a cluster, which merges them (merged.cuh).

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
#define CONSUMER_REGISTERS (OWN * SUMS < 128 ? 216 : FORMAT == 1 ? 232 : 224)
#define BRINGER_REGISTERS (504 - 2 * CONSUMER_REGISTERS)
// A block that has a processor for itself may go from span to span.
#define GOES_ON (RESIDENT == 1)
// Codes become f16 in operands of their own.
#define EXPANDED_BYTES (FORMAT == 2 ? GROUPS * 2 * OPERAND_BYTES : 0)
#define REST_BYTES (WARPS * COLUMNS * 8 + COLUMNS * 16 + STAGES * 16 + 48)

static_assert(STAGES % BRINGERS == 0, "each place of the ring has its warp");
static_assert(THREADS == CONSUMERS + 128 && OWN * SUMS <= 128, "warpgroups that multiply, and one that copies");
static_assert(!CLUSTERED || (!GOES_ON && COLUMNS * HEAD_DIM * 4 <= STAGES * SLAB_BYTES), "sums fit where slabs were");
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

// How a block comes from span to span. `drawn` counts tickets that were drawn, from 0 to 0; without it a block has one span.
struct Walk {
    u64* drawn;
    u32 tickets;
    Tickets told;

    DEVICE_MEMBER bool goes_on() const { return GOES_ON && drawn; }
    // The ticket behind the block's span `turn`.
    DEVICE_MEMBER u32 next(u32 turn) const { return goes_on() ? told.hear(turn) : NO_TICKET; }
    DEVICE_MEMBER u32 draw() const { return goes_on() && threadIdx.x % 32 == 0 ? (u32)add_atomically(drawn, 1) : 0; }
    // The same, of the warp that has drawn it.
    DEVICE_MEMBER u32 tell(u32 turn, u32 draw) const {
        if (!goes_on()) return NO_TICKET;
        u32 ticket = 0;
        if (threadIdx.x % 32 == 0) {
            // Each block draws until there is none: as many draws as tickets, and the last of them is the last of all.
            if (draw + 1 == tickets) add_atomically(drawn, 0 - (u64)tickets);
            ticket = gridDim.x + draw < tickets ? gridDim.x + draw : NO_TICKET;
            told.tell(turn, ticket);
        }
        return __shfl_sync(0xffffffffu, ticket, 0);
    }
};

KERNEL __launch_bounds__(THREADS, RESIDENT) spans(const float* queries, const u8* key_pages, const u8* value_pages, float* parts,
                                                  float2* stats, const float* sinks, float* y, const u32* rows, const u32* lists,
                                                  u32 first, u32 count, u32 heads, u32 kv_heads, u32 ring_pages, u32 window,
                                                  u32 stride, u32 run, float scale, float cap, u64* drawn, u32 tiles, u32 mates,
                                                  u32 across, u8* codes, uint2* scales, float4* minima) {
    DYNAMIC_SHARED(u8, dynamic);
    u8* const shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const weights = shared + QUERY_BYTES;
    u8* const expanded = weights + WEIGHT_BYTES;
    u8* const slabs = expanded + EXPANDED_BYTES;
    float2* const tops = (float2*)(slabs + STAGES * SLAB_BYTES); // [WARPS][COLUMNS / 2]
    float* const totals = (float*)tops + WARPS * COLUMNS;       // [WARPS][COLUMNS]; [COLUMNS][WARPS] where blocks of a cluster read them
    float* const factors = totals + WARPS * COLUMNS;
    u32* const begins = (u32*)factors + COLUMNS;
    u32* const ends = begins + COLUMNS;
    u32* const places = ends + COLUMNS; // of a column's row and head, among all of the chunk
    const u32 barriers = shared_address(places + COLUMNS), turns = barriers + 16 * STAGES;
    const SlabRing ring = {shared_address(slabs), barriers, barriers + 8 * STAGES};
    // A block looks its first span up ahead of its turn.
    Step step = {rows, lists, true};
    const SpanList list = {step, first, count, heads, kv_heads, run, window, tiles, mates, across};
    u32* const kept = places + COLUMNS + 4 * STAGES + 8; // the row and head where the tile begins whose queries are here
    const Walk walk = {drawn, list.tickets(), {kept + 2, turns, turns + 16}};
    if (threadIdx.x == 0) {
        kept[0] = NO_TICKET;
        if (walk.goes_on()) walk.told.begin(WARPS + BRINGERS - 1);
        ring.begin(4);
    }
    __syncthreads();

    const Cut cut(window);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#if GOES_ON
    auto span_of = [&](u32 ticket) { return list.span(ticket); };
#else
    // Blocks of a cluster have a tile, and stay together, also those that have no span of it.
    const Span own = CLUSTERED ? list.span(blockIdx.y, blockIdx.z, blockIdx.x) : list.span(blockIdx.x, blockIdx.z, blockIdx.y);
    if (CLUSTERED ? own.tile.columns == 0 : !own.is_one()) return after_earlier_work();
    auto span_of = [&](u32) -> const Span& { return own; };
#endif

    if (warp >= WARPS) {
#if SHARES_REGISTERS
        give_registers<BRINGER_REGISTERS>();
#endif
        Source source = {step, 0, 0, kv_heads, 0, ring_pages};
        SlabBringer bringer = {source, ring, slabs, 0, warp - WARPS};
        const bool draws = warp == WARPS;
        u32 ticket = blockIdx.x;
#pragma unroll 1
        for (u32 turn = 0; ticket != NO_TICKET; turn++) {
            const Span span = span_of(ticket);
            const u32 from_page = span.begin / PAGE, to_page = (span.end + PAGE - 1) / PAGE;
            source.row = span.tile.row;
            source.end = span.newest.end;
            source.kv_head = span.kv_head;
            // A lane looks up a page.
            u32 known = GATHERED;
            if (from_page + lane < to_page && source.is_plain(from_page + lane)) known = source.page_of((from_page + lane) * PAGE);
            auto place = [&](u32 page) { return __shfl_sync(0xffffffffu, known, page - from_page); };
            if (turn == 0) after_earlier_work();
            step.is_ahead = false;
            u32 draw = 0;
            for (u32 i = from_page / GROUPS * GROUPS; i < to_page; i += GROUPS) {
                const u32 low = max(i, from_page), high = min(i + GROUPS, to_page);
                const u32 at_low = place(low), at_high = place(high - 1);
                if (draws && i + GROUPS >= to_page) draw = walk.draw();
                for (u32 s = 0; s < SLABS; s++)
                    for (u32 p = low; p < high; p++) bringer.bring(key_pages, p, p == low ? at_low : at_high, s);
                for (u32 p = low; p < high; p++)
                    for (u32 s = 0; s < SLABS; s++)
                        bringer.bring(value_pages, p, p == low ? at_low : at_high, s % GROUPS * OWN + s / GROUPS);
            }
            if (draws && !span.is_one()) draw = walk.draw();
            ticket = draws ? walk.tell(turn, draw) : walk.next(turn);
        }
#if !CLUSTERED
        return;
#endif
    }

#if SHARES_REGISTERS
    take_registers<CONSUMER_REGISTERS>();
#endif
    const u32 group = warp / 4, own_key = warp % 4 * 16 + lane / 4, column = lane % 4 * 2;
    Consumer consumer = {ring, slabs, group, shared_address(expanded), expanded, 0xffffffffu, 0};
    const u32 queries_at = shared_address(shared), weights_at = shared_address(weights);
    // Warps that have brought a cluster's slabs have no span, and go on to where all of its threads meet.
    u32 next = 0, ticket = warp < WARPS ? blockIdx.x : NO_TICKET;
#pragma unroll 1
    for (u32 turn = 0; ticket != NO_TICKET; ticket = walk.next(turn++)) {
        const Span span = span_of(ticket);
        if (GOES_ON && !span.is_one()) {
            if (turn == 0) after_earlier_work();
            step.is_ahead = false;
            continue;
        }
        const Tile& tile = span.tile;
        const Seen &oldest = span.oldest, &newest = span.newest;
        const u32 begin = span.begin, end = span.end, from_page = begin / PAGE, to_page = (end + PAGE - 1) / PAGE;
        // Of the tile of the span before queries are there.
        if (!GOES_ON || tile.row != kept[0] || tile.head != kept[1]) {
            if (GOES_ON) wait_for_threads(1, CONSUMERS);
            auto query_of = [&](u32 c) {
                return c < tile.columns ? queries + ((u64)tile.row_of(c) * heads + tile.head_of(c)) * HEAD_DIM : 0;
            };
            auto put = [&](u32 c, float down) { factors[c] = down * scale * (CAPPED ? 1.0f : LOG2_E); };
            if (threadIdx.x < COLUMNS) {
                const bool is_one = threadIdx.x < tile.columns;
                const u32 c = is_one ? threadIdx.x : 0;
                const Seen seen = seen_by(step, tile.row_of(c), window);
                begins[threadIdx.x] = seen.begin;
                ends[threadIdx.x] = is_one ? seen.end : 0;
                places[threadIdx.x] = (tile.row_of(c) - first) * heads + tile.head_of(c);
                if (threadIdx.x == 0) *(uint2*)kept = make_uint2(tile.row, tile.head);
            }
            if (turn == 0) after_earlier_work();
            step.is_ahead = false;
            keep_queries<HEAD_DIM, COLUMNS, WARPS, 4>(shared, query_of, put);
            writes_before_copies();
            wait_for_threads(1, CONSUMERS);
        }

        float sums[OWN][SUMS] = {}, highest[SUMS / 2], total[SUMS / 2] = {};
#pragma unroll
        for (int i = 0; i < SUMS / 2; i++) highest[i] = minus_infinity();
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
            const u32 c = i / 2 * 8 + lane * 2 + i % 2;
            if (lane < 4) totals[CLUSTERED ? c * WARPS + warp : warp * COLUMNS + c] = total[i];
        }
        if (warp == 0 && lane < 4) {
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) tops[j * 4 + lane] = make_float2(highest[j * 2], highest[j * 2 + 1]);
        }
        wait_for_threads(1, CONSUMERS);
#if CLUSTERED
        // Nobody reads slabs any more.
        float* const held = (float*)slabs;
#pragma unroll
        for (int i = 0; i < SUMS / 2; i++) {
            const u32 c = i / 2 * 8 + column + i % 2;
            if (c >= tile.columns) continue;
#pragma unroll
            for (int o = 0; o < OWN; o++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    held[place_of_sum(c, (group * OWN + o) * 64 + own_key + h * 8)] = sums[o][i / 2 * 4 + h * 2 + i % 2];
        }
#else
        // Where a column's numbers go, and their factor, is found by one thread. Nobody reads weights any more.
        float** const targets = (float**)weights;
        if (threadIdx.x < COLUMNS) {
            const u32 c = threadIdx.x, own = places[c];
            const Seen seen = {begins[c], ends[c]};
            const Output out = {parts, stats, sinks, y, first, heads, stride};
            float* to = nullptr;
            // A tile's rows may begin, or end, a span apart.
            const u32 spans = seen.end ? cut.count(seen) : 0, index = cut.span_of(begin) - cut.first(seen);
            if (index < spans) {
                const float top = ((float*)tops)[c];
                float weight = 0.0f, factor = 1.0f;
#pragma unroll
                for (int w = 0; w < WARPS; w++) weight = weight + totals[w * COLUMNS + c];
                if (spans == 1) {
                    factor = out.factor(own % heads, top, weight);
                    to = y + ((u64)first * heads + own) * HEAD_DIM;
                } else {
                    const u64 part = (u64)own * stride + index;
                    stats[part] = make_float2(top, weight);
                    to = parts + part * HEAD_DIM;
                }
                totals[c] = factor;
            }
            targets[c] = to;
        }
        wait_for_threads(1, CONSUMERS);
#pragma unroll
        for (int i = 0; i < SUMS / 2; i++) {
            const u32 c = i / 2 * 8 + column + i % 2;
            float* const to = targets[c];
            if (!to) continue;
            const float factor = totals[c];
#pragma unroll
            for (int o = 0; o < OWN; o++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u32 d = (group * OWN + o) * 64 + own_key + h * 8;
                    to[d] = sums[o][i / 2 * 4 + h * 2 + i % 2] * factor + 0.0f;
                }
        }
#endif
    }
#if CLUSTERED
    arrive_with_shared();
    cluster_arrived();
    const Output out = {parts, stats, sinks, y, first, heads, stride};
    const CodesOut coded = {codes, scales, minima};
    const Merging<WARPS> merging = {cut, out, coded, shared_address(slabs), shared_address(totals), shared_address(tops)};
    const Tile& tile = own.tile;
    const u32 last = cut.span_of(own.newest.end - 1), units = warp < WARPS ? tile.columns * UNITS : 0;
#pragma unroll 1
    for (u32 unit = blockIdx.x * WARPS + warp; unit < units; unit += across * WARPS) {
        const u32 c = unit / UNITS;
        merging.merge(c, unit % UNITS, tile.row_of(c), tile.head_of(c), {begins[c], ends[c]}, last);
    }
    // What others have is read; nobody leaves while another block may still read here.
    arrive_alone();
    cluster_arrived();
#endif
}
