// Quantized weights times quantized activations, in the canonical order, for any width.
//
// One warp holds ROW_TILES x 16 weight rows and COLUMN_TILES x 8 columns, and walks one segment of the depth: the matrix
// instruction gives the exact integer sum of a sub-block for 16 rows and 8 columns at once; scales are applied in f32 by the fused
// multiply-adds that numerics.rs names. The segments of a tile are warps of one block, added in order through shared memory.
// So no bit depends on the width: a column is computed by the same operations wherever it stands.
//
// Scales cost more instructions than products do. So FOLD row tiles may share the eight columns of an instruction where there are
// few: tile p of them multiplies columns that are zero but for its own 8 / FOLD, all into one set of sums, and each thread
// scales sums of one tile.
//
// A chunk of weights is UNITS x 32 features of 16 rows, as crates/cuda/src/matmul/layout.rs packs it:
//   codes    [UNITS][lane] planes of LOW and HIGH bits: for each lane the four operand registers of the instruction,
//            (row g, half 0), (row g + 8, half 0), (row g, half 1), (row g + 8, half 1), with g = lane / 4, shifted together
//   scales   by SCALES: [8][subs][2] f16 or f32 (and minima in the same form); or [8][2] f16 for 256 features and
//            [8][2][subs] bytes, 128 more than the sub-block's factor (the minima's in the same form)

#define SUBS_PER_UNIT (32 / SUB)
#define SUBS (UNITS * SUBS_PER_UNIT)
#define F16_SCALES 0
#define F32_SCALES 1
#define SUPER_SCALES 2

#define LOW_BYTES (UNITS * LOW * 2)
#define HIGH_BYTES (UNITS * HIGH * 2)
#define SCALE_VALUE_BYTES (SCALES == F32_SCALES ? 4 : 2)
#define SCALE_PART (SCALES == SUPER_SCALES ? 32 + 16 * SUBS : 16 * SUBS * SCALE_VALUE_BYTES)
#define CHUNK_BYTES (32 * (LOW_BYTES + HIGH_BYTES) + SCALE_PART * (1 + HAS_MIN))

// Sets of sums: of FOLD row tiles each.
#define SETS (ROW_TILES / FOLD)
// Columns of a row tile among the eight of an instruction.
#define FOLD_COLUMNS (8 / FOLD)
// Units that are taken in one go.
#define STEP_CHUNKS (UNITS >= 4 ? 1 : 4 / UNITS)

static_assert(CHUNK == CHUNK_BYTES, "the packed layout and the kernel disagree");
static_assert(ROW_TILES % FOLD == 0 && COLUMN_TILES >= 1, "a tile holds something");
static_assert(FOLD == 1 || FOLD == 2 || FOLD == 4, "a thread's two columns are of one row tile");

template <int BYTES> struct Plane {
    u32 words[(BYTES + 3) / 4];
    DEVICE_MEMBER void load(const u8* at, u32 lane) {
        if constexpr (BYTES % 16 == 0) {
#pragma unroll
            for (int i = 0; i < BYTES / 16; i++) {
                uint4 v = load_once((const uint4*)(at + (i * 32 + lane) * 16));
                words[4 * i] = v.x; words[4 * i + 1] = v.y; words[4 * i + 2] = v.z; words[4 * i + 3] = v.w;
            }
        } else if constexpr (BYTES == 8) {
            uint2 v = load_once((const uint2*)(at + lane * 8));
            words[0] = v.x; words[1] = v.y;
        } else if constexpr (BYTES == 4) {
            words[0] = load_once((const u32*)(at + lane * 4));
        } else {
            static_assert(BYTES == 2, "planes are 2, 4, 8 or whole 16 bytes a lane");
            words[0] = load_once((const u16*)(at + lane * 2));
        }
    }
};

// Codes are taken as they lie, without shifting them down, where that saves an instruction: how many bits too far up they are.
DEVICE constexpr int shift_of(int row, int half) {
    return HIGH > 0 || LOW == 8 ? 0 : LOW == 4 ? row * 4 : SUB == 16 ? half * 4 + row * 2 : row * 2;
}

// Registers of unit `u` from a plane of BITS bits a code, shifted down.
template <int BITS, int BYTES> DEVICE void planed(const Plane<BYTES>& plane, int u, u32 (&out)[4]) {
    if constexpr (BITS == 4) {
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = (plane.words[2 * u + i / 2] >> (i % 2 * 4)) & 0x0f0f0f0fu;
    } else if constexpr (BITS == 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = (plane.words[u] >> (i * 2)) & 0x03030303u;
    } else {
        // Four nibbles, a bit for each byte: the product puts copies of them at bits 0, 7, 14, 21, and the mask leaves one a byte.
        u32 bits = plane.words[u / 2] >> (u % 2 * 16);
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = (((bits >> (i * 4)) & 15u) * 0x00204081u) & 0x01010101u;
    }
}

