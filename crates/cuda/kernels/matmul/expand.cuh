// Packed weights to 16-bit operands of the tensor cores, in flight: prefill's arithmetic.
//
// A weight becomes an f16: its code exactly, times the f16 of its sub-block's scale, plus the f16 of its minimum; one rounding a step.
// Scales are multiplied by a power of two of the matrix first (`up`), so that its largest weight is near the largest f16, and small
// ones keep their digits.
//
// The first operand of a product of 16 rows by 16 features holds, for lane 4 g + t, rows g and g + 8 and the positions 2t, 2t + 1,
// 2t + 8 and 2t + 9 of the features. The packed codes of a lane are four neighbours, 4t .. 4t + 3: so position 2t + e + 8o stands for
// feature 4t + 2e + o, and activations are stored in that order (quantize/halves.cu): even features first, then odd ones.

struct Operands {
    // [half of the unit][row g, row g + 8, row g, row g + 8]: even features, then odd ones.
    u32 half[2][4];
};

#define ALL_OF(half) ((half) * 0x00010001u)

// The bits of an f16 that is a small integer.
template <int N> struct HalfOf {
    static constexpr int log2(int n) { return n < 2 ? 0 : 1 + log2(n / 2); }
    static constexpr u32 bits = N == 0 ? 0 : (u32)((15 + log2(N)) << 10 | ((N << (10 - log2(N))) & 0x3ff));
    static_assert(N >= 0 && N < 2048, "exact in ten bits");
};

#ifdef CHUNK

// Two codes, less the offset, from BITS bits at SHIFT of both halves of a word. 1024 + 2^SHIFT code is an f16; what is left of 1024 goes.
// An `and` and an `or` written out are two instructions, since one takes one constant alone; `select_bits` is one, and keeps the other
// constant in a register: where those are short, there are TWO.
template <int SHIFT, int BITS, bool TWO> DEVICE u32 field(u32 word) {
    constexpr u32 mask = ALL_OF(((1u << BITS) - 1) << SHIFT), one = ALL_OF(0x6400u);
    u32 biased = TWO ? (word & mask) | one : select_bits(mask, word, one);
    if constexpr (SHIFT == 0) return add_halves(biased, ALL_OF(0x8000u | HalfOf<1024 + OFFSET>::bits));
    else return fma_halves(biased, ALL_OF((15u - SHIFT) << 10), ALL_OF(0x8000u | HalfOf<(1024 >> SHIFT) + OFFSET>::bits));
}

// Exact codes of half I / 2, row g + 8 (I % 2): even features, then odd ones.
template <int I, bool TWO = false> DEVICE void exact_codes(const Raw& raw, u32& even, u32& odd) {
    if constexpr (HIGH == 0 && LOW < 8 && TABLE == 0) {
        constexpr int shift = LOW == 4 ? I % 2 * 4 : I * 2;
        u32 word = raw.low[LOW == 4 ? I / 2 : 0];
        even = field<shift, LOW, TWO>(word);
        odd = field<shift, LOW, TWO>(word >> 8);
    } else {
        u32 codes = raw.bytes(I), offset = ALL_OF(0x8000u | HalfOf<1024 + OFFSET>::bits);
        even = add_halves(__byte_perm(codes, 0x64646464u, 0x4240), offset);
        odd = add_halves(__byte_perm(codes, 0x64646464u, 0x4341), offset);
    }
}

// Two factors, in the low bytes of a pair (128 more than they are, unless they are folded), times the pair of units.
DEVICE u32 times_unit(u32 factors, u32 units) {
    u32 biased = select_bits(ALL_OF(0x00ffu), factors, ALL_OF(0x6400u));
    return multiply_halves(add_halves(biased, ALL_OF(0x8000u | HalfOf<IS_FOLDED ? 1024 : 1024 + 128>::bits)), units);
}

// Scales (or minima) of rows g and g + 8, as a pair, times `up`.
DEVICE u32 scale_pair(const u8* part, u32 g, u32 sub, float up, u32 up_pair) {
#if SCALES == F16_SCALES
    return multiply_halves(*(const u32*)(part + (g * SUBS + sub) * 4), up_pair);
#elif SCALES == F32_SCALES
    float2 v = *(const float2*)(part + (g * SUBS + sub) * 8);
    return pair_of_halves(v.x * up, v.y * up);
#else
    u32 unit = multiply_halves(*(const u32*)(part + g * 4), up_pair);
#if IS_FOLDED
    const u8* factors = part + 32 + g * SUBS + sub / 8 * 4 + sub % 4;
    const u32 two = (u32)factors[0] | (u32)factors[SUBS / 2] << 16;
    return times_unit(two >> (sub / 4 % 2 * 4) & ALL_OF(0x000fu), unit);
#else
    const u8* factors = part + 32 + g * 2 * SUBS + sub;
    return times_unit((u32)factors[0] | (u32)factors[SUBS] << 16, unit);
#endif
#endif
}

