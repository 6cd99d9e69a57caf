// Scales and minima that are whole numbers of a chunk's units: numerics.rs, where a format folds. A block of 32 has two exact
// integers, the sum of codes times factors and that of minima, and what is left of them in f32 is the same for all such blocks.
//
// A word of factors has four sub-blocks in its low nibbles, and the next four in the high ones: by a mask they become pairs of bytes, those
// of a unit, by which two sums in 16 bits are multiplied at once.

#ifdef CHUNK
#if IS_FOLDED

static_assert(LOW == 2 && HIGH == 0 && TABLE == 0 && OFFSET == 0 && SUB == 16 && HAS_MIN, "codes times factors are bytes");

// How far up the codes of a row are multiplied, row g or g + 8.
#define FOLDED_SHIFT(row) ((row) * 2)

// Units of a chunk, of rows g and g + 8.
struct FoldedUnits {
    float scale[2];
    // What a scale makes of the number that a sum starts at.
    float excess[2];
    float minimum[2];
    DEVICE_MEMBER void load(const u8* part, u32 g) {
        const u32 scales = *(const u32*)(part + g * 4), minima = *(const u32*)(part + SCALE_PART + g * 4);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            scale[row] = half_to_float(scales >> (row * 16));
            excess[row] = scale[row] * -(MAGIC / (float)(1 << FOLDED_SHIFT(row)));
            minimum[row] = half_to_float(minima >> (row * 16));
        }
    }
};

// A unit's factors of rows g and g + 8: bytes of both its halves, in the two low ones of a word or in the high ones.
struct FoldedRows {
    u32 scales[2];
    u32 minima[2];
};

// Factors of WORDS x 4 units.
template <int WORDS> struct FoldedFactors {
    u32 words[2][2][WORDS];
    // From unit `unit` on, a multiple of four.
    DEVICE_MEMBER void load(const u8* part, u32 unit, u32 g) {
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const u8* at = part + m * SCALE_PART + 32 + g * SUBS + unit;
            if constexpr (WORDS == 2) {
                const uint4 v = *(const uint4*)at;
                words[m][0][0] = v.x; words[m][0][1] = v.y; words[m][1][0] = v.z; words[m][1][1] = v.w;
            } else {
                words[m][0][0] = *(const u32*)at;
                words[m][1][0] = *(const u32*)(at + SUBS / 2);
            }
        }
    }
    // Of unit `u` of these: in the low bytes where it is even, in the high ones where it is odd.
    DEVICE_MEMBER FoldedRows of(int u) const {
        FoldedRows rows;
#pragma unroll
        for (int row = 0; row < 2; row++) {
            rows.scales[row] = only_bits(0x0f0f0f0fu, words[0][row][u / 4] >> (u / 2 % 2 * 4));
            rows.minima[row] = only_bits(0x0f0f0f0fu, words[1][row][u / 4] >> (u / 2 % 2 * 4));
        }
        return rows;
    }
};

// Codes of an operand's registers, each FOLDED_SHIFT up, times their factors.
DEVICE void fold_into_codes(u32 (&a)[4], const FoldedRows& rows, int unit) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] *= rows.scales[i % 2] >> (unit % 2 * 16 + i / 2 * 8) & 0xffu;
}

// Sums of both halves' codes, each FOLDED_SHIFT up, to one of codes times factors, on top of what makes it a float.
DEVICE void fold_into_sums(int (&sums)[4], const int (&low)[4], const int (&high)[4], const FoldedRows& rows, int unit,
                           const int (&magic)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 pair = __byte_perm(low[i], high[i], 0x5410);
        sums[i] = unit % 2 ? dot_pair_high(pair, rows.scales[i / 2], magic[i]) : dot_pair(pair, rows.scales[i / 2], magic[i]);
    }
}

// Adds a block: `sums` as they start at the magic numbers, and of both columns the scale and the sums of both halves.
DEVICE void accumulate_folded(float (&acc)[4], const int (&sums)[4], const FoldedRows& rows, const FoldedUnits& units, int unit,
                              const float (&dx)[2], const u32 (&halves)[2], int magic) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 factors = rows.minima[i / 2];
        const int least = unit % 2 ? dot_pair_high(halves[i % 2], factors, magic) : dot_pair(halves[i % 2], factors, magic);
        const float scaled = fma(units.scale[i / 2], __int_as_float(sums[i]), units.excess[i / 2]);
        acc[i] = fma(fma(units.minimum[i / 2], __int_as_float(least) - MAGIC, scaled), dx[i % 2], acc[i]);
    }
}

#ifdef COLUMN_TILES
// Where columns are few, their sums are fewer than codes.
#define FOLDS_CODES (COLUMN_TILES > 1)
static_assert(!FOLDS_CODES || FOLD == 1, "a thread has the factors of one row tile of a set");

// Adds a unit to the sums of FOLD row tiles. `mine` has a one for that of them which this thread brings columns of, else zeros.
DEVICE void take_folded(float (&acc)[4], const u32 (*a)[4], const FoldedRows& rows, const FoldedUnits& units, int unit, uint2 b,
                        const float (&dx)[2], const u32 (&halves)[2], const int (&magic)[4], const u32 (&mine)[FOLD]) {
    int sums[4];
    if (FOLDS_CODES) {
        multiply(sums, a[0], b, magic);
    } else {
        int low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
#pragma unroll
        for (int p = 0; p < FOLD; p++) {
            const uint2 own = FOLD == 1 ? b : make_uint2(b.x * mine[p], b.y * mine[p]);
            multiply_half(low, a[p][0], a[p][1], own.x, low);
            multiply_half(high, a[p][2], a[p][3], own.y, high);
        }
        fold_into_sums(sums, low, high, rows, unit, magic);
    }
    accumulate_folded(acc, sums, rows, units, unit, dx, halves, magic[0]);
}
#endif

#endif
#endif
