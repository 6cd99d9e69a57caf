// Attention of prompt rows on Hopper: heads of more than 256 numbers.
//
// A block is a tile of 64 columns (tiles.cuh) and a head of keys and values; it goes through all tokens that its rows see, two pages at a
// time. Sums of all a head's numbers are too many for one warpgroup: each of two has half of them, and the scores of one of the pages. They
// meet for the highest scores and for weights, which are made while the products of the pair before, those of its last page's values,
// run. Slabs pass through a ring, each given back when its product is done: for more there is no shared memory. Blocks of a cluster have
// tiles of one run, and each brings half of the slabs for both: the second-level cache alone could not feed all of them.
//
// As in prompt.cu, what a column does not see adds zero times its factor of one.

#define ROWS 64
#define CONSUMERS 256
#define OWN (SLABS / 2)
#define QUERY_BYTES (SLABS * ROWS * 128)
#define WEIGHT_BYTES (2 * ROWS * 128)

static_assert(STAGES % BRINGERS == 0, "each place of the ring has its warp");
static_assert(FORMAT == 1 && SLABS % 2 == 0 && COLUMNS == ROWS && THREADS == CONSUMERS + 128, "two warpgroups, and one that copies");
static_assert(SHARED_BYTES == 1024 + QUERY_BYTES + WEIGHT_BYTES + STAGES * SLAB_BYTES + 3 * ROWS * 4 + STAGES * 16, "as the host reckons");