// The codes of a chunk.
struct Codes {
    Plane<LOW_BYTES> low;
#if HIGH > 0
    Plane<HIGH_BYTES> high;
#endif
    DEVICE_MEMBER void load(const u8* at, u32 lane) {
        low.load(at, lane);
#if HIGH > 0
        high.load(at + 32 * LOW_BYTES, lane);
#endif
    }
    // The operand registers of unit `u`, each shifted up as `shift_of` says.
    DEVICE_MEMBER void registers(int u, u32 (&a)[4]) const {
#if HIGH > 0
        u32 upper[4];
        planed<LOW>(low, u, a);
        planed<HIGH>(high, u, upper);
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] |= upper[i] << LOW;
#elif LOW == 8
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = low.words[4 * u + i];
#elif LOW == 4
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = low.words[2 * u + i / 2] & (0x0f0f0f0fu << (i % 2 * 4));
#elif SUB == 16
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = low.words[u] & (0x03030303u << (i * 2));
#else
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = (low.words[u] >> (i / 2 * 4)) & (0x03030303u << (i % 2 * 2));
#endif
    }
};

// The scales of a sub-block of this thread's rows g and g + 8, and the minima where there are any.
struct __align__(HAS_MIN ? 16 : 8) RowScales {
    float scale[2];
#if HAS_MIN
    float minimum[2];
#endif
};

#if SCALES == SUPER_SCALES
// Scales of a chunk on their way: each thread of four works out a quarter of its rows' sub-blocks, and shared memory gives them to all.
struct Scales {
    u32 units[1 + HAS_MIN];
    u32 factors[1 + HAS_MIN][2][(SUBS + 15) / 16];

    DEVICE_MEMBER void load(const u8* at, u32 lane) {
        const u32 g = lane / 4, t = lane % 4;
#pragma unroll
        for (int m = 0; m < 1 + HAS_MIN; m++) {
            const u8* part = at + m * SCALE_PART;
            units[m] = load_once((const u32*)(part + g * 4));
#pragma unroll
            for (int row = 0; row < 2; row++) {
                const u8* quarter = part + 32 + (g * 2 + row) * SUBS + t * (SUBS / 4);
                if constexpr (SUBS == 16) factors[m][row][0] = load_once((const u32*)quarter);
                else factors[m][row][0] = load_once((const u16*)quarter);
            }
        }
    }
    // unit * (byte - 128), exact: 2^15 + byte is put together as a float, and the rest of it taken off by one fused multiply-add.
    DEVICE_MEMBER float get(int m, int row, int i) const {
        const float unit = half_to_float(units[m] >> (row * 16));
        const float biased = __uint_as_float(__byte_perm(factors[m][row][0], 0x47000000u, 0x7404 + i * 16));
        return fma(biased, unit, -32896.0f * unit);
    }
    DEVICE_MEMBER void share(RowScales* of_tile, u32 lane) const {
#pragma unroll
        for (int i = 0; i < SUBS / 4; i++) {
            RowScales* at = of_tile + (lane % 4 * (SUBS / 4) + i) * 8 + lane / 4;
#if HAS_MIN
            *at = {{get(0, 0, i), get(0, 1, i)}, {get(1, 0, i), get(1, 1, i)}};
#else
            *at = {{get(0, 0, i), get(0, 1, i)}};
#endif
        }
    }
};
#else
// Scales of a chunk of this thread's row tile.
struct Scales {
    u32 values[1 + HAS_MIN][SUBS][SCALES == F32_SCALES ? 2 : 1];

