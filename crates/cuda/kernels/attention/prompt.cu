// Attention of prompt rows on Hopper: heads of up to 256 numbers.
//
// A block is a tile of 128 columns (tiles.cuh) and a head of keys and values; it goes through all tokens that its rows see, KEYS at a time.
// Each of two warpgroups has 64 columns: their scores, from queries and keys in shared memory; their weights, which are the registers of
// the next product's first operand; their weighed values. The product of the next scores runs while weights are multiplied by values, and
// while they are made the other warpgroup's products run.
//
// Tokens are taken from multiples of KEYS on, in order, and what a column does not see adds zero times its factor of one: so its bits
// depend on no other.

#define ROWS 128
#define CONSUMERS 256
#define KEY_PAGES (KEYS / PAGE)
#define QUERY_BYTES (SLABS * ROWS * 128)
#define STAGE_BYTES (SLABS * KEYS * 128)
#define SCORES (KEYS / 2)
#define SUMS (HEAD_DIM / 2)

static_assert(FORMAT == 1 && COLUMNS == ROWS && THREADS == CONSUMERS + 128, "two warpgroups that multiply, and one that copies");
static_assert(SHARED_BYTES == 1024 + QUERY_BYTES + 2 * STAGES * STAGE_BYTES + ROWS * 4 + STAGES * 32, "as the host reckons");

using At = Ring<STAGES>;

// A ring of keys or of values.
struct Stages {
    u8* pointer;
    u32 address, full, empty;

    DEVICE_MEMBER void begin() const {
        for (u32 s = 0; s < STAGES; s++) {
            barrier_init(full + 8 * s, 1);
            barrier_init(empty + 8 * s, CONSUMERS / 32);
        }
    }
    DEVICE_MEMBER u32 of(const At& at) const { return address + at.stage * STAGE_BYTES; }
    DEVICE_MEMBER void wait(const At& at) const { barrier_wait(full + 8 * at.stage, at.parity); }
    DEVICE_MEMBER void give_back(const At& at) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(empty + 8 * at.stage);
    }
    // One warp brings the pages from `page` on, of those from `low` to `high`; a lane copies a slab.
    DEVICE_MEMBER void bring(const Source& from, const u8* pages, At& at, u32 page, u32 low, u32 high) const {
        const u32 lane = threadIdx.x % 32, own = page + lane / SLABS, slab = lane % SLABS;
        if (lane == 0) barrier_wait(empty + 8 * at.stage, at.parity ^ 1);
        __syncwarp();
        const bool is_one = lane < KEY_PAGES * SLABS && own >= low && own < high, is_plain = is_one && from.is_plain(own);
        const u32 place = is_plain ? from.page_of(own * PAGE) : 0;
        const u32 copies = __popc(__ballot_sync(0xffffffffu, is_plain)), gathered = __ballot_sync(0xffffffffu, is_one && !is_plain);
        for (u32 i = 0; i < KEY_PAGES * SLABS; i++) {
            if (!(gathered >> i & 1)) continue;
            const SlabGatherer gatherer = {from};
            gatherer.gather(pointer + at.stage * STAGE_BYTES + i % SLABS * KEYS * 128 + i / SLABS * (PAGE * 128), pages,
                            page + i / SLABS, i % SLABS);
        }
        if (gathered) writes_before_copies();
        __syncwarp();
        if (lane == 0) barrier_expect(full + 8 * at.stage, copies * SLAB_BYTES);
        __syncwarp();
        const u32 to = of(at) + slab * KEYS * 128 + lane / SLABS * (PAGE * 128);
        if (is_plain) copy_bulk(to, pages + from.page_at(place) + slab * SLAB_BYTES, SLAB_BYTES, full + 8 * at.stage);
        at.next();
    }
};

