// Weights of codes.cu, as a warp reads a chunk from shared memory: codes of all its units in registers, and scales of a thread's rows.

#define LOW_BYTES (UNITS * LOW * 2)
#define HIGH_BYTES (UNITS * HIGH * 2)
#define SCALE_VALUE_BYTES (SCALES == F32_SCALES ? 4 : 2)

template <int BYTES> struct Plane {
    u32 words[(BYTES + 3) / 4];
    DEVICE_MEMBER void load(const u8* at, u32 lane) {
        if constexpr (BYTES % 16 == 0) {
#pragma unroll
            for (int i = 0; i < BYTES / 16; i++) {
                const uint4 v = *(const uint4*)(at + (i * 32 + lane) * 16);
                words[4 * i] = v.x; words[4 * i + 1] = v.y; words[4 * i + 2] = v.z; words[4 * i + 3] = v.w;
            }
        } else if constexpr (BYTES == 8) {
            const uint2 v = *(const uint2*)(at + lane * 8);
            words[0] = v.x; words[1] = v.y;
        } else if constexpr (BYTES == 4) {
            words[0] = *(const u32*)(at + lane * 4);
        } else {
            static_assert(BYTES == 2, "planes are 2, 4, 8 or whole 16 bytes a lane");
            words[0] = *(const u16*)(at + lane * 2);
        }
    }
};

// Codes are taken as they lie, without shifting them down, where that saves an instruction: how many bits too far up they are.
DEVICE constexpr int shift_of(int row, int half) {
    return HIGH > 0 || LOW == 8 || TABLE > 0 ? 0 : LOW == 4 ? row * 4 : SUM_SUB == 16 ? half * 4 + row * 2 : row * 2;
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
    DEVICE_MEMBER void registers(int u, u32 (&a)[4], const Kept& kept) const {
#if TABLE > 0
        Raw raw;
#pragma unroll
        for (int i = 0; i < LOW / 2; i++) raw.low[i] = low.words[u * (LOW / 2) + i];
#if TABLE == 8
        raw.put_signs(high.words[u / 2], u % 2);
#endif
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = raw.level(i, kept);
#elif HIGH > 0
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
#elif SUM_SUB == 16
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = low.words[u] & (0x03030303u << (i * 2));
#else
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = (low.words[u] >> (i / 2 * 4)) & (0x03030303u << (i % 2 * 2));
#endif
    }
};

// The scales of a sub-block of this thread's rows g and g + 8, and the minima where there are any.
struct RowScales {
    float scale[2];
#if HAS_MIN
    float minimum[2];
#endif
};

// Scales, and minima, of this thread's rows in a chunk of one row tile.
struct Scales {
#if IS_FOLDED
    FoldedUnits units;
    FoldedFactors<2> factors;
    DEVICE_MEMBER void load(const u8* at, u32 g) {
        units.load(at, g);
        factors.load(at, 0, g);
    }
#elif SCALES == SUPER_SCALES
    // What 2^15 and the bias of a factor make of a unit, to be taken off.
    float units[1 + HAS_MIN][2];
    float excess[1 + HAS_MIN][2];
    u32 factors[1 + HAS_MIN][2 * SUBS / 4];

    DEVICE_MEMBER void load(const u8* at, u32 g) {
#pragma unroll
        for (int m = 0; m < 1 + HAS_MIN; m++) {
            const u8* part = at + m * SCALE_PART;
            const u32 unit = *(const u32*)(part + g * 4);
#pragma unroll
            for (int row = 0; row < 2; row++) {
                units[m][row] = half_to_float(unit >> (row * 16)) * UNIT_SCALE;
                excess[m][row] = -32896.0f * units[m][row];
            }
#pragma unroll
            for (int i = 0; i < 2 * SUBS / 16; i++) {
                const uint4 v = *(const uint4*)(part + 32 + g * 2 * SUBS + i * 16);
                factors[m][4 * i] = v.x; factors[m][4 * i + 1] = v.y; factors[m][4 * i + 2] = v.z; factors[m][4 * i + 3] = v.w;
            }
        }
    }
    // unit * (byte - 128), exact: 2^15 + byte is put together as a float, and the rest of it taken off by one fused multiply-add.
    DEVICE_MEMBER float get(int m, int row, int sub, const Kept& kept) const {
        const u32 biased = named_bytes(factors[m][(row * SUBS + sub) / 4], kept.factor_bits, 0x7404 + sub % 4 * 16);
        return fma(__uint_as_float(biased), units[m][row], excess[m][row]);
    }
#else
    u32 values[1 + HAS_MIN][SUBS][SCALES == F32_SCALES ? 2 : 1];

    DEVICE_MEMBER void load(const u8* at, u32 g) {
#pragma unroll
        for (int m = 0; m < 1 + HAS_MIN; m++)
#pragma unroll
            for (int i = 0; i < SUBS; i++) {
                const u8* pair = at + m * SCALE_PART + (g * SUBS + i) * 2 * SCALE_VALUE_BYTES;
#if SCALES == F32_SCALES
                const uint2 v = *(const uint2*)pair;
                values[m][i][0] = v.x;
                values[m][i][1] = v.y;
#else
                values[m][i][0] = *(const u32*)pair;
#endif
            }
    }
    DEVICE_MEMBER float get(int m, int row, int sub, const Kept& kept) const {
#if SCALES == F32_SCALES
        return __uint_as_float(values[m][sub][row]);
#else
        return half_to_float(values[m][sub][0] >> (row * 16));
#endif
    }
#endif
#if !IS_FOLDED
    DEVICE_MEMBER RowScales of(int sub, const Kept& kept) const {
#if HAS_MIN
        return {{get(0, 0, sub, kept), get(0, 1, sub, kept)}, {get(1, 0, sub, kept), get(1, 1, sub, kept)}};
#else
        return {{get(0, 0, sub, kept), get(0, 1, sub, kept)}};
#endif
    }
#endif
};