    DEVICE_MEMBER void load(const u8* at, u32 lane) {
#pragma unroll
        for (int m = 0; m < 1 + HAS_MIN; m++)
#pragma unroll
            for (int i = 0; i < SUBS; i++) {
                const u8* pair = at + m * SCALE_PART + (lane / 4 * SUBS + i) * 2 * SCALE_VALUE_BYTES;
#if SCALES == F32_SCALES
                const uint2 v = load_once((const uint2*)pair);
                values[m][i][0] = v.x;
                values[m][i][1] = v.y;
#else
                values[m][i][0] = load_once((const u32*)pair);
#endif
            }
    }
    DEVICE_MEMBER float get(int m, int row, int sub) const {
#if SCALES == F32_SCALES
        return __uint_as_float(values[m][sub][row]);
#else
        return half_to_float(values[m][sub][0] >> (row * 16));
#endif
    }
    DEVICE_MEMBER RowScales scales(int sub) const {
#if HAS_MIN
        return {{get(0, 0, sub), get(0, 1, sub)}, {get(1, 0, sub), get(1, 1, sub)}};
#else
        return {{get(0, 0, sub), get(0, 1, sub)}};
#endif
    }
};
#endif

// What the sums of this thread's two columns need of a block of activations, beside its codes.
struct ColumnScales {
    float dx[2];
    // Scales times sums of codes, for each sub-block of the unit.
    float weighed[2][SUBS_PER_UNIT];
    // Sums of codes, for each sub-block of the unit.
    int sums[2][SUBS_PER_UNIT];

    DEVICE_MEMBER void load(const uint2* scales, const float4* minima, int i) {
        if (HAS_MIN) {
            if (SUB == 32) {
                const float2 v = __ldg((const float2*)minima);
                dx[i] = v.x;
                weighed[i][0] = v.y;
            } else {
                const float4 v = __ldg(minima);
                dx[i] = v.x;
                weighed[i][0] = v.z;
                weighed[i][SUBS_PER_UNIT - 1] = v.w;
            }
        }
        if (OFFSET > 0 || !HAS_MIN) {
            const uint2 v = __ldg(scales);
            dx[i] = __uint_as_float(v.x);
            const int first = (int)(short)v.y, second = (int)v.y >> 16;
            sums[i][0] = SUB == 32 ? first + second : first;
            if (SUB == 16) sums[i][SUBS_PER_UNIT - 1] = second;
        }
    }
};

#define MAGIC_BITS_OF(shift) (MAGIC_BITS - ((shift) << 23))
#define MAGIC_OF(shift) (MAGIC / (float)(1 << (shift)))

// Integer sums start at the magic number of their row's shift, less the offset's share, so that they end as `code - offset` would
// give them; as floats they are then a subtraction away from the sums themselves.
DEVICE void start_sums(int (&start)[4], const int (&magic)[4], const ColumnScales& columns, int half) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        start[i] = OFFSET == 0 ? magic[i] : magic[i] - (OFFSET << shift_of(i / 2, half)) * columns.sums[i % 2][half];
}

DEVICE void accumulate(float (&acc)[4], const int (&sums)[4], const RowScales& rows, const ColumnScales& columns, int half) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float sum = __int_as_float(sums[i]) - MAGIC_OF(shift_of(i / 2, half));
        acc[i] = fma(sum, rows.scale[i / 2] * columns.dx[i % 2], acc[i]);
#if HAS_MIN
        acc[i] = fma(rows.minimum[i / 2], columns.weighed[i % 2][half], acc[i]);
#endif
    }
}

// Adds a unit to the sums of FOLD row tiles. `mine` is which of them this thread brings columns of.
DEVICE void take_unit(float (&acc)[4], const u32 (*a)[4], const RowScales (&rows)[SUBS_PER_UNIT], uint2 b, const ColumnScales& columns,
                      const int (&magic)[SUBS_PER_UNIT][4], u32 mine) {
    int sums[SUBS_PER_UNIT][4];
#pragma unroll
    for (int h = 0; h < SUBS_PER_UNIT; h++) start_sums(sums[h], magic[h], columns, h);
#pragma unroll
    for (int p = 0; p < FOLD; p++) {
        const uint2 own = FOLD == 1 || mine == p ? b : make_uint2(0, 0);
        if (SUB == 32) {
            multiply(sums[0], a[p], own, sums[0]);
        } else {
            multiply_half(sums[0], a[p][0], a[p][1], own.x, sums[0]);
            multiply_half(sums[SUBS_PER_UNIT - 1], a[p][2], a[p][3], own.y, sums[SUBS_PER_UNIT - 1]);
        }
    }
#pragma unroll
    for (int h = 0; h < SUBS_PER_UNIT; h++) accumulate(acc, sums[h], rows[h], columns, h);
}

// Where the blocks of a run of eight columns begin: that of the operand, and those of this thread's two results. Fewer than 2^32
// blocks; the blocks of eight rows lie together (quantize.cu).
struct ColumnBlocks {
    u32 operand;
    u32 results[2];
};

