// Quantized weights times quantized activations, in the canonical order, for any width.
//
// One warp holds ROW_TILES x 16 weight rows and COLUMN_TILES x 8 columns, and walks one segment of the depth: the matrix
// instruction gives the exact integer sum of a sub-block for 16 rows and 8 columns at once; scales are applied in f32 by the fused
// multiply-adds that numerics.rs names. The segments of a tile are shared out among the warps of one block, and added in order through
// shared memory. So no bit depends on the width: a column is computed by the same operations wherever it stands.
//
// Each warp has a ring of STAGES steps of weights in shared memory, filled by copies that go on by themselves: what memory gives
// depends on the bytes that are on their way, and registers do not hold as many. Activations lie beside them (codes_inputs.cuh).
//
// Scales cost more instructions than products do. So FOLD row tiles may share the eight columns of an instruction where there are
// few: tile p of them multiplies columns that are zero but for its own 8 / FOLD, all into one set of sums, and each thread
// scales sums of one tile.
//
// A chunk of weights is UNITS x 32 features of 16 rows, as crates/cuda/src/matmul/layout.rs packs it:
//   codes    [UNITS][lane] planes of LOW and HIGH bits: for each lane the four operand registers of the instruction,
//            (row g, half 0), (row g + 8, half 0), (row g, half 1), (row g + 8, half 1), with g = lane / 4, shifted together
//   scales   by SCALES: [8][subs][2] f16 or f32 (and minima in the same form); or [8][2] f16 for 256 features and
//            [8][2][subs] bytes, 128 more than the sub-block's factor (the minima's in the same form); or as many nibbles (folded.cuh)

// Sets of sums: of FOLD row tiles each.
#define SETS (ROW_TILES / FOLD)

static_assert(ROW_TILES % FOLD == 0 && COLUMN_TILES >= 1, "a tile holds something");
static_assert(FOLD == 1 || FOLD == 2 || FOLD == 4, "a thread's two columns are of one row tile");

#define MAGIC_BITS_OF(shift) (MAGIC_BITS - ((shift) << 23))
#define MAGIC_OF(shift) (MAGIC / (float)(1 << (shift)))

#if !IS_FOLDED
// Integer sums start at the magic number of their row's shift, less the offset's share, so that they end as `code - offset` would
// give them; as floats they are then a subtraction away from the sums themselves.
DEVICE void start_sums(int (&start)[4], const int (&magic)[4], const ColumnScales& columns, int half) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        start[i] = OFFSET == 0 || TABLE > 0 ? magic[i] : magic[i] - (OFFSET << shift_of(i / 2, half)) * columns.sums[i % 2][half];
}

DEVICE void accumulate(float (&acc)[4], const int (&sums)[4], const RowScales& rows, const ColumnScales& columns, int half) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float sum = __int_as_float(sums[i]) - MAGIC_OF(shift_of(i / 2, half));
        acc[i] = fma(sum, rows.scale[i / 2] * columns.dx[i % 2], acc[i]);
#if HAS_MIN
        acc[i] = fma(rows.minimum[i / 2], columns.weighed[i % 2], acc[i]);
#endif
    }
}

// Adds a unit to the sums of FOLD row tiles. `mine` has a one for that of them which this thread brings columns of, else zeros: a product
// with it takes a unit that has less to do than the one that selects.
DEVICE void take_unit(float (&acc)[4], const u32 (*a)[4], const RowScales (&rows)[SUBS_PER_UNIT], uint2 b, const ColumnScales& columns,
                      const int (&magic)[SUBS_PER_UNIT][4], const u32 (&mine)[FOLD]) {
    int sums[SUBS_PER_UNIT][4];
#pragma unroll
    for (int h = 0; h < SUBS_PER_UNIT; h++) start_sums(sums[h], magic[h], columns, h);
#pragma unroll
    for (int p = 0; p < FOLD; p++) {
        const uint2 own = FOLD == 1 ? b : make_uint2(b.x * mine[p], b.y * mine[p]);
        if (SUB == 32) {
            multiply_codes(sums[0], a[p], own, sums[0]);
        } else {
            multiply_half_codes(sums[0], a[p][0], a[p][1], own.x, sums[0]);
            multiply_half_codes(sums[SUBS_PER_UNIT - 1], a[p][2], a[p][3], own.y, sums[SUBS_PER_UNIT - 1]);
        }
    }
#pragma unroll
    for (int h = 0; h < SUBS_PER_UNIT; h++) accumulate(acc, sums[h], rows[h], columns, h);
}
#endif

