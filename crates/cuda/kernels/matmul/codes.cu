// Quantized weights times quantized activations, in the canonical order, for any width.
//
// One warp holds ROW_TILES x 16 weight rows and COLUMN_TILES x 8 columns, and walks one segment of the depth: the matrix
// instruction gives the exact integer sum of a sub-block for 16 rows and 8 columns at once; scales are applied in f32 by the fused
// multiply-adds that numerics.rs names. The segments of a tile are warps of one block, added in order through shared memory.
// So no bit depends on the width: a column is computed by the same operations wherever it stands.
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

static_assert(CHUNK == CHUNK_BYTES, "the packed layout and the kernel disagree");
static_assert(ROW_TILES >= 1 && COLUMN_TILES >= 1 && AHEAD >= 1, "a tile holds something");

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

// The four operand registers of unit `u`, from a plane of BITS bits a code.
template <int BITS, int BYTES> DEVICE void planed(const Plane<BYTES>& plane, int u, u32 (&out)[4]) {
    if constexpr (BITS == 8) {
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = plane.words[4 * u + i];
    } else if constexpr (BITS == 4) {
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

// Scales, or minima, of a chunk's rows g and g + 8.
struct Scales {
#if SCALES == SUPER_SCALES
    u32 unit;
    u32 factors[2 * SUBS / 4];
    DEVICE_MEMBER void load(const u8* at, u32 g) {
        unit = load_once((const u32*)(at + g * 4));
#pragma unroll
        for (int i = 0; i < 2 * SUBS / 16; i++) {
            uint4 v = load_once((const uint4*)(at + 32 + g * 2 * SUBS + i * 16));
            factors[4 * i] = v.x; factors[4 * i + 1] = v.y; factors[4 * i + 2] = v.z; factors[4 * i + 3] = v.w;
        }
    }
    // unit * (byte - 128); both exact.
    DEVICE_MEMBER float get(int row, int sub) const {
        u32 biased = __byte_perm(factors[row * SUBS / 4 + sub / 4], 0x4B000000u, 0x7540 + sub % 4);
        return half_to_float(unit >> (row * 16)) * (__uint_as_float(biased) - 8388736.0f);
    }
#elif SCALES == F32_SCALES
    u32 pairs[SUBS][2];
    DEVICE_MEMBER void load(const u8* at, u32 g) {
#pragma unroll
        for (int i = 0; i < SUBS; i++) {
            uint2 v = load_once((const uint2*)(at + (g * SUBS + i) * 8));
            pairs[i][0] = v.x; pairs[i][1] = v.y;
        }
    }
    DEVICE_MEMBER float get(int row, int sub) const { return __uint_as_float(pairs[sub][row]); }
#else
    u32 pairs[SUBS];
    DEVICE_MEMBER void load(const u8* at, u32 g) {
#pragma unroll
        for (int i = 0; i < SUBS; i++) pairs[i] = load_once((const u32*)(at + (g * SUBS + i) * 4));
    }
    DEVICE_MEMBER float get(int row, int sub) const { return half_to_float(pairs[sub] >> (row * 16)); }
#endif
};

struct Chunk {
    Plane<LOW_BYTES> low;
#if HIGH > 0
    Plane<HIGH_BYTES> high;
#endif
    Scales scales;
#if HAS_MIN
    Scales minima;
#endif
    DEVICE_MEMBER void load(const u8* at, u32 lane) {
        low.load(at, lane);
#if HIGH > 0
        high.load(at + 32 * LOW_BYTES, lane);
#endif
        scales.load(at + 32 * (LOW_BYTES + HIGH_BYTES), lane / 4);
#if HAS_MIN
        minima.load(at + 32 * (LOW_BYTES + HIGH_BYTES) + SCALE_PART, lane / 4);
#endif
    }
    DEVICE_MEMBER void registers(int u, u32 (&a)[4]) const {
        planed<LOW>(low, u, a);
#if HIGH > 0
        u32 upper[4];
        planed<HIGH>(high, u, upper);
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] |= upper[i] << LOW;
#endif
    }
};

// Adds sub-block `sub` to the sums of 16 rows and 8 columns. `dx` are the scales of this thread's two columns, `sums` their codes'.
DEVICE void accumulate(float (&acc)[4], const int (&c)[4], const Chunk& w, int sub, const float (&dx)[2], const int (&sums)[2]) {
    float scale[2] = {w.scales.get(0, sub), w.scales.get(1, sub)};
#pragma unroll
    for (int i = 0; i < 4; i++) acc[i] = fma(exact(c[i]), scale[i / 2] * dx[i % 2], acc[i]);
#if HAS_MIN
    float minimum[2] = {w.minima.get(0, sub), w.minima.get(1, sub)};
    float weighed[2] = {dx[0] * exact(MAGIC_BITS + sums[0]), dx[1] * exact(MAGIC_BITS + sums[1])};
#pragma unroll
    for (int i = 0; i < 4; i++) acc[i] = fma(minimum[i / 2], weighed[i % 2], acc[i]);
#endif
}

// Integer sums start at the magic number less the offset's share, so that they end as `code - offset` would give them.
DEVICE void start_sums(int (&c)[4], const int (&sums)[2]) {
#pragma unroll
    for (int i = 0; i < 4; i++) c[i] = MAGIC_BITS - OFFSET * sums[i % 2];
}

DEVICE void take_unit(float (&acc)[4], const u32 (&a)[4], const Chunk& w, int u, uint2 b, uint2 s0, uint2 s1) {
    float dx[2] = {__uint_as_float(s0.x), __uint_as_float(s1.x)};
    int first[2] = {(int)(short)s0.y, (int)(short)s1.y}, second[2] = {(int)s0.y >> 16, (int)s1.y >> 16};
    int c[4];
#if SUB == 32
    int sums[2] = {first[0] + second[0], first[1] + second[1]};
    start_sums(c, sums);
    multiply(c, a, b);
    accumulate(acc, c, w, u, dx, sums);
#else
    start_sums(c, first);
    multiply_half(c, a[0], a[1], b.x);
    accumulate(acc, c, w, 2 * u, dx, first);
    start_sums(c, second);
    multiply_half(c, a[2], a[3], b.y);
    accumulate(acc, c, w, 2 * u + 1, dx, second);
#endif
}

// weights [segments of blockIdx.z][row tiles][depth / (32 UNITS)][CHUNK]; codes and scales as quantize.cu leaves them, rows of
// `row_blocks` blocks; y rows of `y_stride`. `split` is how many segments the depth has, `groups` how many tiles a block takes.
KERNEL __launch_bounds__(THREADS, BLOCKS) codes(const u8* weights, const u8* x_codes, const uint2* x_scales, float* y, const float* bias,
                                        const u32* starts, const u32* order, u32 rows, u32 depth, u32 tokens, u32 slots,
                                        u32 row_blocks, u32 y_stride, u32 split, u32 groups, u32 sliced) {
    DYNAMIC_SHARED(float, shared);
    Columns columns = columns_of_tile(starts, order, tokens, slots, COLUMN_TILES * 8);
    if (columns.first >= columns.count) return;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 tiles = (rows + 15) / 16, tile = (blockIdx.x * groups + warp / split) * ROW_TILES;
    const u64 tile_bytes = (u64)(depth / (32 * UNITS)) * CHUNK;
    const u32 slice = sliced ? blockIdx.z : 0;

    u32 start, end;
    segment_of(depth, split, warp % split, start, end);
    float acc[ROW_TILES][COLUMN_TILES][4] = {};
    if (tile < tiles) {
        const u8* base[ROW_TILES];
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            u32 t = tile + r < tiles ? tile + r : tiles - 1;
            base[r] = weights + (blockIdx.z * (u64)tiles + t) * tile_bytes;
        }
        // The first block of this thread's columns: of one for the operand, of two for the results. Fewer than 2^32 blocks. The
        // blocks of eight rows lie together (quantize.cu).
        u32 operand[COLUMN_TILES], results[COLUMN_TILES][2];
        auto first_block = [&](u32 column) {
            u32 row = columns.row(column);
            return (row / 8 * row_blocks + slice * (depth / 32)) * 8 + row % 8;
        };
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++) {
            operand[c] = first_block(c * 8 + lane / 4);
#pragma unroll
            for (int i = 0; i < 2; i++) results[c][i] = first_block(c * 8 + lane % 4 * 2 + i);
        }
        const uint2* x_operand = (const uint2*)x_codes + lane % 4;
        u32 at = start / (32 * UNITS), last = end / (32 * UNITS);
        Chunk ahead[AHEAD][ROW_TILES];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
                if (at + i < last) ahead[i][r].load(base[r] + (u64)(at + i) * CHUNK, lane);
        for (; at < last; at += AHEAD) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (at + i >= last) break;
                Chunk now[ROW_TILES];
#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) {
                    now[r] = ahead[i][r];
                    if (at + i + AHEAD < last) ahead[i][r].load(base[r] + (u64)(at + i + AHEAD) * CHUNK, lane);
                }
#pragma unroll
                for (int u = 0; u < UNITS; u++) {
                    u32 a[ROW_TILES][4];
#pragma unroll
                    for (int r = 0; r < ROW_TILES; r++) now[r].registers(u, a[r]);
                    u32 block = ((at + i) * UNITS + u) * 8;
#pragma unroll
                    for (int c = 0; c < COLUMN_TILES; c++) {
                        uint2 b = __ldg(x_operand + (u64)(operand[c] + block) * 4);
                        uint2 s0 = __ldg(x_scales + results[c][0] + block), s1 = __ldg(x_scales + results[c][1] + block);
#pragma unroll
                        for (int r = 0; r < ROW_TILES; r++) take_unit(acc[r][c], a[r], now[r], u, b, s0, s1);
                    }
                }
            }
        }
    }

    // The segments of a tile are neighbours: [warp][row][column], the columns padded by one.
    const u32 height = ROW_TILES * 16, width = COLUMN_TILES * 8;
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                shared[(warp * height + r * 16 + lane / 4 + i / 2 * 8) * (width + 1) + c * 8 + lane % 4 * 2 + i % 2] = acc[r][c][i];
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
