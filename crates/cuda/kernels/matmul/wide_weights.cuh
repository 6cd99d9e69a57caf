// Weights of wide.cu: the shape of a tile, and what a warp takes of a step of weights in shared memory.

// Row tiles that share the eight columns of an instruction, each having a part of them; sums are of sets of as many.
#define SETS (ROW_TILES / FOLD)
#define FOLD_COLUMNS (8 / FOLD)
#define WIDTH (COLUMN_TILES * FOLD_COLUMNS)
#define HEIGHT (TEAMS * ROW_TILES * 16)
#define PART_THREADS (TEAMS * 32)
#define STEP_UNITS (UNITS >= 4 ? UNITS : 4)
#define STEP_CHUNKS (STEP_UNITS / UNITS)
#define STEP_BYTES (STEP_CHUNKS * CHUNK)
// Bytes are multiplied as signed numbers, so that no sum has to be corrected.
#define IS_SIGNED (TABLE > 0 || (LOW == 8 && OFFSET == 128))
#define IS_CORRECTED (OFFSET > 0 && !IS_SIGNED)
// What sums need of a block of activations: its scale; and the sums of its codes, or these times the scale.
#define COLUMN_BYTES (HAS_MIN || IS_CORRECTED ? 8 : 4)
// Scales times sums of a block's codes.
#define HAS_WEIGHED (HAS_MIN && !IS_FOLDED)
#define WEIGHT_BYTES (TEAMS * ROW_TILES * STEP_BYTES)
#define PART_BYTES (WEIGHT_BYTES + STEP_UNITS * WIDTH * (32 + COLUMN_BYTES))

static_assert(PARTS * PART_BYTES == STAGE_BYTES && STAGES >= 2, "the ring is as the host reckons it");
static_assert(THREADS == PARTS * PART_THREADS && THREADS >= WIDTH, "a thread looks up a column");
static_assert(PARTS == 1 || PARTS >= 4, "a part keeps the sums of two segments at most");
static_assert(ROW_TILES % FOLD == 0 && (FOLD == 1 || COLUMN_TILES == 1 && FOLD <= 4), "a thread's two columns are of one row tile");
static_assert(!HAS_MIN || IS_FOLDED || SUB == 32, "minima are of blocks");
static_assert(!(HAS_MIN && OFFSET > 0), "minima take the place of an offset");

#define MAGIC_BITS_OF(shift) (MAGIC_BITS - ((shift) << 23))
#define MAGIC_OF(shift) (MAGIC / (float)(1 << (shift)))

// How many bits too far up the codes of a register are multiplied: they are masked where they lie.
DEVICE constexpr int shift_of(int row, int half) {
    return HIGH > 0 || LOW == 8 || TABLE > 0 ? 0 : LOW == 4 ? row * 4 : SUM_SUB == 16 ? half * 4 + row * 2 : row * 2;
}

// The codes of register `i`: row g + 8 (i % 2), half i / 2.
DEVICE u32 placed(const Raw& raw, int i, const Kept& kept) {
#if TABLE > 0
    return raw.level(i, kept);
#elif HIGH > 0 || (LOW == 8 && !IS_SIGNED)
    return raw.bytes(i);
#elif LOW == 8
    return raw.bytes(i) ^ 0x80808080u;
#elif LOW == 4
    return raw.low[i / 2] & (0x0f0f0f0fu << (i % 2 * 4));
#elif SUM_SUB == 16
    return raw.low[0] & (0x03030303u << (i * 2));
#else
    return (raw.low[0] >> (i / 2 * 4)) & (0x03030303u << (i % 2 * 2));
#endif
}

// Units that a warp takes from shared memory at once: four, whose words are neighbours, so that reads are wide; one where columns are many
// and registers few.
#define AT_ONCE (UNITS >= 4 && COLUMN_TILES <= 2 ? 4 : 1)

// Some words of this lane's `bytes` of a plane; codes_at of raw.cuh. Neighbours of 16 bytes come together.
template <int BITS> DEVICE void load_words(u32 (&words)[BITS * AT_ONCE / 2], const u8* plane, u32 unit, u32 lane) {
    if constexpr (BITS * AT_ONCE * 2 % 16 == 0) {
#pragma unroll
        for (int i = 0; i < BITS * AT_ONCE / 8; i++) {
            const uint4 v = *(const uint4*)codes_at<BITS>(plane, unit + i * 8 / BITS, lane);
            words[4 * i] = v.x; words[4 * i + 1] = v.y; words[4 * i + 2] = v.z; words[4 * i + 3] = v.w;
        }
    } else {
        static_assert(BITS * AT_ONCE == 4, "planes of one bit have eight bytes a lane here");
        const uint2 v = *(const uint2*)codes_at<BITS>(plane, unit, lane);
        words[0] = v.x; words[1] = v.y;
    }
}

// AT_ONCE units of this warp's row tiles on their way from shared memory. `scaled` is which tile of a set this thread scales.
struct UnitWeights {
#if AT_ONCE > 1
    u32 low[ROW_TILES][LOW * 2];
#if HIGH > 0
    u32 high[ROW_TILES][HIGH * 2];
#endif
#else
    Raw raws[ROW_TILES];
#endif
    RawScales scales[SETS];
    DEVICE_MEMBER void load(const u8* step, u32 unit, u32 lane, u32 scaled) {
        const u8* chunk = step + unit / UNITS * CHUNK;
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
#if AT_ONCE > 1
            load_words<LOW>(low[r], chunk + r * STEP_BYTES, unit % UNITS, lane);
#if HIGH > 0
            load_words<HIGH>(high[r], chunk + r * STEP_BYTES + PLANE_BYTES(LOW), unit % UNITS, lane);
#endif
#else
            raws[r].load(chunk + r * STEP_BYTES, unit % UNITS, lane);
#endif
        }
#pragma unroll
        for (int s = 0; s < SETS; s++)
            if (AT_ONCE > 1 || SCALES != SUPER_SCALES && !IS_FOLDED || unit % 4 == 0)
                scales[s].load(chunk + (s * FOLD + scaled) * STEP_BYTES + SCALES_AT, unit % UNITS, lane / 4);
    }
    // Row tile `r` of unit `v` of these.
    DEVICE_MEMBER Raw raw(int r, int v) const {
#if AT_ONCE > 1
        Raw raw;
#pragma unroll
        for (int i = 0; i < LOW / 2; i++) raw.low[i] = low[r][v * (LOW / 2) + i];
#if TABLE == 8
        raw.put_signs(high[r][v / 2], v % 2);
#elif HIGH == 2
        raw.high = high[r][v];
#elif HIGH == 1
        raw.high = high[r][v / 2] >> (v % 2 * 16);
#endif
        return raw;
#else
        return raws[r];
#endif
    }
};