template <int I> DEVICE void expand_row(const Raw& raw, u32 scales, u32 minima, Operands& out) {
    constexpr int half = I / 2, row = I % 2;
    u32 even, odd, scale = both_halves<row>(scales);
    exact_codes<I>(raw, even, odd);
#if HAS_MIN
    u32 minimum = both_halves<row>(minima);
    out.half[half][row] = fma_halves(even, scale, minimum);
    out.half[half][2 + row] = fma_halves(odd, scale, minimum);
#else
    out.half[half][row] = multiply_halves(even, scale);
    out.half[half][2 + row] = multiply_halves(odd, scale);
#endif
}

// A unit of a lane's two rows: loaded, then expanded, with other work in between.
struct Unit {
    Raw raw;
    u32 scales[SUBS_PER_UNIT];
#if HAS_MIN
    u32 minima[SUBS_PER_UNIT];
#endif
    // `chunks` are those of 16 rows, `unit` counts from the first of them.
    DEVICE_MEMBER void load(const u8* chunks, u32 unit, u32 lane, float up, u32 up_pair) {
        const u8* chunk = chunks + unit / UNITS * CHUNK;
        const u8* part = chunk + PLANE_BYTES(LOW) + PLANE_BYTES(HIGH);
        raw.load(chunk, unit % UNITS, lane);
#pragma unroll
        for (int s = 0; s < SUBS_PER_UNIT; s++) {
            u32 sub = unit % UNITS * SUBS_PER_UNIT + s;
            scales[s] = scale_pair(part, lane / 4, sub, up, up_pair);
#if HAS_MIN
            minima[s] = scale_pair(part + SCALE_PART, lane / 4, sub, up, up_pair);
#endif
        }
    }
    // As `load`, of `count` chunks; what lies behind them is zeros.
    DEVICE_MEMBER void load_within(const u8* chunks, u32 unit, u32 lane, float up, u32 up_pair, u32 count) {
        if (unit / UNITS < count) return load(chunks, unit, lane, up, up_pair);
        *this = {};
    }
    DEVICE_MEMBER void expand(Operands& out, float) const {
        constexpr int second = SUBS_PER_UNIT - 1;
#if HAS_MIN
        u32 least[2] = {minima[0], minima[second]};
#else
        u32 least[2] = {0, 0};
#endif
        expand_row<0>(raw, scales[0], least[0], out);
        expand_row<1>(raw, scales[0], least[0], out);
        expand_row<2>(raw, scales[second], least[1], out);
        expand_row<3>(raw, scales[second], least[1], out);
    }
};

