// Quantized weights times quantized activations for many columns on Hopper: the numbers of codes.cu, bit for bit.
//
// Codes of both are small whole numbers, which f16 holds as they are; their products, and sums of a sub-block's, are below 2^24. So
// `wgmma` gives a sub-block's exact sum, in whatever order it adds, as the float that the canonical order wants: nothing is converted,
// and a number costs a product of scales and a multiply-add a sub-block (with minima, one more). These are what limits the kernel, so
// products run beside them: a warpgroup has its columns in PIECES, and two pieces' sums, of which one is made while the other is scaled.
//
// Blocks, rings and copies are those of prefill.cu (walk.cuh). Sums of segments that are done wait in shared memory.
//
// x is what quantize/numbers.cu leaves: [slices][depth / 64][runs of columns][16][64] f16, swizzled, and [slices][depth / 64][runs][2
// units][16] scales and minima (or the sums of both halves, where scales are folded: folded.cuh). No run holds two segments' columns.

#define SUMS (TOKENS / 2)
#define X_BYTES (TOKENS * BLOCK * 2)
#define RUN_BYTES (COLUMN_RUN * BLOCK * 2)
#define RUN_SCALES_BYTES (2 * COLUMN_RUN * 4)
#define KINDS (1 + HAS_MIN * SUBS_PER_UNIT)
#define SCALES_BYTES (TOKENS / COLUMN_RUN * RUN_SCALES_BYTES * KINDS)
#define TOTALS_BYTES (CONSUMERS * 128 * SUMS * 4)

// Blocks of two units that are taken without a jump. A second plane of codes in chunks of a block leaves no registers for two.
#define UNROLLED (UNITS == 2 && SUM_SUB == 32 && HIGH > 0 ? 1 : 2)

static_assert(STAGES * (X_BYTES + SCALES_BYTES) + WEIGHT_STAGES * WEIGHT_BYTES + TOTALS_BYTES == SHARED_BYTES,
              "rings are as the host reckons them");
static_assert(TOKENS % (PIECES * 8) == 0 && TOKENS % (COLUMN_RUN * CLUSTER) == 0, "a tile of whole operands");
static_assert(PIECES > 1 && TOKENS / PIECES % COLUMN_RUN == 0, "of two pieces one is multiplied");

// Columns of the product that takes `left` of them.
DEVICE u32 width_of(u32 left) { return HAS_HALF && left <= TOKENS / 2 ? TOKENS / 2 : TOKENS; }

// A unit of a lane's two rows as the tensor cores take it, and its scales (and minima).
struct ScaledUnit {
    Operands codes;
#if IS_FOLDED
    // Factors are in the codes. Of minima by halves, and rows.
    float units[2][2];
    float minima[2][2];
#else
    float scales[1 + HAS_MIN][SUBS_PER_UNIT][2];
#endif
};

#if IS_FOLDED
// Byte `at` of a word as a pair of f16 that are alike.
DEVICE u32 pair_of_byte(u32 word, int at) { return add_halves(named_bytes(word, 0x64u, 0x4040 | at << 8 | at), ALL_OF(0xe400u)); }
#endif

// What a warpgroup that multiplies goes through: its rows of the rings.
struct Consumer {
    const u8* ring;
    // Scales of the columns, stages of them.
    const u8* scales;
    float4* totals;
    // The lower half of what names the first stage of activations.
    u32 x_operands;
    u32 lane, own_row;
    Barriers barriers;
    Kept kept;
    u32 units;
    Ring<STAGES> x_at;
    Ring<WEIGHT_STAGES> w_at;
    Raw raw;
    ScaleUnits scale_units;
    RawScales raw_scales;

    DEVICE_MEMBER void give_x() {
        __syncwarp();
        if (lane < CLUSTER) {
#if CLUSTER > 1
            barrier_arrive_at(barriers.x_empty + 8 * x_at.stage, lane);
#else
            barrier_arrive(barriers.x_empty + 8 * x_at.stage);
#endif
        }
        x_at.next();
    }
    DEVICE_MEMBER void give_weights() {
        reads_before_copies();
        __syncwarp();
        if (lane == 0) barrier_arrive(barriers.weights_empty + 8 * w_at.stage);
        w_at.next();
    }