// A step of weights in shared memory: STEP_CHUNKS chunks of each row tile.
#define STEP_BYTES (STEP_CHUNKS * CHUNK)
#define SCALES_AT (32 * (LOW_BYTES + HIGH_BYTES))

static_assert(ROW_TILES * STEP_BYTES == STAGE_BYTES && STAGES >= 2, "the ring is as the host reckons it");

// Starts copies of `chunks` chunks of all row tiles.
DEVICE void bring(u8* stage, const u8* const (&base)[ROW_TILES], u32 at, u32 chunks, u32 lane) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        const u8* from = base[r] + (u64)at * CHUNK;
        if (chunks == STEP_CHUNKS) {
#pragma unroll
            for (int i = 0; i < STEP_BYTES; i += 512)
                if (i + 512 <= STEP_BYTES || i + lane * 16 < STEP_BYTES)
                    copy_16_once(stage + r * STEP_BYTES + i + lane * 16, from + i + lane * 16);
        } else {
            for (u32 i = lane * 16; i < chunks * CHUNK; i += 512) copy_16_once(stage + r * STEP_BYTES + i, from + i);
        }
    }
}

// CHUNKS chunks of a stage of weights, in registers: the stage is free again. `scaled` is which row tile of a set this thread scales.
template <int CHUNKS> struct Weights {
    Codes codes[CHUNKS][ROW_TILES];
    Scales scales[CHUNKS][SETS];
    DEVICE_MEMBER Weights(const u8* stage, u32 lane, u32 scaled) {
#pragma unroll
        for (int i = 0; i < CHUNKS * ROW_TILES; i++)
            codes[i / ROW_TILES][i % ROW_TILES].load(stage + i % ROW_TILES * STEP_BYTES + i / ROW_TILES * CHUNK, lane);
#pragma unroll
        for (int i = 0; i < CHUNKS * SETS; i++)
            scales[i / SETS][i % SETS].load(stage + (i % SETS * FOLD + scaled) * STEP_BYTES + i / SETS * CHUNK + SCALES_AT, lane / 4);
    }
};

// The sums of a warp, and what all steps take.
struct Sums {
    float acc[SETS][COLUMN_TILES][4];
    int magic[SUMS_PER_UNIT][4];
    // Of the row tiles that share columns: a one for that whose columns this thread brings, and the one whose sums it scales.
    u32 brought[FOLD];
    u32 scaled;
    Kept kept;

    template <int CHUNKS> DEVICE_MEMBER void take(const Weights<CHUNKS>& weights, const StepInputs<CHUNKS>& inputs) {
#pragma unroll
        for (int unit = 0; unit < CHUNKS * UNITS; unit++) {
            const int k = unit / UNITS, u = unit % UNITS;
            u32 a[ROW_TILES][4];
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) weights.codes[k][r].registers(u, a[r], kept);
#if IS_FOLDED
            FoldedRows rows[SETS];
#pragma unroll
            for (int s = 0; s < SETS; s++) {
                rows[s] = weights.scales[k][s].factors.of(u);
                if (FOLDS_CODES) fold_into_codes(a[s], rows[s], u);
            }
#else
            RowScales rows[SETS][SUBS_PER_UNIT];
#pragma unroll
            for (int i = 0; i < SETS * SUBS_PER_UNIT; i++) {
                const int s = i / SUBS_PER_UNIT, h = i % SUBS_PER_UNIT;
                rows[s][h] = weights.scales[k][s].of(u * SUBS_PER_UNIT + h, kept);
            }
#endif
#pragma unroll
            for (int c = 0; c < COLUMN_TILES; c++) {
                const uint2 b = inputs.operand(c, unit);
                const ColumnScales columns = inputs.columns(c, unit);
#pragma unroll
                for (int s = 0; s < SETS; s++)
#if IS_FOLDED
                    take_folded(acc[s][c], a + s * FOLD, rows[s], weights.scales[k][s].units, u, b, columns.dx, columns.halves, magic[0],
                                brought);
#else
                    take_unit(acc[s][c], a + s * FOLD, rows[s], b, columns, magic, brought);
#endif
            }
        }
    }
};

