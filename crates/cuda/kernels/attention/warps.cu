// Attention on the matrix instructions of single warps, which all cards have: heads of whole sixteens, cells of f16 or codes.
//
// As in spans.cu a block is a tile of columns (tiles.cuh), a head of keys and values, and a span of tokens, and scores are the products of
// keys by queries, weighed values those of values, turned, by weights. A page's slabs, of keys and then of values, pass through a ring of
// copies that go on by themselves. Of each slab's 64 keys, or features, a warp takes some sixteens, for some of the columns. Prompt rows
// are not cut: a block goes through all that its rows see.
//
// Whatever the tile, a column's sums have one order: scores along the depth by sixteens; weighed values along the keys by sixteens, page by
// page; weights of keys that are eight apart, page by page, then by eights, then by the four sixteens of a page. Pages that a column does
// not see add zero times a factor of one. So no bit depends on another column.

#define WARPS (KEY_WARPS * COLUMN_WARPS)
// Sixteens of keys, or features, and eights of columns of a warp.
#define OWN_ROWS (4 / KEY_WARPS)
#define OWN_COLUMNS (COLUMNS / 8 / COLUMN_WARPS)
#define QUERY_BYTES (DEPTHS * COLUMNS * 128)
#define WEIGHT_BYTES (COLUMNS * PAGE * 2)

static_assert(THREADS == WARPS * 32 && OWN_ROWS * KEY_WARPS == 4 && OWN_COLUMNS * COLUMN_WARPS * 8 == COLUMNS, "each has an owner");
static_assert(SHARED_BYTES == QUERY_BYTES + WEIGHT_BYTES + EXPANDED_BYTES + STAGES * STAGE_BYTES + 11 * COLUMNS * 4, "as the host reckons");

// Where weights of a key lie, for eight columns: [64 keys][COLUMNS].
DEVICE u32 weights_place(u32 key, u32 eight) {
    constexpr u32 eights = COLUMNS / 8;
    if constexpr (eights > 8) return (key * eights + (eight ^ (key % 8))) * 16;
    return (key * eights + (eight ^ (key * eights / 8 % eights))) * 16;
}