KERNEL __launch_bounds__(THREADS, 1) prompt(const float* queries, const u8* key_pages, const u8* value_pages, const float* sinks, float* y,
                                            const u32* rows, const u32* lists, u32 first, u32 count, u32 heads, u32 kv_heads,
                                            u32 ring_pages, u32 window, u32 run, float scale, float cap) {
    DYNAMIC_SHARED(u8, dynamic);
    u8* const shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const key_stages = shared + QUERY_BYTES;
    u8* const value_stages = key_stages + STAGES * STAGE_BYTES;
    float* const downs = (float*)(value_stages + STAGES * STAGE_BYTES);
    const u32 barriers = shared_address(downs + ROWS);
    const Stages keys = {key_stages, shared_address(key_stages), barriers, barriers + 8 * STAGES};
    const Stages values = {value_stages, shared_address(value_stages), barriers + 16 * STAGES, barriers + 24 * STAGES};
    if (threadIdx.x == 0) {
        keys.begin();
        values.begin();
        barriers_ready();
    }
    __syncthreads();
    after_earlier_work();

    const Step step = {rows, lists};
    const Tile tile = tile_of(step, first, count, heads, kv_heads, blockIdx.z, run, blockIdx.x);
    if (tile.columns == 0) return;
    const Seen oldest = seen_by(step, tile.row, window), newest = seen_by(step, tile.row_of(tile.columns - 1), window);
    const u32 begin = oldest.begin, end = newest.end, low = begin / PAGE, high = (end + PAGE - 1) / PAGE;
    const u32 from = begin / KEYS, to = (end + KEYS - 1) / KEYS;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    if (warp >= CONSUMERS / 32) {
        give_registers<40>();
        // One warp for keys and one for values: neither waits for room that the other's are to give back.
        const u32 own = warp - CONSUMERS / 32;
        if (own > 1) return;
        const Source source = {step, tile.row, end, kv_heads, blockIdx.z, ring_pages};
        const Stages& stages = own ? values : keys;
        At at;
        for (u32 i = from; i < to; i++) stages.bring(source, own ? value_pages : key_pages, at, i * KEY_PAGES, low, high);
        return;
    }
    take_registers<232>();
    auto query_of = [&](u32 c) {
        return c < tile.columns ? queries + ((u64)tile.row_of(c) * heads + tile.head_of(c)) * HEAD_DIM : 0;
    };
    keep_queries<HEAD_DIM, ROWS, CONSUMERS / 32, 8>(shared, query_of, [&](u32 c, float down) { downs[c] = down; });
    writes_before_copies();
    wait_for_threads(1, CONSUMERS);

    const u32 group = warp / 4, own_row = warp * 16 + lane / 4;
    Columns own;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const u32 c = own_row + h * 8;
        const Seen seen = seen_by(step, tile.row_of(c < tile.columns ? c : 0), window);
        own.begins[h] = seen.begin;
        own.ends[h] = c < tile.columns ? seen.end : 0;
        own.factors[h] = downs[c] * scale * (CAPPED ? 1.0f : LOG2_E);
        own.highest[h] = minus_infinity();
        own.totals[h] = 0.0f;
    }
    const u32 queries_at = shared_address(shared) + group * (64 * 128);
    float sums[SUMS] = {}, scores[SCORES], keep[2];
    u32 weights[KEYS / 16][4];
    At key_at, value_at;
    // The product of the queries and the keys of a stage.
    auto score = [&] {
#pragma unroll
        for (int j = 0; j < SCORES; j++) scores[j] = 0.0f;
        products_begin();
#pragma unroll
        for (int s = 0; s < SLABS; s++) {
            const u64 a = operand_of(queries_at + s * ROWS * 128), b = operand_of(keys.of(key_at) + s * KEYS * 128);
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_shared<KEYS>(scores, a + k * 2, b + k * 2);
        }
        products_commit();
    };
    auto add_values = [&] {
        products_begin();
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
            multiply_by_turned<HEAD_DIM>(sums, weights[k], turned_operand_of(values.of(value_at) + k * 2048, KEYS * 128));
        products_commit();
    };
    // Whether all columns see all keys of a stage.
    auto is_whole = [&](u32 i) { return i * KEYS >= newest.begin && (i + 1) * KEYS <= oldest.end; };
    auto halve = [&] {
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int j = k * 8 + r / 2 * 4 + r % 2 * 2;
                weights[k][r] = pair_of_halves(scores[j], scores[j + 1]);
            }
    };
    keys.wait(key_at);
    score();
    products_wait<0>();
    keys.give_back(key_at);
    key_at.next();
    weigh(scores, own, keep, from * KEYS, is_whole(from), cap);
    halve();
    // Values of a stage have come; what no column sees may be anything.
    auto wait_for_values = [&](u32 i) {
        values.wait(value_at);
        if (i * KEYS >= begin && (i + 1) * KEYS <= end) return;
        for (u32 t = threadIdx.x; t < KEYS * SLABS * 8; t += CONSUMERS) {
            const u32 position = i * KEYS + t / 8 % KEYS;
            uint4* part = (uint4*)(value_stages + value_at.stage * STAGE_BYTES + t * 16);
            if (position < begin || position >= end) *part = make_uint4(0, 0, 0, 0);
        }
        writes_before_copies();
        wait_for_threads(1, CONSUMERS);
    };
#pragma unroll 1
    for (u32 i = from; i + 1 < to; i++) {
        keys.wait(key_at);
        wait_for_values(i);
        score();
        add_values();
        products_wait<1>();
        keys.give_back(key_at);
        key_at.next();
        weigh(scores, own, keep, (i + 1) * KEYS, is_whole(i + 1), cap);
        products_wait<0>();
        values.give_back(value_at);
        value_at.next();
#pragma unroll
        for (int j = 0; j < SUMS; j++) sums[j] = sums[j] * keep[j / 2 % 2];
        halve();
    }
    wait_for_values(to - 1);
    add_values();
    products_wait<0>();

    give(Output{0, 0, sinks, y, first, heads, 0}, tile, own, own_row, sums);
}