// Weights and scales of CHUNKS chunks of all row tiles.
template <int CHUNKS> struct Step {
    Codes codes[CHUNKS][ROW_TILES];
#if SCALES == SUPER_SCALES
    Scales scales[ROW_TILES];
#else
    Scales scales[CHUNKS][SETS];
#endif

    // `base` are the row tiles, `own` those whose scales this thread applies.
    DEVICE_MEMBER void load(const u8* const (&base)[ROW_TILES], const u8* const (&own)[SETS], u32 at, u32 lane) {
        const u32 scales_at = 32 * (LOW_BYTES + HIGH_BYTES);
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) codes[k][r].load(base[r] + (u64)at * CHUNK + k * CHUNK, lane);
#if SCALES == SUPER_SCALES
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) scales[r].load(base[r] + (u64)at * CHUNK + scales_at, lane);
#else
#pragma unroll
            for (int s = 0; s < SETS; s++) scales[k][s].load(own[s] + (u64)at * CHUNK + k * CHUNK + scales_at, lane);
#endif
        }
    }
};

// The activations' codes, scales and minima, the codes from this thread's part of a block on.
struct Activations {
    const u8* codes;
    const uint2* scales;
    const float4* minima;
};

// The sums of a warp, and what all steps take.
struct Sums {
    float acc[SETS][COLUMN_TILES][4];
    int magic[SUBS_PER_UNIT][4];
    RowScales* shared;
    // Of the row tiles that share columns: the one whose columns this thread brings, and the one whose sums it scales.
    u32 brought;
    u32 scaled;
    u32 lane;

    template <int CHUNKS> DEVICE_MEMBER void take(const Step<CHUNKS>& step, u32 at, const Activations& x,
                                                  const ColumnBlocks (&blocks)[COLUMN_TILES]) {
#if SCALES == SUPER_SCALES
        __syncwarp();
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) step.scales[r].share(shared + r * SUBS * 8, lane);
        __syncwarp();
#endif
        // Within a step, blocks are found by constants from where its first one is.
        const u32 first = at * UNITS * 8;
        const u8* codes[COLUMN_TILES];
        const uint2* scales[COLUMN_TILES][2];
        const float4* minima[COLUMN_TILES][2];
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++) {
            codes[c] = x.codes + (u64)(blocks[c].operand + first) * 32;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                scales[c][i] = x.scales + (blocks[c].results[i] + first);
                minima[c][i] = x.minima + (blocks[c].results[i] + first);
            }
        }
#pragma unroll
        for (int unit = 0; unit < CHUNKS * UNITS; unit++) {
            const int k = unit / UNITS, u = unit % UNITS;
            u32 a[ROW_TILES][4];
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) step.codes[k][r].registers(u, a[r]);
            RowScales rows[SETS][SUBS_PER_UNIT];
#pragma unroll
            for (int s = 0; s < SETS; s++)
#pragma unroll
                for (int h = 0; h < SUBS_PER_UNIT; h++) {
                    const int sub = u * SUBS_PER_UNIT + h;
#if SCALES == SUPER_SCALES
                    rows[s][h] = shared[((s * FOLD + scaled) * SUBS + sub) * 8 + lane / 4];
#else
                    rows[s][h] = step.scales[k][s].scales(sub);
#endif
                }
#pragma unroll
            for (int c = 0; c < COLUMN_TILES; c++) {
                const uint2 b = __ldg((const uint2*)(codes[c] + unit * 8 * 32));
                ColumnScales columns;
#pragma unroll
                for (int i = 0; i < 2; i++) columns.load(scales[c][i] + unit * 8, minima[c][i] + unit * 8, i);
#pragma unroll
                for (int s = 0; s < SETS; s++) take_unit(acc[s][c], a + s * FOLD, rows[s], b, columns, magic, brought);
            }
        }
    }
};

