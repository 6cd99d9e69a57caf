// Attention of prompt rows on the matrix instructions of single warps, which all cards have: heads of up to 256 numbers.
//
// A block is a tile of columns (tiles.cuh) and a head of keys and values; it goes through all tokens that its rows see, a page at a time.
// A warp has sixteen columns, and for them all keys and all numbers: scores from queries and keys; their weights, which are the
// registers of the next product's first operand; weighed values.
//
// As in prompt.cu, what a column does not see adds zero times its factor of one, so its bits depend on no other.

#define WARPS (THREADS / 32)
#define QUERY_BYTES (DEPTHS * COLUMNS * 128)

static_assert(KEYS == PAGE && COLUMNS == WARPS * 16 && HEAD_DIM <= 256, "sums that fit into registers");
static_assert(SHARED_BYTES == QUERY_BYTES + EXPANDED_BYTES + STAGES * STAGE_BYTES + COLUMNS * 4, "as the host reckons");

KERNEL __launch_bounds__(THREADS, RESIDENT) warps_prompt(const float* queries, const u8* key_pages, const u8* value_pages,
                                                         const float* sinks, float* y, const u32* rows, const u32* lists, u32 first,
                                                         u32 count, u32 heads, u32 kv_heads, u32 ring_pages, u32 window, u32 run,
                                                         float scale, float cap) {
    after_earlier_work();
    DYNAMIC_SHARED(u8, shared);
    u8* const expanded = shared + QUERY_BYTES;
    u8* const ring = expanded + EXPANDED_BYTES;
    float* const downs = (float*)(ring + STAGES * STAGE_BYTES);

    const Step step = {rows, lists};
    const Tile tile = tile_of(step, first, count, heads, kv_heads, blockIdx.z, run, blockIdx.x);
    if (tile.columns == 0) return;
    const Seen oldest = seen_by(step, tile.row, window), newest = seen_by(step, tile.row_of(tile.columns - 1), window);
    const u32 begin = oldest.begin, end = newest.end, from_page = begin / PAGE, to_page = (end + PAGE - 1) / PAGE;
    const u32 lane = threadIdx.x % 32, first_column = threadIdx.x / 32 * 16;

    const Source source = {step, tile.row, end, kv_heads, blockIdx.z, ring_pages};
    Slabs slabs = {source, key_pages, value_pages, ring, expanded, to_page, from_page};
    slabs.begin();
    auto query_of = [&](u32 c) {
        return c < tile.columns ? queries + ((u64)tile.row_of(c) * heads + tile.head_of(c)) * HEAD_DIM : 0;
    };
    keep_queries<HEAD_DIM, COLUMNS, WARPS, 4>(shared, query_of, [&](u32 c, float down) { downs[c] = down; });
    __syncthreads();
    Columns own;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const u32 c = first_column + lane / 4 + h * 8;
        const Seen seen = seen_by(step, tile.row_of(c < tile.columns ? c : 0), window);
        own.begins[h] = seen.begin;
        own.ends[h] = c < tile.columns ? seen.end : 0;
        own.factors[h] = downs[c] * scale * (CAPPED ? 1.0f : LOG2_E);
        own.highest[h] = minus_infinity();
        own.totals[h] = 0.0f;
    }

    float sums[HEAD_DIM / 8][4] = {};
#pragma unroll 1
    for (u32 page = from_page; page < to_page; page++) {
        float scores[KEYS / 2] = {}, keep[2];
#pragma unroll 1
        for (u32 s = 0; s < DEPTHS; s++) {
            const u8* keys = slabs.take(true, 0, PAGE);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                if (HEAD_DIM % 64 != 0 && s * 64 + k * 16 >= HEAD_DIM) break;
                u32 a[4];
                load_matrices(a, shared + s * COLUMNS * 128 + swizzled(first_column + lane % 16, k * 2 + lane / 16));
#pragma unroll
                for (int j = 0; j < KEYS / 8; j += 2) {
                    u32 b[4];
                    load_matrices(b, keys + swizzled((j + lane / 16) * 8 + lane % 8, k * 2 + lane / 8 % 2));
                    multiply_numbers(*(float(*)[4])&scores[j * 4], a, b[0], b[1]);
                    multiply_numbers(*(float(*)[4])&scores[j * 4 + 4], a, b[2], b[3]);
                }
            }
        }
        const bool is_whole = page * PAGE >= newest.begin && (page + 1) * PAGE <= oldest.end;
        weigh(scores, own, keep, page * PAGE, is_whole, cap);
        u32 weights[KEYS / 16][4];
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int j = k * 8 + r / 2 * 4 + r % 2 * 2;
                weights[k][r] = pair_of_halves(scores[j], scores[j + 1]);
            }
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[j][e] = sums[j][e] * keep[e / 2];

        const u32 low = begin > page * PAGE ? begin - page * PAGE : 0, high = min(end - page * PAGE, (u32)PAGE);
#pragma unroll
        for (int s = 0; s < DEPTHS; s++) {
            const u8* values = slabs.take(low == 0 && high == PAGE, low, high);
#pragma unroll
            for (u32 k = 0; k < KEYS / 16; k++)
#pragma unroll
                for (int j = 0; j < 8 && s * 8 + j < HEAD_DIM / 8; j += 2) {
                    u32 b[4];
                    load_turned(b, values + swizzled(k * 16 + lane % 16, j + lane / 16));
                    multiply_numbers(sums[s * 8 + j], weights[k], b[0], b[1]);
                    multiply_numbers(sums[s * 8 + j + 1], weights[k], b[2], b[3]);
                }
        }
    }
    wait_for_copies<0>();

    give(Output{0, 0, sinks, y, first, heads, 0}, tile, own, first_column + lane / 4, *(float(*)[HEAD_DIM / 2])&sums);
}
