// Quantized weights times quantized activations for many columns: the numbers of codes.cu, bit for bit, where scales and not memory
// would limit.
//
// A block has PARTS x TEAMS warps. The warps of a part have the same features and columns, and ROW_TILES x 16 rows each; a part takes
// an equal share of the segments of the depth. Steps of weights and of activations come through one ring of STAGES in shared
// memory, which all wait for at once. A warp expands a unit of weights once for its COLUMN_TILES x 8 columns, and reads scales of columns
// once for its rows; what is left for each 16 x 8 sums is a product, four subtractions that make them floats, four products of scales, and
// four (with minima, eight) multiply-adds in the canonical order. Where columns are few, FOLD row tiles share the eight of an
// instruction: each multiplies columns that are zero but for its own, all into one set of sums, and a thread scales sums of one of them.

// What sums of this thread's two columns need of a block of activations.
struct ColumnScales {
    float dx[2];
    // With minima: the scale times the sum of all codes.
    float weighed[2];
    // Sums of the codes of both halves, in 16 bits each.
    u32 sums[2];
    DEVICE_MEMBER void load(const u8* at) {
#if HAS_WEIGHED
        const float4 v = *(const float4*)at;
        dx[0] = v.x; weighed[0] = v.y; dx[1] = v.z; weighed[1] = v.w;
#elif IS_CORRECTED || IS_FOLDED
        const uint4 v = *(const uint4*)at;
        dx[0] = __uint_as_float(v.x); sums[0] = v.y; dx[1] = __uint_as_float(v.z); sums[1] = v.w;
#else
        const float2 v = *(const float2*)at;
        dx[0] = v.x; dx[1] = v.y;
#endif
    }
};

// Integer sums start at the magic number of their row's shift, less the offset's share, so that they end as `code - offset` would give
// them; as floats they are then a subtraction away from the sums themselves.
DEVICE void start_sums(int (&start)[4], const int (&magic)[4], const ColumnScales& columns, int half) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if IS_CORRECTED
        const int factor = (-OFFSET << shift_of(i / 2, half)) & 0xff;
        start[i] = dot_pair(columns.sums[i % 2], SUB == 32 ? factor * 0x101 : factor << (half * 8), magic[i]);
#else
        start[i] = magic[i];
#endif
    }
}

struct Sums {
    float acc[SETS][COLUMN_TILES][4];

    // Adds a unit. `codes` and `scales` are of this thread in the unit's first run of columns; `brought` has a one for the tile of a set
    // whose columns it brings, else zeros: a product with it takes a unit that has less to do than the one that selects.
    DEVICE_MEMBER void take(const UnitWeights& weights, const ScaleUnits (&units)[SETS], const u8* codes, const u8* scales,
                            const int (&magic)[SUMS_PER_UNIT][4], const u32 (&brought)[FOLD], u32 unit, const Kept& kept) {
        u32 a[ROW_TILES][4];
#if !IS_FOLDED
        float scale[SETS][1 + HAS_MIN][SUBS_PER_UNIT][2];
#endif
#pragma unroll
        for (int i = 0; i < ROW_TILES * 4; i++) a[i / 4][i % 4] = placed(weights.raw(i / 4, unit % AT_ONCE), i % 4, kept);
#if IS_FOLDED
        FoldedRows rows[SETS];
#pragma unroll
        for (int s = 0; s < SETS; s++) {
            rows[s] = weights.scales[s].of(unit % 4);
            if (FOLDS_CODES) fold_into_codes(a[s], rows[s], unit);
        }
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++) {
            const uint2 b = *(const uint2*)(codes + c * 256);
            ColumnScales columns;
            columns.load(scales + c * 8 * COLUMN_BYTES);
#pragma unroll
            for (int s = 0; s < SETS; s++)
                take_folded(acc[s][c], a + s * FOLD, rows[s], units[s], unit, b, columns.dx, columns.sums, magic[0], brought);
        }
#else
#pragma unroll
        for (int i = 0; i < SETS * (1 + HAS_MIN) * SUBS_PER_UNIT * 2; i++) {
            const int s = i / (2 * SUBS_PER_UNIT * (1 + HAS_MIN)), m = i / (2 * SUBS_PER_UNIT) % (1 + HAS_MIN);
            const int h = i / 2 % SUBS_PER_UNIT, row = i % 2;
            scale[s][m][h][row] = units[s].get(weights.scales[s], m, row, h, unit, kept);
        }
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++) {
            const uint2 b = *(const uint2*)(codes + c * 256);
            ColumnScales columns;
            columns.load(scales + c * 8 * COLUMN_BYTES);
#pragma unroll
            for (int h = 0; h < SUBS_PER_UNIT; h++) {
                int start[4];
                start_sums(start, magic[h], columns, h);
#pragma unroll
                for (int s = 0; s < SETS; s++) {
                    int sums[4] = {start[0], start[1], start[2], start[3]};
#pragma unroll
                    for (int p = 0; p < FOLD; p++) {
                        const u32(&own)[4] = a[s * FOLD + p];
                        const uint2 by = FOLD == 1 ? b : make_uint2(b.x * brought[p], b.y * brought[p]);
#if SUB == 32 && IS_SIGNED
                        multiply_signed(sums, own, by, sums);
#elif SUB == 32
                        multiply(sums, own, by, sums);
#elif IS_SIGNED
                        multiply_half_signed(sums, own[2 * h], own[2 * h + 1], h ? by.y : by.x, sums);
#else
                        multiply_half(sums, own[2 * h], own[2 * h + 1], h ? by.y : by.x, sums);
#endif
                    }
                    accumulate(acc[s][c], sums, scale[s], columns, h);
                }
            }
        }