KERNEL __launch_bounds__(THREADS, RESIDENT) warps(const float* queries, const u8* key_pages, const u8* value_pages, float* parts,
                                                  float2* stats, const float* sinks, float* y, const u32* rows, const u32* lists,
                                                  u32 first, u32 count, u32 heads, u32 kv_heads, u32 ring_pages, u32 window,
                                                  u32 stride, u32 run, float scale, float cap, u32 is_cut) {
    after_earlier_work();
    DYNAMIC_SHARED(u8, shared);
    u8* const weights = shared + QUERY_BYTES;
    u8* const expanded = weights + WEIGHT_BYTES;
    u8* const ring = expanded + EXPANDED_BYTES;
    float* const tops = (float*)(ring + STAGES * STAGE_BYTES); // [KEY_WARPS][COLUMNS]
    float* const totals = tops + 4 * COLUMNS;                  // [4][COLUMNS]
    float* const factors = totals + 4 * COLUMNS;
    u32* const begins = (u32*)factors + COLUMNS;
    u32* const ends = begins + COLUMNS;

    const Step step = {rows, lists};
    const Tile tile = tile_of(step, first, count, heads, kv_heads, blockIdx.z, run, blockIdx.x);
    if (tile.columns == 0) return;
    const Seen oldest = seen_by(step, tile.row, window), newest = seen_by(step, tile.row_of(tile.columns - 1), window);
    const Cut cut(window);
    // Long spans come last, and begin first.
    const u32 last_span = is_cut ? cut.span_of(newest.end - 1) : 0, first_span = is_cut ? cut.first(oldest) : 0;
    if (blockIdx.y > last_span - first_span) return;
    const u32 span = last_span - blockIdx.y;
    const u32 begin = is_cut ? max(oldest.begin, cut.begin_of(span)) : oldest.begin;
    const u32 end = is_cut ? min(newest.end, cut.begin_of(span + 1)) : newest.end;
    const u32 from_page = begin / PAGE, to_page = (end + PAGE - 1) / PAGE;
    const u32 lane = threadIdx.x % 32, key_warp = threadIdx.x / 32 % KEY_WARPS, column_warp = threadIdx.x / 32 / KEY_WARPS;

    const Source source = {step, tile.row, newest.end, kv_heads, blockIdx.z, ring_pages};
    Slabs slabs = {source, key_pages, value_pages, ring, expanded, to_page, from_page};
    slabs.begin();
    auto query_of = [&](u32 c) {
        return c < tile.columns ? queries + ((u64)tile.row_of(c) * heads + tile.head_of(c)) * HEAD_DIM : 0;
    };
    auto put = [&](u32 c, float down) { factors[c] = down * scale * (CAPPED ? 1.0f : LOG2_E); };
    keep_queries<HEAD_DIM, COLUMNS, WARPS, 4>(shared, query_of, put);
    for (u32 c = threadIdx.x; c < COLUMNS; c += THREADS) {
        const bool is_one = c < tile.columns;
        const Seen seen = seen_by(step, tile.row_of(is_one ? c : 0), window);
        begins[c] = seen.begin;
        ends[c] = is_one ? seen.end : 0;
    }

    // Of each product a lane has rows `lane / 4` and 8 on, and of each eight columns `column` and the next.
    const u32 first_row = key_warp * OWN_ROWS * 16, first_eight = column_warp * OWN_COLUMNS, column = first_eight * 8 + lane % 4 * 2;
    float sums[DEPTHS][OWN_ROWS][OWN_COLUMNS][4] = {}, total[OWN_ROWS][OWN_COLUMNS][2] = {}, highest[OWN_COLUMNS][2];
#pragma unroll
    for (int j = 0; j < OWN_COLUMNS; j++) highest[j][0] = highest[j][1] = minus_infinity();
#pragma unroll 1
    for (u32 page = from_page; page < to_page; page++) {
        float scores[OWN_ROWS][OWN_COLUMNS][4] = {};
#pragma unroll 1
        for (u32 s = 0; s < DEPTHS; s++) {
            const u8* keys = slabs.take(true, 0, PAGE);
#pragma unroll
            for (u32 k = 0; k < 4; k += 2) {
                const bool is_one = HEAD_DIM % 64 == 0 || s * 64 + k * 16 < HEAD_DIM;
                const bool is_two = HEAD_DIM % 64 == 0 || s * 64 + k * 16 + 16 < HEAD_DIM;
                if (!is_one) break;
                u32 a[2][OWN_ROWS][4];
#pragma unroll
                for (int i = 0; i < OWN_ROWS; i++) {
                    const u32 key = first_row + i * 16 + lane % 16;
                    load_matrices(a[0][i], keys + swizzled(key, k * 2 + lane / 16));
                    if (is_two) load_matrices(a[1][i], keys + swizzled(key, k * 2 + 2 + lane / 16));
                }
#pragma unroll
                for (int j = 0; j < OWN_COLUMNS; j++) {
                    u32 b[4];
                    load_matrices(b, shared + s * COLUMNS * 128 + swizzled((first_eight + j) * 8 + lane % 8, k * 2 + lane / 8));
#pragma unroll
                    for (int i = 0; i < OWN_ROWS; i++) {
                        multiply_numbers(scores[i][j], a[0][i], b[0], b[1]);
                        if (is_two) multiply_numbers(scores[i][j], a[1][i], b[2], b[3]);
                    }
                }
            }
        }

        const bool is_whole = page * PAGE >= newest.begin && (page + 1) * PAGE <= oldest.end;
#pragma unroll
        for (int j = 0; j < OWN_COLUMNS; j++) {
            const float2 up = *(const float2*)&factors[column + j * 8];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const u32 c = column + j * 8 + e;
                float top = minus_infinity();
#pragma unroll
                for (int i = 0; i < OWN_ROWS; i++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        float& score = scores[i][j][h * 2 + e];
                        const u32 position = page * PAGE + first_row + i * 16 + lane / 4 + h * 8;
                        score = score * (e ? up.y : up.x);
                        if (CAPPED) score = capped(score, cap);
                        if (!is_whole && (position < begins[c] || position >= ends[c])) score = minus_infinity();
                        top = larger(top, score);
                    }
#pragma unroll
                for (int width = 4; width < 32; width *= 2) top = larger(top, __shfl_xor_sync(0xffffffffu, top, width));
                if (lane < 4) tops[key_warp * COLUMNS + c] = top;
            }
        }
        __syncthreads();
        bool is_moved = false;
        float keep[OWN_COLUMNS][2];
#pragma unroll
        for (int j = 0; j < OWN_COLUMNS; j++) {
            float2 top = {highest[j][0], highest[j][1]};
#pragma unroll
            for (int w = 0; w < KEY_WARPS; w++) {
                const float2 other = *(const float2*)&tops[w * COLUMNS + column + j * 8];
                top = make_float2(larger(top.x, other.x), larger(top.y, other.y));
            }
            const float base[2] = {base_of(top.x), base_of(top.y)};
            keep[j][0] = factor_of(highest[j][0], top.x);
            keep[j][1] = factor_of(highest[j][1], top.y);
            is_moved |= highest[j][0] != top.x || highest[j][1] != top.y;
            highest[j][0] = top.x;
            highest[j][1] = top.y;
#pragma unroll
            for (int i = 0; i < OWN_ROWS; i++) {
                u32 halves[2];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    halves[h] = pair_of_halves(exp2_near(scores[i][j][h * 2] - base[0]), exp2_near(scores[i][j][h * 2 + 1] - base[1]));
                    const u32 key = first_row + i * 16 + lane / 4 + h * 8;
                    *(u32*)(weights + weights_place(key, first_eight + j) + lane % 4 * 4) = halves[h];
                }
                // Sums are of weights as they are multiplied.
                const float low = half_to_float(halves[0]) + half_to_float(halves[1]);
                const float high = half_to_float(halves[0] >> 16) + half_to_float(halves[1] >> 16);
                total[i][j][0] = fma(total[i][j][0], keep[j][0], low);
                total[i][j][1] = fma(total[i][j][1], keep[j][1], high);
            }
        }
        if (__any_sync(0xffffffffu, is_moved)) {
#pragma unroll
            for (int s = 0; s < DEPTHS; s++)
#pragma unroll
                for (int i = 0; i < OWN_ROWS; i++)
#pragma unroll
                    for (int j = 0; j < OWN_COLUMNS; j++)
#pragma unroll
                        for (int e = 0; e < 4; e++) sums[s][i][j][e] = sums[s][i][j][e] * keep[j][e % 2];
        }

        const u32 low = begin > page * PAGE ? begin - page * PAGE : 0, high = min(end - page * PAGE, (u32)PAGE);