KERNEL
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, 1) prompt(const float* queries, const u8* key_pages, const u8* value_pages, const float* sinks, float* y,
                                          const u32* rows, const u32* lists, u32 first, u32 count, u32 heads, u32 kv_heads,
                                          u32 ring_pages, u32 window, u32 run, float scale, float cap) {
    DYNAMIC_SHARED(u8, dynamic);
    u8* const shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const weights = shared + QUERY_BYTES;
    u8* const slabs = weights + WEIGHT_BYTES;
    float* const downs = (float*)(slabs + STAGES * SLAB_BYTES);
    float* const tops = downs + ROWS; // [2][ROWS]
    const u32 barriers = shared_address(tops + 2 * ROWS);
    const SlabRing ring = {shared_address(slabs), barriers, barriers + 8 * STAGES};
    const u32 rank = CLUSTER > 1 ? block_of_cluster() : 0;
    if (threadIdx.x == 0) ring.begin(4 * CLUSTER);
    __syncthreads();
    if (CLUSTER > 1) wait_for_cluster();
    after_earlier_work();

    // Tiles that see most come first: blocks of the next launch that wait where others have ended are those that take longest.
    const u32 clusters = gridDim.x / CLUSTER, cluster = (blockIdx.z * gridDim.x + blockIdx.x) / CLUSTER;
    const u32 kv_head = cluster % kv_heads, start = (clusters - 1 - cluster / kv_heads) * CLUSTER;
    const Step step = {rows, lists};
    const Tile tile = tile_of(step, first, count, heads, kv_heads, kv_head, run, start + blockIdx.x % CLUSTER);
    if (CLUSTER == 1 && tile.columns == 0) return;
    // Of a tile without columns nothing is seen; it copies for the other block.
    const u32 last_row = tile.columns ? tile.row_of(tile.columns - 1) : first + count - 1;
    const Seen oldest = seen_by(step, tile.columns ? tile.row : last_row, window), newest = seen_by(step, last_row, window);
    const u32 begin = oldest.begin, end = newest.end;
    // What the cluster's tiles see together: they are of one run.
    u32 all_begin = begin, all_end = end;
    if (CLUSTER > 1) {
        const u32 tile_rows = heads / kv_heads < COLUMNS ? COLUMNS / (heads / kv_heads) : 1;
        const u32 parts = (heads / kv_heads + COLUMNS - 1) / COLUMNS;
        const u32 from_row = first + start / parts * tile_rows, to_row = first + ((start + CLUSTER - 1) / parts + 1) * tile_rows - 1;
        all_begin = seen_by(step, min(from_row, first + count - 1), window).begin;
        all_end = seen_by(step, min(to_row, first + count - 1), window).end;
    }
    const u32 low = all_begin / PAGE, high = (all_end + PAGE - 1) / PAGE, lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    if (warp >= CONSUMERS / 32) {
        give_registers<40>();
        const Source source = {step, tile.row, end, kv_heads, kv_head, ring_pages};
        SlabBringer bringer = {source, ring, slabs, 0, warp - CONSUMERS / 32};
        const u32 lowest = low / 2 * 2;
        for (u32 i = lowest; i < high; i += 2) {
            // Lanes look up the pages.
            u32 known = GATHERED;
            const u32 own = max(i, low) + lane % 4;
            if (lane < 4 && own < high && source.is_plain(own)) known = source.page_of(own * PAGE);
            auto bring = [&](const u8* pages, u32 p, u32 slab) {
                bringer.bring(pages, p, __shfl_sync(0xffffffffu, known, p - max(i, low)), slab, rank);
            };
            auto bring_keys = [&](u32 pair) {
                const u32 here = max(pair, low), stop = min(pair + 2, high);
                for (u32 s = 0; s < SLABS; s++)
                    for (u32 p = here; p < stop; p++) bring(key_pages, p, s);
            };
            auto bring_values = [&](u32 p) {
                for (u32 s = 0; s < SLABS; s++) bring(value_pages, p, s % 2 * OWN + s / 2);
            };
            const u32 here = max(i, low), last = min(i + 2, high) - 1;
            if (i == lowest) bring_keys(i);
            if (here < last) bring_values(here);
            if (i + 2 < high) bring_keys(i + 2);
            bring_values(last);
        }
    } else {
        take_registers<232>();
        auto query_of = [&](u32 c) {
            return c < tile.columns ? queries + ((u64)tile.row_of(c) * heads + tile.head_of(c)) * HEAD_DIM : 0;
        };
        keep_queries<HEAD_DIM, ROWS, CONSUMERS / 32, 8>(shared, query_of, [&](u32 c, float down) { downs[c] = down; });
        writes_before_copies();
        wait_for_threads(1, CONSUMERS);

        const u32 group = warp / 4, own_row = warp % 4 * 16 + lane / 4, column = lane % 4 * 2;
        u32 begins[2], ends[2];
        float factors[2], highest[2], totals[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 c = own_row + h * 8;
            const bool is_one = c < tile.columns;
            const Seen seen = seen_by(step, is_one ? tile.row_of(c) : last_row, window);
            begins[h] = seen.begin;
            ends[h] = is_one ? seen.end : 0;
            factors[h] = downs[c] * scale * (CAPPED ? 1.0f : LOG2_E);
            highest[h] = minus_infinity();
            totals[h] = 0.0f;
        }
        const u32 queries_at = shared_address(shared);
        // Where this lane's rows of eight weights go, and come from.
        const u32 place = (warp % 4 * 16 + lane / 8 % 2 * 8 + lane % 8) * 128;
        auto part = [&](u32 page, u32 k) { return page * (ROWS * 128) + place + ((k * 2 + lane / 16) ^ (lane % 8)) * 16; };
        auto give_back = [&](u32 index) {
            __syncwarp();
#if CLUSTER > 1
            if (lane < CLUSTER) barrier_arrive_at(ring.empty_of(index), lane);
#else
            if (lane == 0) barrier_arrive(ring.empty_of(index));
#endif
        };
        float sums[OWN][32] = {}, scores[32], keep[2];
        u32 next = 0;
        // Scores of a pair of pages, of which this warpgroup has one.
        auto score = [&](u32 pair) {
            const u32 here = max(pair, low), present = min(pair + 2, high) - here, page = pair + group;
#pragma unroll
            for (int j = 0; j < 32; j++) scores[j] = 0.0f;
            if (page >= here && page < here + present) {
                u32 index = next + (page - here);
#pragma unroll
                for (int s = 0; s < SLABS; s++, index += present) {
                    ring.wait(index);
                    const u64 a = operand_of(queries_at + s * ROWS * 128), b = operand_of(ring.slab(index));
                    products_begin();
#pragma unroll
                    for (int k = 0; k < 4; k++) multiply_shared<64>(scores, a + k * 2, b + k * 2);
                    products_commit();
                    products_wait<1>();
                    if (s > 0) give_back(index - present);
                }
                products_wait<0>();
                give_back(index - present);
            }
            next += SLABS * present;
        };
        // Scores become weights in shared memory; `keep` is the factor on what was relative to the highest score before. Before the
        // exponentials, and behind all, `meanwhile` is done.
        auto weigh = [&](u32 pair, auto meanwhile) {
            const u32 page = pair + group;
            const bool is_here = page >= low && page < high;
            const bool is_whole = is_here && page * PAGE >= newest.begin && (page + 1) * PAGE <= oldest.end && tile.columns;
            if (!is_whole) {
                // What is not seen is lower than all else, with any factor.
#pragma unroll
                for (int j = 0; j < 32; j++) {
                    const u32 key = page * PAGE + j / 4 * 8 + column + j % 2;
                    if (!is_here || key < begins[j / 2 % 2] || key >= ends[j / 2 % 2]) scores[j] = minus_infinity();
                }
            }
            float top[2] = {minus_infinity(), minus_infinity()}, base[2];
#pragma unroll
            for (int j = 0; j < 32; j++) {
                const int h = j / 2 % 2;
                scores[j] = scores[j] * factors[h];
                if (CAPPED) scores[j] = capped(scores[j], cap);
                top[h] = larger(top[h], scores[j]);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                top[h] = larger(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
                top[h] = larger(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
                if (lane % 4 == 0) tops[group * ROWS + own_row + h * 8] = top[h];
            }
            wait_for_threads(1, CONSUMERS);
            meanwhile(0);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float most = larger(larger(highest[h], top[h]), tops[(1 - group) * ROWS + own_row + h * 8]);
                keep[h] = factor_of(highest[h], most);
                highest[h] = most;
                base[h] = base_of(most);
                totals[h] = totals[h] * keep[h];
            }
#pragma unroll
            for (int j = 0; j < 32; j++) {
                scores[j] = exp2_near(scores[j] - base[j / 2 % 2]);
                totals[j / 2 % 2] = totals[j / 2 % 2] + scores[j];
            }
#pragma unroll
            for (int k = 0; k < 4; k++)
                store_matrices(shared_address(weights + part(group, k)), pair_of_halves(scores[k * 8], scores[k * 8 + 1]),
                               pair_of_halves(scores[k * 8 + 2], scores[k * 8 + 3]), pair_of_halves(scores[k * 8 + 4], scores[k * 8 + 5]),
                               pair_of_halves(scores[k * 8 + 6], scores[k * 8 + 7]));
            meanwhile(1);
        };
        u32 own[4][4];
        // Starts the products of a page's weights by its values, slab by slab; `behind` is done behind each.
        auto add_values = [&](u32 p, auto behind) {
#pragma unroll
            for (int k = 0; k < 4; k++) load_matrices(own[k], weights + part(p % 2, k));
            const u32 from = begin > p * PAGE ? min(begin - p * PAGE, (u32)PAGE) : 0;
            const u32 to = end < (p + 1) * PAGE ? (end > p * PAGE ? end - p * PAGE : 0) : PAGE;
#pragma unroll
            for (int o = 0; o < OWN; o++) {
                const u32 index = next + o * 2 + group;
                ring.wait(index);
                // What no column sees may be anything.
                if (from > 0 || to < PAGE) {
                    const u32 token = threadIdx.x % 128 / 2;
                    uint4* row = (uint4*)(slabs + index % STAGES * SLAB_BYTES + token * 128 + threadIdx.x % 2 * 64);
                    if (token < from || token >= to)
                        for (int q = 0; q < 4; q++) row[q] = make_uint4(0, 0, 0, 0);
                    writes_before_copies();
                    wait_for_threads(2 + group, 128);
                }
                const u64 b = turned_operand_of(ring.slab(index), SLAB_BYTES);
                products_begin();
#pragma unroll
                for (int k = 0; k < 4; k++) multiply_by_turned<64>(sums[o], own[k], b + k * 128);
                products_commit();
                behind(o, index);
            }
            next += SLABS;
        };

        const u32 lowest = low / 2 * 2;
        score(lowest);
        weigh(lowest, [](int) {});
        wait_for_threads(1, CONSUMERS);
        // The products of a pair's last page run while the weights of the next pair are made.
#pragma unroll 1
        for (u32 i = lowest; i < high; i += 2) {
            const u32 here = max(i, low), last = min(i + 2, high) - 1;
            const bool is_more = i + 2 < high;
            if (here < last) {
                add_values(here, [&](int o, u32 index) {
                    products_wait<1>();
                    if (o > 0) give_back(index - 2);
                });
                products_wait<0>();
                give_back(next - SLABS + (OWN - 1) * 2 + group);
            }
            if (is_more) score(i + 2);
            add_values(last, [](int, u32) {});
            // Slabs whose products are done are given back before the last are: the ring is short.
            const u32 from = next - SLABS + group;
            auto give_back_done = [&](int point) {
                if (point == 0) products_wait<OWN - 1>();
                else products_wait<1>();
#pragma unroll
                for (int o = point; o < (point == 0 ? 1 : OWN - 1); o++) give_back(from + o * 2);
            };
            if (is_more) {
                weigh(i + 2, give_back_done);
            } else {
                give_back_done(0);
                give_back_done(1);
            }
            products_wait<0>();
            give_back(from + (OWN - 1) * 2);
            if (!is_more) break;
            const bool is_moved = keep[0] != 1.0f || keep[1] != 1.0f;
            if (__any_sync(0xffffffffu, is_moved)) {
#pragma unroll
                for (int o = 0; o < OWN; o++)
#pragma unroll
                    for (int j = 0; j < 32; j++) sums[o][j] = sums[o][j] * keep[j / 2 % 2];
            }
            wait_for_threads(1, CONSUMERS);
        }

#pragma unroll
        for (int h = 0; h < 2; h++) {
            totals[h] = totals[h] + __shfl_xor_sync(0xffffffffu, totals[h], 1);
            totals[h] = totals[h] + __shfl_xor_sync(0xffffffffu, totals[h], 2);
            if (lane % 4 == 0) tops[group * ROWS + own_row + h * 8] = totals[h];
        }
        wait_for_threads(1, CONSUMERS);
        const Output out = {0, 0, sinks, y, first, heads, 0};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 c = own_row + h * 8;
            if (c >= tile.columns) continue;
            const u32 row = tile.row_of(c), head = tile.head_of(c);
            const float factor = out.factor(head, highest[h], tops[c] + tops[ROWS + c]);
            float* to = y + ((u64)row * heads + head) * HEAD_DIM + group * OWN * 64 + column;
#pragma unroll
            for (int o = 0; o < OWN; o++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    *(float2*)(to + o * 64 + j * 8) =
                        make_float2(sums[o][j * 4 + h * 2] * factor + 0.0f, sums[o][j * 4 + h * 2 + 1] * factor + 0.0f);
        }
    }
    // Nobody leaves while another block may still write here.
    if (CLUSTER > 1) wait_for_cluster();
}