#endif
    }

private:
#if !IS_FOLDED
    DEVICE_MEMBER void accumulate(float (&to)[4], const int (&sums)[4], const float (&scale)[1 + HAS_MIN][SUBS_PER_UNIT][2],
                                  const ColumnScales& columns, int h) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float sum = __int_as_float(sums[i]) - MAGIC_OF(shift_of(i / 2, h));
            to[i] = fma(sum, scale[0][h][i / 2] * columns.dx[i % 2], to[i]);
#if HAS_MIN
            to[i] = fma(scale[1][h][i / 2], columns.weighed[i % 2], to[i]);
#endif
        }
    }
#endif
};

// Pieces of activations that a thread of a part copies, EACH of BYTES a unit for all columns; in memory a unit is STRIDE further.
template <u32 EACH, u32 BYTES, u32 STRIDE> struct Feed {
    static constexpr u32 COUNT = EACH > PART_THREADS ? EACH / PART_THREADS : 1;
    static constexpr u32 UNITS_AT_ONCE = EACH > PART_THREADS ? 1 : PART_THREADS / EACH;
    static_assert(EACH % PART_THREADS == 0 || PART_THREADS % EACH == 0, "threads keep their columns");
    const u8* from[COUNT];
    u32 thread;

    // `piece(index)` is where a piece of the part's first unit lies.
    template <class Piece> DEVICE_MEMBER Feed(u32 thread, Piece piece) : thread(thread) {
#pragma unroll
        for (u32 n = 0; n < COUNT; n++) from[n] = piece(n * PART_THREADS + thread % EACH) + thread / EACH * STRIDE;
    }
    // Starts copies of `count` units.
    DEVICE_MEMBER void bring(u8* to, u32 count) const {
#pragma unroll
        for (u32 k = 0; k < STEP_UNITS; k += UNITS_AT_ONCE)
#pragma unroll
            for (u32 n = 0; n < COUNT; n++) {
                u8* at = to + (k * EACH + n * PART_THREADS + thread) * BYTES;
                const u8* source = from[n] + k * STRIDE;
                if (thread / EACH + k >= count) continue;
                if (BYTES == 16) copy_16(at, source);
                else if (BYTES == 8) copy_8(at, source);
                else copy_4(at, source);
            }
    }
    DEVICE_MEMBER void next() {
#pragma unroll
        for (u32 n = 0; n < COUNT; n++) from[n] += STEP_UNITS * STRIDE;
    }
};

