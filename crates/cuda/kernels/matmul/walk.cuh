// How blocks of Hopper go through the tiles of a product: rings of shared memory that bulk copies fill, and the order of tiles.
//
// A source has CONSUMERS warpgroups that multiply 64 rows each, TOKENS columns, blocks in clusters of CLUSTER, and rings of STAGES and
// WEIGHT_STAGES.

#define BLOCK 64
#define ROWS (CONSUMERS * 64)
#define TILES (ROWS / TILE_ROWS)
#define SPAN_CHUNKS (SPAN * BLOCK / CHUNK_FEATURES)
#define TILE_BYTES (SPAN_CHUNKS * CHUNK)
#define WEIGHT_BYTES (TILES * TILE_BYTES)

static_assert(SPAN * BLOCK % CHUNK_FEATURES == 0, "a stage of weights is whole chunks");
static_assert(ROWS % TILE_ROWS == 0 && TILES <= 32, "a lane brings a tile of rows");
static_assert(THREADS == (CONSUMERS + 1) * 128, "a warpgroup copies");
static_assert(TOKENS <= CONSUMERS * 128, "a thread that multiplies has a column's place");

// What is in shared memory behind the stages.
struct Barriers {
    u32 x_full, x_empty, weights_full, weights_empty;
    DEVICE_MEMBER Barriers(u32 base) {
        x_full = base;
        x_empty = x_full + 8 * STAGES;
        weights_full = x_empty + 8 * STAGES;
        weights_empty = weights_full + 8 * WEIGHT_STAGES;
    }
};
#define BARRIER_BYTES (16 * (STAGES + WEIGHT_STAGES))

struct Problem {
    const u32* starts;
    u32 tokens, segments, row_tiles, blocks, splits;
    bool is_parted;
    // (segments + 1) tiles of columns before each segment, in shared memory.
    const u32* before;

    DEVICE_MEMBER u32 columns(u32 segment) const { return starts ? starts[segment + 1] - starts[segment] : tokens; }
    // Tiles of all parts.
    DEVICE_MEMBER u32 count() const { return before[segments] * row_tiles * (is_parted ? splits : 1); }
};

// A tile of a walk: tokens fastest, so that blocks at work share weights.
struct Tile {
    u32 segment, row_tile, column, part;
    DEVICE_MEMBER Tile(const Problem& p, u32 index, u32& segment_before) {
        part = p.is_parted ? index % p.splits : 0;
        index = p.is_parted ? index / p.splits : index;
        while (p.before[segment_before + 1] * p.row_tiles <= index) segment_before++;
        segment = segment_before;
        u32 width = p.before[segment + 1] - p.before[segment];
        index -= p.before[segment] * p.row_tiles;
        row_tile = index / width;
        column = index % width * TOKENS;
    }
};

// Blocks of the depth of part `index`: whole stages of weights.
DEVICE void part_of(const Problem& p, u32 index, u32& start, u32& end) {
    u32 spans = (p.blocks + SPAN - 1) / SPAN;
    start = spans * index / p.splits * SPAN;
    end = spans * (index + 1) / p.splits * SPAN;
    end = end < p.blocks ? end : p.blocks;
}

// (segments + 1) counts of tiles before each segment. One warp.
DEVICE void count_tiles(const Problem& p, u32* before) {
    u32 lane = threadIdx.x % 32, sum = 0;
    for (u32 first = 0; first < p.segments; first += 32) {
        u32 s = first + lane, own = 0;
        if (s < p.segments) own = ((p.starts ? p.starts[s + 1] - p.starts[s] : p.tokens) + TOKENS - 1) / TOKENS;
        u32 upto = own;
#pragma unroll
        for (int width = 1; width < 32; width *= 2) {
            u32 other = __shfl_up_sync(0xffffffffu, upto, width);
            upto += lane >= width ? other : 0;
        }
        if (s < p.segments) before[s + 1] = sum + upto;
        sum += __shfl_sync(0xffffffffu, upto, 31);
    }
    if (lane == 0) before[0] = 0;
}

// Makes barriers, by one thread, and what a stage's copies may leave of it. A last stage may be filled in part: what lies behind meets
// zeros of x, or is multiplied by nobody, but must be numbers.
DEVICE void begin_rings(const Barriers& barriers, u8* weights, u32 depth) {
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; s++) {
            barrier_init(barriers.x_full + 8 * s, 1);
            barrier_init(barriers.x_empty + 8 * s, CONSUMERS * 4 * CLUSTER);
        }
        for (u32 s = 0; s < WEIGHT_STAGES; s++) {
            barrier_init(barriers.weights_full + 8 * s, 1);
            barrier_init(barriers.weights_empty + 8 * s, CONSUMERS * 4);
        }
        barriers_ready();
    }
    if (depth % (SPAN * BLOCK) != 0) {
        for (u32 i = threadIdx.x; i < WEIGHT_STAGES * WEIGHT_BYTES / 16; i += THREADS) ((uint4*)weights)[i] = make_uint4(0, 0, 0, 0);
        writes_before_copies();
    }
}

// All threads begin with it: tiles are counted, and the rings of all blocks of a cluster are ready.
DEVICE void begin_walk(const Problem& p, u32* before, const Barriers& barriers, u8* weights, u32 depth) {
    if (threadIdx.x / 32 == 0) count_tiles(p, before);
    begin_rings(barriers, weights, depth);
    __syncthreads();
    if (CLUSTER > 1) wait_for_cluster();
}

// Brings the packed rows of a tile, blocks `start .. end` of the depth, stage by stage. One warp.
DEVICE void bring_weights(const u8* weights, const Tile& tile, u32 rank, u32 lane, u32 tiles, u64 tile_bytes, u32 start, u32 end,
                          u32 stages, const Barriers& barriers, Ring<WEIGHT_STAGES>& at) {
    const u32 first = (tile.row_tile * CLUSTER + rank) * TILES;
    const u32 here = first < tiles ? (tiles - first < TILES ? tiles - first : TILES) : 0;
    const u8* from = weights + ((u64)tile.segment * tiles + first + lane) * tile_bytes;
    for (u32 b = start; b < end; b += SPAN) {
        const u64 offset = (u64)(b / SPAN) * TILE_BYTES;
        const u32 bytes = tile_bytes - offset < TILE_BYTES ? (u32)(tile_bytes - offset) : TILE_BYTES;
        if (lane == 0) {
            barrier_wait(barriers.weights_empty + 8 * at.stage, at.parity);
            barrier_expect(barriers.weights_full + 8 * at.stage, here * bytes);
        }
        __syncwarp();
        const u32 to = stages + at.stage * WEIGHT_BYTES + lane * TILE_BYTES;
        if (lane < here) copy_bulk(to, from + offset, bytes, barriers.weights_full + 8 * at.stage);
        at.next();
    }
}