#pragma unroll
        for (int s = 0; s < DEPTHS; s++) {
            const u8* values = slabs.take(low == 0 && high == PAGE, low, high);
#pragma unroll
            for (u32 k = 0; k < 4; k += 2) {
                u32 a[2][OWN_ROWS][4];
#pragma unroll
                for (int i = 0; i < OWN_ROWS; i++) {
                    if (HEAD_DIM % 64 != 0 && s * 64 + first_row + i * 16 >= HEAD_DIM) continue;
                    const u32 key = k * 16 + lane / 16 * 8 + lane % 8, part = first_row / 8 + i * 2 + lane / 8 % 2;
                    load_turned(a[0][i], values + swizzled(key, part));
                    load_turned(a[1][i], values + swizzled(key + 16, part));
                }
#pragma unroll
                for (int j = 0; j < OWN_COLUMNS; j++) {
                    u32 b[4];
                    load_turned(b, weights + weights_place(k * 16 + lane, first_eight + j));
#pragma unroll
                    for (int i = 0; i < OWN_ROWS; i++) {
                        if (HEAD_DIM % 64 != 0 && s * 64 + first_row + i * 16 >= HEAD_DIM) continue;
                        multiply_numbers(sums[s][i][j], a[0][i], b[0], b[1]);
                        multiply_numbers(sums[s][i][j], a[1][i], b[2], b[3]);
                    }
                }
            }
        }
    }
    wait_for_copies<0>();

#pragma unroll
    for (int i = 0; i < OWN_ROWS; i++)
#pragma unroll
        for (int j = 0; j < OWN_COLUMNS; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float& own = total[i][j][e];
#pragma unroll
                for (int width = 4; width < 32; width *= 2) own = own + __shfl_xor_sync(0xffffffffu, own, width);
                if (lane < 4) totals[(key_warp * OWN_ROWS + i) * COLUMNS + column + j * 8 + e] = own;
            }
    __syncthreads();
    const Output out = {parts, stats, sinks, y, first, heads, stride};
#pragma unroll
    for (int j = 0; j < OWN_COLUMNS; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const u32 c = column + j * 8 + e;
            if (c >= tile.columns) continue;
            const u32 row = tile.row_of(c), head = tile.head_of(c);
            const Seen seen = seen_by(step, row, window);
            // A tile's rows may begin, or end, a span apart.
            const u32 spans = is_cut ? cut.count(seen) : 1, index = is_cut ? span - cut.first(seen) : 0;
            if (index >= spans) continue;
            float weight = 0.0f;
#pragma unroll
            for (int q = 0; q < 4; q++) weight = weight + totals[q * COLUMNS + c];
            const bool is_one = spans == 1;
            const float factor = is_one ? out.factor(head, highest[j][e], weight) : 1.0f;
            float* to = is_one ? y + ((u64)row * heads + head) * HEAD_DIM : parts + out.place(row, head, index) * HEAD_DIM;
            if (!is_one && key_warp == 0 && lane < 4) stats[out.place(row, head, index)] = make_float2(highest[j][e], weight);
#pragma unroll
            for (int s = 0; s < DEPTHS; s++)
#pragma unroll
                for (int i = 0; i < OWN_ROWS; i++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const u32 d = s * 64 + first_row + i * 16 + lane / 4 + h * 8;
                        if (HEAD_DIM % 64 == 0 || d < HEAD_DIM) to[d] = sums[s][i][j][h * 2 + e] * factor + 0.0f;
                    }
        }
}