// Starts copies of `chunks` chunks of this warp's row tiles.
DEVICE void bring_weights(u8* to, const u8* const (&from)[ROW_TILES], u32 chunks, u32 lane) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (u32 i = 0; i < STEP_BYTES; i += 512)
            if (i + 512 <= chunks * CHUNK || i + lane * 16 < chunks * CHUNK) copy_16_once(to + r * STEP_BYTES + i, from[r] + i);
}

// As `codes` of codes.cu. Blocks that share rows of weights follow each other.
KERNEL __launch_bounds__(THREADS, BLOCKS) wide(const u8* weights, const u8* weights1, const u8* weights2, const u8* x_codes,
                                               const u8* x_scales, const u8* x_minima, float* y, float* y1, float* y2, const float* bias,
                                               const float* bias1, const float* bias2, const u32* starts, const u32* order, u32 rows,
                                               u32 rows1, u32 rows2, u32 from1, u32 from2, u32 depth, u32 tokens, u32 slots,
                                               u32 row_blocks, u32 split, u32 groups, u32 turns, u32 sliced,
                                               const u32* chosen, u32 beside) {
    DYNAMIC_SHARED(uint4, dynamic);
    const Turn turn(beside);
    const u32 index = blockIdx.y * gridDim.x + blockIdx.x;
    u32 block = index / gridDim.y;
    if (block >= from2) {
        weights = weights2, y = y2, bias = bias2, rows = rows2, block -= from2;
    } else if (block >= from1) {
        weights = weights1, y = y1, bias = bias1, rows = rows1, block -= from1;
    }
    bool is_in_turn = (starts || chosen) && !(beside & LISTED);
    if (is_in_turn) after_earlier_work(turn);
    const Work work = work_of_block(starts, order, chosen, WIDTH, index % gridDim.y);
    const u32 matrix = work.matrix;
    if (matrix == 0xffffffffu) {
        if (!is_in_turn) after_earlier_work(turn);
        return;
    }
    const Columns columns = chosen && !starts ? column_of_place(blockIdx.z, slots)
                                              : columns_of_tile(matrix, starts, order, tokens, slots, WIDTH, work.tile);
    if (columns.first >= columns.count) {
        if (!is_in_turn) after_earlier_work(turn);
        return;
    }
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp / TEAMS, team = warp % TEAMS;
    const u32 tiles = (rows + 15) / 16, tile = (block * TEAMS + team) * ROW_TILES;
    const u64 tile_bytes = (u64)(depth / (32 * UNITS)) * CHUNK;
    const u32 slice = sliced ? matrix : 0;

    u8* const ring = (u8*)dynamic;
    float* const partial = (float*)dynamic;
    u32* const first_blocks = (u32*)(ring + FIRST_BLOCKS_AT);

    // Units of this part, and steps of the longest.
    const u32 first_segment = split * part / PARTS, segments_end = split * (part + 1) / PARTS;
    u32 start = 0, end = 0, segment_end = 0, steps = 0;
#pragma unroll 1
    for (u32 p = 0; p < PARTS; p++) {
        const u32 first = split * p / PARTS, last = split * (p + 1) / PARTS;
        if (first == last) continue;
        u32 from, from_end, unused, to;
        segment_of(depth, split, first, from, from_end);
        segment_of(depth, split, last - 1, unused, to);
        steps = max(steps, ((to - from) / 32 + STEP_UNITS - 1) / STEP_UNITS);
        if (p == part) start = from / 32, segment_end = from_end / 32, end = to / 32;
    }
    const u8* from[ROW_TILES];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        const u32 own = tile + r < tiles ? tile + r : tiles - 1;
        from[r] = weights + (matrix * (u64)tiles + own) * tile_bytes + (u64)(start / UNITS) * CHUNK + lane * 16;
    }
    auto units_of = [&](u32 step) {
        const u32 at = start + step * STEP_UNITS;
        return at >= end ? 0 : end - at < STEP_UNITS ? end - at : STEP_UNITS;
    };
    // Each goes from step to step by itself.
    auto weights_of = [&](u32 step, u8* stage) {
        const u32 count = tile < tiles ? units_of(step) : 0;
        u8* to = stage + part * PART_BYTES + team * ROW_TILES * STEP_BYTES + lane * 16;
        if (count == STEP_UNITS) bring_weights(to, from, STEP_CHUNKS, lane);
        else if (STEP_CHUNKS > 1 && count > 0) bring_weights(to, from, count / UNITS, lane);
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) from[r] += STEP_BYTES;
    };
    // Weights wait for nobody.
