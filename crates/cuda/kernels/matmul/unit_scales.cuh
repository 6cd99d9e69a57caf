// Scales of packed weights by units, in f32 and exact; folded ones as whole numbers (folded.cuh).

#define SCALES_AT (PLANE_BYTES(LOW) + PLANE_BYTES(HIGH))

#if IS_FOLDED
// Whole numbers of four units.
typedef FoldedFactors<1> RawScales;
typedef FoldedUnits ScaleUnits;
#else

// Scales (and minima) of rows g and g + 8 in a unit, as they lie.
struct RawScales {
#if SCALES == SUPER_SCALES
    // The factors of four units' sub-blocks, a byte each.
    u32 factors[1 + HAS_MIN][2][SUBS_PER_UNIT];
#else
    u32 values[1 + HAS_MIN][SUBS_PER_UNIT][SCALES == F32_SCALES ? 2 : 1];
#endif
    DEVICE_MEMBER void load(const u8* part, u32 unit, u32 g) {
#pragma unroll
        for (int m = 0; m < 1 + HAS_MIN; m++, part += SCALE_PART) {
#if SCALES == SUPER_SCALES
#pragma unroll
            for (int i = 0; i < 2 * SUBS_PER_UNIT; i++) {
                const int row = i / SUBS_PER_UNIT, word = i % SUBS_PER_UNIT;
                factors[m][row][word] = *(const u32*)(part + 32 + (2 * g + row) * SUBS + unit / 4 * 4 * SUBS_PER_UNIT + word * 4);
            }
#else
#pragma unroll
            for (int s = 0; s < SUBS_PER_UNIT; s++) {
                const u8* at = part + (g * SUBS + unit * SUBS_PER_UNIT + s) * (SCALES == F32_SCALES ? 8 : 4);
                values[m][s][0] = *(const u32*)at;
                if (SCALES == F32_SCALES) values[m][s][SCALES == F32_SCALES] = *(const u32*)(at + 4);
            }
#endif
        }
    }
};

// What factors count: of a chunk of 256 features; nothing elsewhere. `excess` is what 2^15 and a factor's bias make of it.
struct ScaleUnits {
#if SCALES == SUPER_SCALES
    float units[1 + HAS_MIN][2];
    float excess[1 + HAS_MIN][2];
#endif
    DEVICE_MEMBER void load(const u8* part, u32 g) {
#if SCALES == SUPER_SCALES
#pragma unroll
        for (int m = 0; m < 1 + HAS_MIN; m++) {
            const u32 pair = *(const u32*)(part + m * SCALE_PART + g * 4);
#pragma unroll
            for (int row = 0; row < 2; row++) {
                units[m][row] = half_to_float(pair >> (row * 16)) * UNIT_SCALE;
                excess[m][row] = -32896.0f * units[m][row];
            }
        }
#endif
    }
    // unit * (byte - 128), exact: 2^15 + byte is put together as a float, and the rest of it taken off by one fused multiply-add.
    DEVICE_MEMBER float get(const RawScales& raw, int m, int row, int sub, u32 unit, const Kept& kept) const {
#if SCALES == SUPER_SCALES
        const u32 index = unit % 4 * SUBS_PER_UNIT + sub;
        const u32 four = index < 4 ? raw.factors[m][row][0] : raw.factors[m][row][SUBS_PER_UNIT - 1];
        const u32 biased = named_bytes(four, kept.factor_bits, 0x7404 + index % 4 * 16);
        return fma(__uint_as_float(biased), units[m][row], excess[m][row]);
#elif SCALES == F32_SCALES
        return __uint_as_float(raw.values[m][sub][row]);
#else
        return half_to_float(raw.values[m][sub][0] >> (row * 16));
#endif
    }
};

#endif