// weights [segments of blockIdx.z][row tiles][depth / (32 UNITS)][CHUNK]; codes, scales and minima as quantize.cu leaves them, rows of
// `row_blocks` blocks; y rows of `y_stride`. `split` is how many segments the depth has, `groups` how many tiles a block takes.
KERNEL __launch_bounds__(THREADS, BLOCKS) codes(const u8* weights, const u8* x_codes, const uint2* x_scales, const float4* x_minima,
                                                float* y, const float* bias, const u32* starts, const u32* order, u32 rows, u32 depth,
                                                u32 tokens, u32 slots, u32 row_blocks, u32 y_stride, u32 split, u32 groups, u32 sliced) {
    DYNAMIC_SHARED(float4, shared4);
    const u32 width = COLUMN_TILES * FOLD_COLUMNS, height = ROW_TILES * 16;
    Columns columns = columns_of_tile(starts, order, tokens, slots, width);
    if (columns.first >= columns.count) return;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 tiles = (rows + 15) / 16, tile = (blockIdx.x * groups + warp / split) * ROW_TILES;
    const u64 tile_bytes = (u64)(depth / (32 * UNITS)) * CHUNK;
    const u32 slice = sliced ? blockIdx.z : 0;
    Sums sums = {};
    sums.lane = lane;
    sums.brought = lane / 4 / FOLD_COLUMNS;
    sums.scaled = lane % 4 * 2 / FOLD_COLUMNS;
    sums.shared = (RowScales*)shared4 + warp * ROW_TILES * SUBS * 8;
#pragma unroll
    for (int i = 0; i < 4 * SUBS_PER_UNIT; i++) sums.magic[i / 4][i % 4] = opaque(MAGIC_BITS_OF(shift_of(i % 4 / 2, i / 4)));

    u32 start, end;
    segment_of(depth, split, warp % split, start, end);
    if (tile < tiles) {
        const u8* base[ROW_TILES];
        const u8* own[SETS];
        auto row_tile = [&](u32 r) {
            u32 t = tile + r < tiles ? tile + r : tiles - 1;
            return weights + (blockIdx.z * (u64)tiles + t) * tile_bytes;
        };
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) base[r] = row_tile(r);
#pragma unroll
        for (int s = 0; s < SETS; s++) own[s] = row_tile(s * FOLD + sums.scaled);
        ColumnBlocks blocks[COLUMN_TILES];
        auto first_block = [&](u32 column) {
            u32 row = columns.row(column);
            return (row / 8 * row_blocks + slice * (depth / 32)) * 8 + row % 8;
        };
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++) {
            blocks[c].operand = first_block(c * FOLD_COLUMNS + lane / 4 % FOLD_COLUMNS);
#pragma unroll
            for (int i = 0; i < 2; i++) blocks[c].results[i] = first_block(c * FOLD_COLUMNS + (lane % 4 * 2 + i) % FOLD_COLUMNS);
        }
        const Activations x = {x_codes + lane % 4 * 8, x_scales, x_minima};
        u32 at = start / (32 * UNITS);
        const u32 last = end / (32 * UNITS), whole = at + (last - at) / STEP_CHUNKS * STEP_CHUNKS;
        // While one step is taken, the next is on its way.
        Step<STEP_CHUNKS> even, odd;
        if (at < whole) even.load(base, own, at, lane);
        while (at < whole) {
            if (at + STEP_CHUNKS < whole) odd.load(base, own, at + STEP_CHUNKS, lane);
            sums.take(even, at, x, blocks);
            at += STEP_CHUNKS;
            if (at >= whole) break;
            if (at + STEP_CHUNKS < whole) even.load(base, own, at + STEP_CHUNKS, lane);
            sums.take(odd, at, x, blocks);
            at += STEP_CHUNKS;
        }
        if constexpr (STEP_CHUNKS > 1) {
#pragma unroll 1
            for (; at < last; at++) {
                Step<1> rest;
                rest.load(base, own, at, lane);
                sums.take(rest, at, x, blocks);
            }
        }
    }

    // The segments of a tile are neighbours: [warp][row][column], the columns padded by one.
    float* shared = (float*)shared4;
    __syncthreads();
#pragma unroll
    for (int s = 0; s < SETS; s++)
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 row = (s * FOLD + sums.scaled) * 16 + lane / 4 + i / 2 * 8;
                const u32 column = c * FOLD_COLUMNS + (lane % 4 * 2 + i % 2) % FOLD_COLUMNS;
                shared[(warp * height + row) * (width + 1) + column] = sums.acc[s][c][i];
            }
    __syncthreads();
    for (u32 cell = threadIdx.x; cell < groups * height * width; cell += blockDim.x) {
        u32 row_here = cell % height, column = cell / height % width, group = cell / (height * width);
        u32 row = (blockIdx.x * groups + group) * height + row_here;
        if (row >= rows || !columns.has(column)) continue;
        const float* part = shared + (group * split * height + row_here) * (width + 1) + column;
        float sum = part[0];
        for (u32 s = 1; s < split; s++) sum = sum + part[s * height * (width + 1)];
        if (bias) sum = sum + bias[blockIdx.z * rows + row];
        y[(u64)columns.place(column) * y_stride + slice * rows + row] = sum;
    }
}