#pragma unroll 1
    for (u32 s = 0; s < STAGES - 1; s++) weights_of(s, ring + s * STAGE_BYTES);

    if (threadIdx.x < WIDTH) {
        const u32 row = columns.row(threadIdx.x);
        first_blocks[threadIdx.x] = (row / 8 * row_blocks + slice * (depth / 32)) * 8 + row % 8;
    }
    __syncthreads();

    // Fewer than 2^32 blocks; those of a unit of eight columns lie together (quantize.cu).
    const u32 own_thread = team * 32 + lane;
    auto block_of = [&](u32 column) { return (u64)first_blocks[column] + start * 8; };
    Feed<WIDTH * 2, 16, 256> codes_feed(own_thread, [&](u32 i) { return x_codes + block_of(i / 2) * 32 + i % 2 * 16; });
    Feed<WIDTH, COLUMN_BYTES, HAS_WEIGHED ? 128 : 64> scales_feed(
        own_thread, [&](u32 i) { return HAS_WEIGHED ? x_minima + block_of(i) * 16 : x_scales + block_of(i) * 8; });
    auto activations_of = [&](u32 step, u8* stage) {
        const u32 count = units_of(step);
        u8* to = stage + part * PART_BYTES + WEIGHT_BYTES;
        if (count == STEP_UNITS) {
            codes_feed.bring(to, STEP_UNITS);
            scales_feed.bring(to + STEP_UNITS * WIDTH * 32, STEP_UNITS);
        } else if (STEP_CHUNKS > 1) {
            codes_feed.bring(to, count);
            scales_feed.bring(to + STEP_UNITS * WIDTH * 32, count);
        }
        codes_feed.next();
        scales_feed.next();
    };
    if (!is_in_turn) after_earlier_work(turn);
#pragma unroll 1
    for (u32 s = 0; s < STAGES - 1; s++) {
        activations_of(s, ring + s * STAGE_BYTES);
        end_of_copies();
    }

    Sums sums = {};
    const Kept words(split >> 16);
    // The sums of segments that are done: all of them, or the first of two.
    float kept[SETS][COLUMN_TILES][4];
#pragma unroll
    for (int i = 0; i < SETS * COLUMN_TILES * 4; i++) kept[i / 4 / COLUMN_TILES][i / 4 % COLUMN_TILES][i % 4] = -0.0f;
    int magic[SUMS_PER_UNIT][4];
#pragma unroll
    for (int i = 0; i < 4 * SUMS_PER_UNIT; i++) magic[i / 4][i % 4] = opaque(MAGIC_BITS_OF(shift_of(i % 4 / 2, i / 4)));
    const u32 scaled = lane % 4 * 2 / FOLD_COLUMNS;
    u32 brought[FOLD];
#pragma unroll
    for (u32 p = 0; p < FOLD; p++) brought[p] = opaque(lane / 4 / FOLD_COLUMNS == p);
    u32 segment = first_segment, slot = 0;
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        {
            u8* next = ring + (slot == 0 ? STAGES - 1 : slot - 1) * STAGE_BYTES;
            weights_of(step + STAGES - 1, next);
            activations_of(step + STAGES - 1, next);
            end_of_copies();
        }
        const u32 count = units_of(step);
        const u8* stage = ring + slot * STAGE_BYTES + part * PART_BYTES;
        slot = slot + 1 < STAGES ? slot + 1 : 0;
        if (tile >= tiles || count == 0) continue;
        const u8* own = stage + team * ROW_TILES * STEP_BYTES;
        const u8* codes = stage + WEIGHT_BYTES + lane / 4 % FOLD_COLUMNS * 32 + lane % 4 * 8;
        const u8* scales = stage + WEIGHT_BYTES + STEP_UNITS * WIDTH * 32 + lane % 4 * 2 % FOLD_COLUMNS * COLUMN_BYTES;
        UnitWeights at;
        ScaleUnits units[SETS];
        at.load(own, 0, lane, scaled);