// weights [segments][row tiles][depth / (32 UNITS)][CHUNK]; codes, scales and minima as quantize.cu leaves them, rows of
// `row_blocks` blocks; y [columns][segments, where each has its slice][rows]. `split` is how many segments the depth has, `groups` how
// many tiles a block takes at once, each by an equal part of its warps, and `turns` how many times it does so, one after another; more than
// once only where rows are whole blocks and the tile GOES_ON. Up to three matrices share an input: blocks `from1 ..` are the
// second's, `from2 ..` the third's. With an epilogue blocks are in clusters, where they must be, rows are whole blocks of codes, and
// matrices are one, or two that take turns.
KERNEL __launch_bounds__(THREADS, BLOCKS) codes(const u8* weights, const u8* weights1, const u8* weights2, const u8* x_codes,
                                                const uint2* x_scales, const float4* x_minima, float* y, float* y1, float* y2,
                                                const float* bias, const float* bias1, const float* bias2, const u32* starts,
                                                const u32* order, u32 rows, u32 rows1, u32 rows2, u32 from1, u32 from2, u32 depth,
                                                u32 tokens, u32 slots, u32 row_blocks, u32 split, u32 groups, u32 turns, u32 sliced,
                                                const u32* chosen, u8* coded, uint2* coded_scales, float4* coded_minima, float* gated,
                                                u32 gate_kind, float gate_limit, u32 beside) {
    DYNAMIC_SHARED(uint4, dynamic);
    const Turn turn(beside);
    constexpr u32 width = COLUMN_TILES * FOLD_COLUMNS, height = ROW_TILES * 16;
    u32 block = blockIdx.x;
    if (gated) {
        // Blocks of both take turns, as many as have whole blocks of codes.
        const u32 sharing = sharing_of(groups * height);
        if (block & sharing) weights = weights1, y = y1, bias = bias1;
        block = block / (2 * sharing) * sharing + (block & (sharing - 1));
    } else if (block >= from2) {
        weights = weights2, y = y2, bias = bias2, rows = rows2, block -= from2;
    } else if (block >= from1) {
        weights = weights1, y = y1, bias = bias1, rows = rows1, block -= from1;
    }
    // Routed columns are earlier work's result, seldom of the launch before. Where they are not, the wait comes where the input is read:
    // weights are on their way by then.
    bool is_in_turn = (starts || chosen) && !(beside & LISTED);
    if (is_in_turn) after_earlier_work(turn);
    const Work work = work_of_block(starts, order, chosen, width, blockIdx.y);
    const u32 matrix = work.matrix;
    if (matrix == 0xffffffffu) {
        if (!is_in_turn) after_earlier_work(turn);
        return;
    }
    const bool is_single = chosen && !starts;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u32 warps_each = warps / groups, group = warp / warps_each, part = warp % warps_each;
    const u32 tiles = (rows + 15) / 16, first_item = GOES_ON ? block * turns : block;
    const u32 tile = (first_item * groups + group) * ROW_TILES, left = (tiles + groups * ROW_TILES - 1) / (groups * ROW_TILES) - first_item;
    const u32 items = !GOES_ON ? 1 : turns < left ? turns : left;
    const u64 tile_bytes = (u64)(depth / (32 * UNITS)) * CHUNK;
    const u32 slice = sliced ? matrix : 0;

    // Shared memory: the warps' rings, and the sums of all segments, [group][segment][row][column], columns padded by one. Where each
    // warp has one segment, its sums take the place of weights that are done with.
    u8* rings = (u8*)dynamic;
    u8 *ring = rings + warp * STAGES * STAGE_BYTES, *inputs_ring = rings + STAGES * (warps * STAGE_BYTES + warp * INPUT_BYTES);
    float* partial = (float*)(ONE_SEGMENT ? rings : rings + warps * STAGES * (STAGE_BYTES + INPUT_BYTES));
    auto write_sums = [&](Sums& sums, u32 segment) {
        float* out = partial + (group * split + segment) * height * (width + 1);
#pragma unroll
        for (int i = 0; i < SETS * COLUMN_TILES * 4; i++) {
            const u32 s = i / (4 * COLUMN_TILES), c = i / 4 % COLUMN_TILES, cell = i % 4;
            const u32 row = (s * FOLD + sums.scaled) * 16 + lane / 4 + cell / 2 * 8;
            const u32 column = c * FOLD_COLUMNS + (lane % 4 * 2 + cell % 2) % FOLD_COLUMNS;
            out[row * (width + 1) + column] = sums.acc[s][c][cell];
            sums.acc[s][c][cell] = 0.0f;
        }
    };

    Sums sums = {{}, {}, {}, 0, Kept(split >> 16)};
#pragma unroll
    for (u32 p = 0; p < FOLD; p++) sums.brought[p] = opaque(lane / 4 / FOLD_COLUMNS == p);
    sums.scaled = lane % 4 * 2 / FOLD_COLUMNS;
#pragma unroll
    for (int i = 0; i < 4 * SUMS_PER_UNIT; i++) sums.magic[i / 4][i % 4] = opaque(MAGIC_BITS_OF(shift_of(i % 4 / 2, i / 4)));

    const u32 first_segment = split * part / warps_each, segments_end = tile < tiles ? split * (part + 1) / warps_each : first_segment;
    // Segments of a warp follow each other, and so do its row tiles: its ring runs on through all of them.
    u32 first = 0, last = 0, unused;
    if (first_segment < segments_end) {
        segment_of(depth, split, first_segment, first, unused);
        segment_of(depth, split, segments_end - 1, unused, last);
    }
    first /= 32 * UNITS, last /= 32 * UNITS;
    // Of experts with blocks of their own few have more columns than a tile, and a block that finds none has cost a place: it goes through
    // all that there are.
#pragma unroll 1
    for (u32 column_tile = work.tile;; column_tile += gridDim.y) {
        const Columns columns = is_single ? column_of_place(blockIdx.z, slots)
                                          : columns_of_tile(matrix, starts, order, tokens, slots, width, column_tile);
        if (columns.first >= columns.count) {
            if (!is_in_turn) after_earlier_work(turn);
            return;
        }
        const u8* base[ROW_TILES];
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
            base[r] = weights + (matrix * (u64)tiles + (tile + r < tiles ? tile + r : tiles - 1)) * tile_bytes;
        const auto first_block = [&](u32 column) {
            const u32 row = columns.row(column);
            return (row / 8 * row_blocks + slice * (depth / 32)) * 8 + row % 8;
        };
        const Inputs inputs({x_codes, x_scales, x_minima}, columns.count - columns.first, first_block);

        u32 brought = first, items_left = items - 1, slot = 0, slot_brought = 0;
        auto bring_weights = [&]() {
            if (brought >= last && items_left > 0) {
                items_left--;
                brought = first;
#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) base[r] += groups * ROW_TILES * tile_bytes;
            }
            if (brought < last) {
                const u32 chunks = last - brought < STEP_CHUNKS ? last - brought : STEP_CHUNKS;
                bring(ring + slot_brought * STAGE_BYTES, base, brought, chunks, lane);
                brought += STEP_CHUNKS;
            }
            slot_brought = slot_brought + 1 < STAGES ? slot_brought + 1 : 0;
        };
        // The same steps, one behind the other.
        u32 inputs_brought = first, inputs_left = items - 1, inputs_slot = 0;
        auto bring_inputs = [&]() {
            if (!IS_STAGED) return;
            if (inputs_brought >= last && inputs_left > 0) inputs_left--, inputs_brought = first;
            if (inputs_brought < last) {
                const u32 chunks = last - inputs_brought < STEP_CHUNKS ? last - inputs_brought : STEP_CHUNKS;
                inputs.bring(inputs_ring + inputs_slot * INPUT_BYTES, inputs_brought, chunks);
                inputs_brought += STEP_CHUNKS;
            }
            inputs_slot = inputs_slot + 1 < STAGES ? inputs_slot + 1 : 0;
        };
#pragma unroll 1
        for (u32 i = 0; i < STAGES; i++) {
            bring_weights();
            if (!IS_STAGED) end_of_copies();
        }
        if (!is_in_turn) after_earlier_work(turn);
        is_in_turn = true;
        // All weights that are on their way are of the first of these groups.
        if (IS_STAGED)
#pragma unroll 1
            for (u32 i = 0; i < STAGES; i++) {
                bring_inputs();
                end_of_copies();
            }
#pragma unroll 1
        for (u32 item = 0; item < items; item++) {
            u32 at = first;
#pragma unroll 1
            for (u32 segment = first_segment; segment < segments_end; segment++) {
                u32 end;
                segment_of(depth, split, segment, unused, end);
                end /= 32 * UNITS;
#pragma unroll 1
                for (; at < end; at += STEP_CHUNKS) {
                    const u8 *stage = ring + slot * STAGE_BYTES, *inputs_stage = inputs_ring + slot * INPUT_BYTES;
                    slot = slot + 1 < STAGES ? slot + 1 : 0;
                    if (STEP_CHUNKS == 1 || end - at >= STEP_CHUNKS) {
                        const StepInputs<STEP_CHUNKS> step(inputs, at, inputs_stage, 0);
                        wait_for_copies<STAGES - 1>();
                        __syncwarp();
                        const Weights<STEP_CHUNKS> weights(stage, lane, sums.scaled);
                        // Sums of many columns leave no registers for all of a step: its weights are read as they are taken.
                        if (COLUMN_TILES >= 4) sums.take(weights, step);
                        __syncwarp();
                        bring_weights();
                        if (!IS_STAGED) end_of_copies();
                        if (COLUMN_TILES < 4) sums.take(weights, step);
                        if (IS_STAGED) __syncwarp();
                    } else {
                        wait_for_copies<STAGES - 1>();
                        __syncwarp();
#pragma unroll 1
                        for (u32 k = 0; at + k < end; k++)
                            sums.take(Weights<1>(stage + k * CHUNK, lane, sums.scaled),
                                      StepInputs<1>(inputs, at + k, inputs_stage, k * UNITS));
                        __syncwarp();
                        bring_weights();
                        if (!IS_STAGED) end_of_copies();
                    }
                    if (!IS_STAGED) continue;
                    bring_inputs();
                    end_of_copies();
                }
                if (!ONE_SEGMENT) write_sums(sums, segment);
            }

            __syncthreads();
            if (ONE_SEGMENT) {
                write_sums(sums, part);
                __syncthreads();
            }
            const u32 slices = sliced ? gridDim.z : 1;
            const u64 stride = (u64)rows * slices;
            for (u32 cell = threadIdx.x; cell < groups * height * width; cell += blockDim.x) {
                const u32 row_here = cell % height, column = cell / height % width, of_group = cell / (height * width);
                const u32 row = ((first_item + item) * groups + of_group) * height + row_here;
                if (row >= rows || !columns.has(column)) continue;
                float* in = partial + (of_group * split * height + row_here) * (width + 1) + column;
                float sum = sum_in_order(in, height * (width + 1), split);
                if (bias) sum = sum + bias[matrix * rows + row];
                if (coded) in[0] = sum;
                else y[(u64)columns.place(column) * stride + slice * rows + row] = sum;
            }
            if (coded) {
                const Epilogue epilogue = {{coded, coded_scales, coded_minima}, gated, gate_kind, gate_limit};
                const Company company(groups * height, gated);
                const Results results = {partial, height, split * height * (width + 1), width + 1};
                const u32 own_row = (first_item + item) * company.rows;
                company.meet();
                finish<width>(epilogue, company, results, columns, own_row, rows, slice, slices);
                // Nobody's results go before all have read them.
                company.say();
                for (u32 cell = threadIdx.x; cell < company.rows * width; cell += blockDim.x) {
                    const u32 row = cell % company.rows, column = cell / company.rows;
                    if (own_row + row < rows && columns.has(column))
                        y[(u64)columns.place(column) * stride + slice * rows + own_row + row] = *results.of(row, column);
                }
                company.wait();
            }
            if (item + 1 < items) __syncthreads();
        }
        if (chosen || !GOES_ON) return;
        __syncthreads();
    }
}