    // Unit `at` of the stage of weights at hand as it lies, and then as it is multiplied: what shared memory gives is asked for early.
    DEVICE_MEMBER void fetch(u32 at) {
        const u8* chunk = ring + w_at.stage * WEIGHT_BYTES + own_row / TILE_ROWS * TILE_BYTES + at / UNITS * CHUNK;
        const u32 unit = at % UNITS;
        raw.load(chunk, unit, lane);
        if (unit == 0) scale_units.load(chunk + SCALES_AT, lane / 4);
        if (SCALES != SUPER_SCALES && !IS_FOLDED || unit % 4 == 0) raw_scales.load(chunk + SCALES_AT, unit, lane / 4);
    }
    DEVICE_MEMBER void expand(ScaledUnit& to, u32 at) const {
        exact_codes<0, true>(raw, to.codes.half[0][0], to.codes.half[0][2]);
        exact_codes<1, true>(raw, to.codes.half[0][1], to.codes.half[0][3]);
        exact_codes<2, true>(raw, to.codes.half[1][0], to.codes.half[1][2]);
        exact_codes<3, true>(raw, to.codes.half[1][1], to.codes.half[1][3]);
#if IS_FOLDED
        const FoldedRows rows = raw_scales.of(at % 4);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int half = i / 2, row = i % 2, byte = at % 2 * 2 + half;
            const u32 factor = pair_of_byte(rows.scales[row], byte);
            to.codes.half[half][row] = multiply_halves(to.codes.half[half][row], factor);
            to.codes.half[half][2 + row] = multiply_halves(to.codes.half[half][2 + row], factor);
            to.minima[half][row] = half_to_float(pair_of_byte(rows.minima[row], byte));
            to.units[half][row] = half ? scale_units.minimum[row] : scale_units.scale[row];
        }
#else
#pragma unroll
        for (int i = 0; i < (1 + HAS_MIN) * SUBS_PER_UNIT * 2; i++) {
            const int m = i / 2 / SUBS_PER_UNIT, sub = i / 2 % SUBS_PER_UNIT;
            to.scales[m][sub][i % 2] = scale_units.get(raw_scales, m, i % 2, sub, at % UNITS, kept);
        }
#endif
    }

    // Starts the product of a sub-block by a piece's columns.
    template <int WIDTH> DEVICE_MEMBER void start(float (&sums)[WIDTH / 2], const ScaledUnit& unit, u32 stage, int u, int sub,
                                                  int piece) const {
        const u32 operand = x_operands + stage * (X_BYTES / 16) + piece * WIDTH * 8 + u * 4;
        products_begin();
#if SUM_SUB == 32
        multiply_first<WIDTH>(sums, unit.codes.half[0], operand_at(operand));
        multiply_add<WIDTH>(sums, unit.codes.half[1], operand_at(operand + 2));
#else
        multiply_first<WIDTH>(sums, unit.codes.half[sub], operand_at(operand + 2 * sub));
#endif
        products_commit();
    }

    // Scales of a piece's columns in a unit.
    template <int WIDTH> DEVICE_MEMBER void fetch_columns(float4 (&to)[WIDTH / COLUMN_RUN], u32 stage, int u, int piece) const {
        const u8* own = scales + stage * SCALES_BYTES + lane % 4 * 16;
#pragma unroll
        for (int r = 0; r < WIDTH / COLUMN_RUN; r++)
            to[r] = *(const float4*)(own + ((piece * (WIDTH / COLUMN_RUN) + r) * 2 + u) * COLUMN_RUN * 4);
    }

    // Adds a piece's sums of a sub-block, in the canonical order.
    template <int WIDTH> DEVICE_MEMBER void add(float* to, const float (&sums)[WIDTH / 2], const float4 (&columns)[WIDTH / COLUMN_RUN],
                                                const ScaledUnit& unit, int u, int sub, int piece) const {
#if HAS_MIN
        const u8* minima = scales + x_at.stage * SCALES_BYTES + TOKENS / COLUMN_RUN * RUN_SCALES_BYTES + lane % 4 * 16;
#endif
#pragma unroll
        for (int r = 0; r < WIDTH / COLUMN_RUN; r++) {
            const float own[4] = {columns[r].x, columns[r].y, columns[r].z, columns[r].w};
#if IS_FOLDED
            float halves[2][4];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int run = piece * (WIDTH / COLUMN_RUN) + r;
                const float4 of_half = *(const float4*)(minima + ((run * 2 + u) * 2 + h) * COLUMN_RUN * 4);
                halves[h][0] = of_half.x; halves[h][1] = of_half.y; halves[h][2] = of_half.z; halves[h][3] = of_half.w;
            }
#elif HAS_MIN
            const int run = piece * (WIDTH / COLUMN_RUN) + r;
            const float4 m = *(const float4*)(minima + ((run * 2 + u) * SUBS_PER_UNIT + sub) * COLUMN_RUN * 4);
            const float weighed[4] = {m.x, m.y, m.z, m.w};
#endif
#pragma unroll
            for (int i = 0; i < 8; i++) {
                // Cell i is row 8 (i / 2 % 2), column i % 2 of eight i / 4.
                const int column = i / 4 * 2 + i % 2, row = i / 2 % 2;
                float& sum = to[piece * (WIDTH / 2) + r * 8 + i];
#if IS_FOLDED
                // Whole numbers below 2^24.
                const float least = fma(unit.minima[1][row], halves[1][column], unit.minima[0][row] * halves[0][column]);
                const float scaled = fma(unit.units[0][row], sums[r * 8 + i], 0.0f);
                sum = fma(fma(unit.units[1][row], least, scaled), own[column], sum);
#else
                sum = fma(sums[r * 8 + i], unit.scales[0][sub][row] * own[column], sum);
#endif
#if HAS_MIN && !IS_FOLDED
                sum = fma(unit.scales[1][sub][row], weighed[column], sum);
#endif
            }
        }
    }

    // A segment ends: its sums go to those before.
    DEVICE_MEMBER void end_segment(float (&to)[SUMS], bool is_first) const {
#pragma unroll
        for (int i = 0; i < SUMS / 4; i++) {
            float4& total = totals[i * CONSUMERS * 128];
            const float4 own = make_float4(to[4 * i], to[4 * i + 1], to[4 * i + 2], to[4 * i + 3]), before = is_first ? own : total;
            total = is_first ? own : make_float4(before.x + own.x, before.y + own.y, before.z + own.z, before.w + own.w);
            to[4 * i] = to[4 * i + 1] = to[4 * i + 2] = to[4 * i + 3] = 0.0f;
        }
    }

    // Sums of all segments, for PIECES x WIDTH columns.
    template <int WIDTH> DEVICE_MEMBER void multiply(float (&to)[SUMS], u32 depth, u32 split) {
        constexpr int UNIT_STEPS = SUMS_PER_UNIT * PIECES, STEPS = 2 * UNIT_STEPS;
        ScaledUnit own[2];
        float sums[2][WIDTH / 2];
        float4 columns[2][WIDTH / COLUMN_RUN];
        barrier_wait(barriers.weights_full + 8 * w_at.stage, w_at.parity);
        fetch(0);
        expand(own[0], 0);
        barrier_wait(barriers.x_full + 8 * x_at.stage, x_at.parity);
        start<WIDTH>(sums[0], own[0], x_at.stage, 0, 0, 0);
        fetch_columns<WIDTH>(columns[0], x_at.stage, 0, 0);
        u32 segment = 0, from, to_feature;
        segment_of(depth, split, 0, from, to_feature);
        const u32 blocks = (units + 1) / 2;
        for (u32 b = 0; b < blocks; b += SPAN) {
            // Four units: factors of scales lie so.
#pragma unroll UNROLLED
            for (u32 i = 0; i < SPAN; i++) {
                if (i > 0 && CHUNK_FEATURES < SPAN * BLOCK && b + i >= blocks) break;
                Ring<STAGES> next = x_at;
                next.next();
#pragma unroll
                for (int n = 0; n < STEPS; n++) {
                    const int u = n / UNIT_STEPS, sub = n / PIECES % SUMS_PER_UNIT, piece = n % PIECES, unit = 2 * i + u;
                    if (n == UNIT_STEPS && CHUNK_FEATURES < BLOCK && 2 * b + unit >= units) break;
                    products_wait<0>();
                    products_made(sums[n % 2]);
                    // Behind the last unit, what is there is multiplied, and read by nobody.
                    const int at = (n + 1) % STEPS;
                    if (at == 0 && b + i + 1 < blocks) barrier_wait(barriers.x_full + 8 * next.stage, next.parity);
                    const u32 later_stage = at > 0 || b + i + 1 >= blocks ? x_at.stage : next.stage;
                    start<WIDTH>(sums[at % 2], own[at / UNIT_STEPS], later_stage, at / UNIT_STEPS, at / PIECES % SUMS_PER_UNIT,
                                 at % PIECES);
                    fetch_columns<WIDTH>(columns[at % 2], later_stage, at / UNIT_STEPS, at % PIECES);
                    const int later = (unit + 1) % (2 * SPAN);
                    const bool is_first = n % UNIT_STEPS == 0, is_there = later > 0 || b + SPAN < blocks;
                    if (is_first && is_there) {
                        if (later == 0) {
                            give_weights();
                            barrier_wait(barriers.weights_full + 8 * w_at.stage, w_at.parity);
                        }
                        fetch(later);
                    }
                    add<WIDTH>(to, sums[n % 2], columns[n % 2], own[u], u, sub, piece);
                    if (is_first) expand(own[(u + 1) % 2], later);
                }
                give_x();
            }
            if ((b + SPAN) * BLOCK >= to_feature && segment + 1 < split) {
                end_segment(to, segment == 0);
                segment_of(depth, split, ++segment, from, to_feature);
            }
        }
        products_wait<0>();
        give_weights();
    }
};