#pragma unroll
        for (int s = 0; s < SETS; s++) units[s].load(own + (s * FOLD + scaled) * STEP_BYTES + SCALES_AT, lane / 4);
        // The next weights are on their way while some are multiplied.
        auto take = [&](u32 u, u32 last) {
            UnitWeights next = at;
            if (u + AT_ONCE <= last) next.load(own, u + AT_ONCE, lane, scaled);
#pragma unroll
            for (u32 v = u; v < u + AT_ONCE; v++)
                sums.take(at, units, codes + v * WIDTH * 32, scales + v * WIDTH * COLUMN_BYTES, magic, brought, v, words);
            at = next;
        };
        if (UNITS >= 4 || count == STEP_UNITS) {
#pragma unroll(COLUMN_TILES > 4 && !IS_FOLDED ? 1 : AT_ONCE > 1 || COLUMN_TILES > 2 ? 2 : 4)
            for (u32 u = 0; u < STEP_UNITS; u += AT_ONCE) take(u, STEP_UNITS - 1);
        } else {
#pragma unroll 1
            for (u32 u = 0; u < count; u++) take(u, count - 1);
        }
        // Segments end where steps do.
        if (start + step * STEP_UNITS + count >= segment_end && segment < segments_end) {
            const bool is_last = ++segment == segments_end;
            u32 unused, to;
            segment_of(depth, split, is_last ? segment - 1 : segment, unused, to);
            segment_end = to / 32;
            if (PARTS == 1 || !is_last)
#pragma unroll
                for (int i = 0; i < SETS * COLUMN_TILES * 4; i++) {
                    const int s = i / 4 / COLUMN_TILES, c = i / 4 % COLUMN_TILES;
                    kept[s][c][i % 4] = kept[s][c][i % 4] + sums.acc[s][c][i % 4];
                    sums.acc[s][c][i % 4] = 0.0f;
                }
        }
    }
    wait_for_copies<0>();
    __syncthreads();

    // Sums of segments take the place of the ring: [segment][row][column], columns padded by one.
    auto write = [&](const float (&of)[SETS][COLUMN_TILES][4], u32 at) {
        float* out = partial + (at * HEIGHT + team * ROW_TILES * 16) * (WIDTH + 1);
#pragma unroll
        for (int i = 0; i < SETS * COLUMN_TILES * 4; i++) {
            const u32 s = i / 4 / COLUMN_TILES, c = i / 4 % COLUMN_TILES, cell = i % 4;
            const u32 row = (s * FOLD + scaled) * 16 + lane / 4 + cell / 2 * 8;
            out[row * (WIDTH + 1) + c * 8 + (lane % 4 * 2 + cell % 2) % FOLD_COLUMNS] = of[s][c][cell];
        }
    };
    if (PARTS == 1) {
        write(kept, 0);
    } else if (first_segment < segments_end) {
        if (segments_end - first_segment > 1) write(kept, first_segment);
        write(sums.acc, segments_end - 1);
    }
    __syncthreads();
    const u32 count = PARTS == 1 ? 1 : split;
    const u64 stride = (u64)rows * (sliced ? gridDim.z : 1);
    for (u32 cell = threadIdx.x; cell < HEIGHT * WIDTH; cell += THREADS) {
        const u32 row = block * HEIGHT + cell % HEIGHT, column = cell / HEIGHT;
        if (row >= rows || !columns.has(column)) continue;
        const float* in = partial + cell % HEIGHT * (WIDTH + 1) + column;
        float sum = in[0];
        for (u32 s = 1; s < count; s++) sum = sum + in[s * HEIGHT * (WIDTH + 1)];
        if (bias) sum = sum + bias[matrix * rows + row];
        y[(u64)columns.place(column) * stride + slice * rows + row] = sum;
    }
}