// The two units of block `block` of 64 features. Where a chunk holds both, their parts are neighbours and are loaded together.
DEVICE void load_block(Unit (&units)[2], const u8* chunks, u32 block, u32 lane, float up, u32 up_pair) {
#if UNITS == 8
    const u8* chunk = chunks + block / 4 * CHUNK;
    const u32 unit = block % 4 * 2, g = lane / 4;
    const u8* at = codes_at<LOW>(chunk, unit, lane);
    static_assert(LOW == 4 || LOW == 2, "chunks of 256 features have codes of two or four low bits");
#if LOW == 4
    uint4 low = *(const uint4*)at;
    units[0].raw.low[0] = low.x; units[0].raw.low[1] = low.y; units[1].raw.low[0] = low.z; units[1].raw.low[1] = low.w;
#else
    uint2 low = *(const uint2*)at;
    units[0].raw.low[0] = low.x; units[1].raw.low[0] = low.y;
#endif
#if HIGH == 2
    uint2 high = *(const uint2*)codes_at<2>(chunk + PLANE_BYTES(LOW), unit, lane);
    units[0].raw.high = high.x; units[1].raw.high = high.y;
#elif HIGH == 1
    u32 high = *(const u32*)codes_at<1>(chunk + PLANE_BYTES(LOW), unit, lane);
    units[0].raw.high = TABLE == 8 ? high : high & 0xffffu;
    units[1].raw.high = TABLE == 8 ? high >> 2 : high >> 16;
#endif
    const u8* part = chunk + PLANE_BYTES(LOW) + PLANE_BYTES(HIGH);
    auto scales = [&](const u8* part, auto put) {
        const u8* factors = part + 32 + (IS_FOLDED ? g * SUBS + unit / 4 * 4 : g * 2 * SUBS + unit * SUBS_PER_UNIT);
        u32 own, other, of_units = multiply_halves(*(const u32*)(part + g * 4), up_pair);
        if constexpr (IS_FOLDED) {
            own = *(const u32*)factors >> (unit / 2 % 2 * 4) & 0x0f0f0f0fu;
            other = *(const u32*)(factors + SUBS / 2) >> (unit / 2 % 2 * 4) & 0x0f0f0f0fu;
        } else if constexpr (SUBS_PER_UNIT == 2) {
            own = *(const u32*)factors;
            other = *(const u32*)(factors + SUBS);
        } else {
            own = *(const u16*)factors;
            other = *(const u16*)(factors + SUBS);
        }
#pragma unroll
        for (int s = 0; s < 2 * SUBS_PER_UNIT; s++) put(s, times_unit(__byte_perm(own, other, s | (4 + s) << 8), of_units));
    };
    scales(part, [&](int s, u32 pair) { units[s / SUBS_PER_UNIT].scales[s % SUBS_PER_UNIT] = pair; });
#if HAS_MIN
    scales(part + SCALE_PART, [&](int s, u32 pair) { units[s / SUBS_PER_UNIT].minima[s % SUBS_PER_UNIT] = pair; });
#endif
#else
    units[0].load(chunks, 2 * block, lane, up, up_pair);
    units[1].load(chunks, 2 * block + 1, lane, up, up_pair);
#endif
}

#else // plain weights

#define RUN (16 / VALUE_BYTES)
#define CHUNK_FEATURES RUN
// 32 rows of a run.
#define CHUNK 512

// As above; `chunks` begin at the first of the lane's 16 rows among 32.
struct Unit {
    u32 words[2][2][VALUE_BYTES];
    DEVICE_MEMBER void load(const u8* chunks, u32 unit, u32 lane, float up, u32 up_pair) {
        load_within(chunks, unit, lane, up, up_pair, 0xffffffffu);
    }
    DEVICE_MEMBER void load_within(const u8* chunks, u32 unit, u32 lane, float, u32, u32 count) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 feature = unit * 32 + half * 16 + lane % 4 * 4;
            const u8* at = chunks + feature / RUN * CHUNK + feature % RUN * VALUE_BYTES + lane / 4 * 16;
#pragma unroll
            for (int row = 0; row < 2; row++) {
#pragma unroll
                for (int i = 0; i < VALUE_BYTES; i++)
                    words[half][row][i] = feature / RUN < count ? ((const u32*)(at + row * 128))[i] : 0;
            }
        }
    }
    DEVICE_MEMBER void expand(Operands& out, float up) const {
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int row = 0; row < 2; row++) {
                const u32(&w)[VALUE_BYTES] = words[half][row];
#if VALUE_BYTES == 4
                float v[4] = {__uint_as_float(w[0]), __uint_as_float(w[1]), __uint_as_float(w[2]), __uint_as_float(w[3])};
#elif IS_BF16
                float v[4] = {__uint_as_float(w[0] << 16), __uint_as_float(w[0] & 0xffff0000u), __uint_as_float(w[1] << 16),
                              __uint_as_float(w[1] & 0xffff0000u)};
#else
                float v[4];
                out.half[half][row] = __byte_perm(w[0], w[1], 0x5410);
                out.half[half][2 + row] = __byte_perm(w[0], w[1], 0x7632);
                continue;
#endif
                out.half[half][row] = pair_of_halves(v[0] * up, v[2] * up);
                out.half[half][2 + row] = pair_of_halves(v[1] * up, v[3] * up);
            }
    }
};

DEVICE void load_block(Unit (&units)[2], const u8* chunks, u32 block, u32 lane, float up, u32 up_pair) {
    units[0].load(chunks, 2 * block, lane, up, up_pair);
    units[1].load(chunks, 2 * block + 1, lane, up, up_pair);
}
#endif