// weights [segments][tiles of TILE_ROWS][chunks]; minima for each sub-block of a unit; y rows of `y_stride`. `order` as in columns.cuh;
// `split` is how many segments the depth has.
KERNEL
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, 1) many(const u8* weights, const u8* x, const u8* x_scales, const u8* x_minima, float* y, const float* bias,
                                   const u32* starts, const u32* order, u32 rows, u32 depth, u32 tokens, u32 segments, u32 x_runs,
                                   u32 y_stride, u32 split, u32 sliced) {
    after_earlier_work();
    DYNAMIC_SHARED(u8, dynamic);
    u8* shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const ring = shared + STAGES * X_BYTES;
    u8* const totals = ring + WEIGHT_STAGES * WEIGHT_BYTES;
    u8* const scales = totals + TOTALS_BYTES;
    const u32 x_stages = shared_address(shared), weight_stages = shared_address(ring), scale_stages = shared_address(scales);
    const Barriers barriers(shared_address(shared + SHARED_BYTES));
    u32* const column_places = (u32*)(shared + SHARED_BYTES + BARRIER_BYTES);
    u32* const before = column_places + TOKENS;
    const u32 rank = CLUSTER > 1 ? block_of_cluster() : 0;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    const u32 row_tiles = (rows + ROWS * CLUSTER - 1) / (ROWS * CLUSTER), blocks = (depth + BLOCK - 1) / BLOCK;
    const Problem p = {starts, tokens, segments, row_tiles, blocks, 1, false, before};
    const u32 tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    const u64 tile_bytes = (u64)(depth / CHUNK_FEATURES) * CHUNK;

    begin_walk(p, before, barriers, ring, depth);

    const u32 step = gridDim.x / CLUSTER, count = p.count();
    u32 segment = 0;
    if (warp >= CONSUMERS * 4) {
        give_registers<GIVEN_REGISTERS>();
        if (warp == CONSUMERS * 4 && lane == 0) {
            Ring<STAGES> at;
            at.parity = 1;
            for (u32 t = blockIdx.x / CLUSTER; t < count; t += step) {
                Tile tile(p, t, segment);
                const u32 width = width_of(p.columns(tile.segment) - tile.column), runs = width / COLUMN_RUN / CLUSTER;
                const u32 first = (first_row(starts, tile.segment) + tile.column) / COLUMN_RUN + rank * runs;
                u64 run = (u64)(sliced ? tile.segment : 0) * blocks * x_runs + first;
                for (u32 b = 0; b < blocks; b++, run += x_runs) {
                    const u32 full = barriers.x_full + 8 * at.stage, scales_at = scale_stages + at.stage * SCALES_BYTES;
                    barrier_wait(barriers.x_empty + 8 * at.stage, at.parity);
                    barrier_expect(full, runs * CLUSTER * (RUN_BYTES + RUN_SCALES_BYTES * KINDS));
                    auto bring = [&](u32 to, const u8* from, u32 bytes_each) {
                        const u32 bytes = runs * bytes_each;
#if CLUSTER > 1
                        copy_bulk_to_all(to + rank * bytes, from + run * bytes_each, bytes, full, (1 << CLUSTER) - 1);
#else
                        copy_bulk(to, from + run * bytes_each, bytes, full);
#endif
                    };
                    bring(x_stages + at.stage * X_BYTES, x, RUN_BYTES);
                    bring(scales_at, x_scales, RUN_SCALES_BYTES);
#if HAS_MIN
                    bring(scales_at + TOKENS / COLUMN_RUN * RUN_SCALES_BYTES, x_minima, RUN_SCALES_BYTES * SUBS_PER_UNIT);
#endif
                    at.next();
                }
            }
        } else if (warp == CONSUMERS * 4 + 1) {
            Ring<WEIGHT_STAGES> at;
            at.parity = 1;
            for (u32 t = blockIdx.x / CLUSTER; t < count; t += step) {
                Tile tile(p, t, segment);
                bring_weights(weights, tile, rank, lane, tiles, tile_bytes, 0, blocks, weight_stages, barriers, at);
            }
        }
    } else {
        take_registers<TAKEN_REGISTERS>();
        // The first row, of the tile, that this warp multiplies.
        const u32 own_row = warp * 16;
        float4* const own_totals = (float4*)totals + threadIdx.x;
        Consumer consumer = {ring, scales, own_totals, operand_low(x_stages), lane, own_row, barriers, Kept(opaque(0)), depth / 32};
        for (u32 t = blockIdx.x / CLUSTER; t < count; t += step) {
            Tile tile(p, t, segment);
            const u32 column_count = p.columns(tile.segment), own_column = tile.column + threadIdx.x;
            // On its way while the tile is multiplied.
            u32 own_place = 0xffffffffu;
            if (threadIdx.x < TOKENS && own_column < column_count)
                own_place = order ? order[starts[tile.segment] + own_column] : own_column;
            float sums[SUMS];
#pragma unroll
            for (int i = 0; i < SUMS; i++) sums[i] = 0.0f;
            if (width_of(column_count - tile.column) == TOKENS) consumer.multiply<TOKENS / PIECES>(sums, depth, split);
#if HAS_HALF
            else consumer.multiply<TOKENS / 2 / PIECES>(sums, depth, split);
#endif
            // Places of the columns, for all.
            wait_for_threads(1, CONSUMERS * 128);
            if (threadIdx.x < TOKENS) column_places[threadIdx.x] = own_place;
            wait_for_threads(1, CONSUMERS * 128);
            const u32 row = (tile.row_tile * CLUSTER + rank) * ROWS + own_row + lane / 4;
            float* const out = y + (sliced ? tile.segment * rows : 0) + row;
            const float added[2] = {bias && row < rows ? bias[tile.segment * rows + row] : 0.0f,
                                    bias && row + 8 < rows ? bias[tile.segment * rows + row + 8] : 0.0f};
#pragma unroll
            for (int j = 0; j < TOKENS / 8; j++) {
                float result[4] = {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]};
                if (split > 1) {
                    const float4 total = own_totals[j * CONSUMERS * 128];
                    result[0] = total.x + result[0]; result[1] = total.y + result[1];
                    result[2] = total.z + result[2]; result[3] = total.w + result[3];
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 place = column_places[j * 8 + lane % 4 * 2 + i % 2], h = i / 2;
                    if (place != 0xffffffffu && row + h * 8 < rows)
                        out[(u64)place * y_stride + h * 8] = bias ? result[i] + added[h] : result[i];
                }
            }
        }
    }
    // Nobody leaves while another block may still write here.
    if (CLUSTER > 1) wait_for_cluster();
}
