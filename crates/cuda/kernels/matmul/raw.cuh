// Packed weights by units, as crates/cuda/src/matmul/layout.rs lays them: where they are in a chunk, and codes in bytes.
//
// Codes of a few levels name bytes of a table, which stands in TABLE / 4 registers: eight, by two low bits and a high one, or sixteen, by
// four bits. They lie as the instruction that looks bytes up wants them: the four of an operand register in neighbouring nibbles.

#ifdef CHUNK

#define SUBS_PER_UNIT (32 / SUB)
#define SUBS (UNITS * SUBS_PER_UNIT)
#define F16_SCALES 0
#define F32_SCALES 1
#define SUPER_SCALES 2
#define FOLDED_SCALES 3
#define IS_FOLDED (SCALES == FOLDED_SCALES)
// Features of an exact sum, and how many of these a unit has.
#define SUM_SUB (IS_FOLDED ? 32 : SUB)
#define SUMS_PER_UNIT (32 / SUM_SUB)
#define PLANE_BYTES(bits) (UNITS * (bits) * 64)
#define SCALE_PART (SCALES == SUPER_SCALES ? 32 + 16 * SUBS : IS_FOLDED ? 32 + 8 * SUBS : 16 * SUBS * (SCALES == F32_SCALES ? 4 : 2))
#define CHUNK_FEATURES (UNITS * 32)

static_assert(CHUNK == PLANE_BYTES(LOW) + PLANE_BYTES(HIGH) + SCALE_PART * (1 + HAS_MIN), "the packed layout and the kernel disagree");

// This lane's codes of a unit, in a plane of BITS a code.
template <int BITS> DEVICE const u8* codes_at(const u8* plane, u32 unit, u32 lane) {
    constexpr u32 lane_bytes = UNITS * BITS * 2;
    u32 at = unit * BITS * 2;
    return plane + (lane_bytes >= 16 ? at / 16 * 512 + lane * 16 + at % 16 : lane * lane_bytes + at);
}

#if TABLE > 0
// Bytes of the table, which has levels, raised by the OFFSET that codes have elsewhere.
DEVICE constexpr u32 level_bytes(u32 levels) {
    u32 bytes = 0;
    for (int i = 0; i < 4; i++) bytes |= (((levels >> (8 * i)) + OFFSET) & 0xff) << (8 * i);
    return bytes;
}
#endif

// The high half of 2^15 as a float, under whose low half a byte is put; and the words of the table. Instructions that pick bytes take
// one constant at most, and what the assembler knows it would bring to a register anew for each: so a zero is added that it does not know.
#define FACTOR_BITS 0x47000000u

struct Kept {
    u32 factor_bits;
#if TABLE > 0
    u32 levels[TABLE / 4];
#endif
    DEVICE_MEMBER Kept(u32 zero) {
        factor_bits = FACTOR_BITS + zero;
#if TABLE > 0
        const u32 known[4] = {LEVELS_0, LEVELS_1, LEVELS_2, LEVELS_3};
#pragma unroll
        for (int i = 0; i < TABLE / 4; i++) levels[i] = known[i] + zero;
#endif
    }
};

// Codes of a unit as they lie.
struct Raw {
    u32 low[LOW / 2];
    u32 high;
#if TABLE == 8
    // The high bits of both halves where the look-up wants them, beside others; the fourth of each nibble is zero.
    u32 signs[2];
    // `word` holds those of a unit and of the odd one behind it.
    DEVICE_MEMBER void put_signs(u32 word, bool is_odd) {
        const u32 first = only_bits(0x55555555u, word), second = only_bits(0xaaaaaaaau, word);
        signs[0] = is_odd ? first : first << 2;
        signs[1] = is_odd ? second >> 1 : second << 1;
    }
#endif
    DEVICE_MEMBER void load(const u8* chunk, u32 unit, u32 lane) {
        const u8* at = codes_at<LOW>(chunk, unit, lane);
        if constexpr (LOW == 8) {
            uint4 v = *(const uint4*)at;
            low[0] = v.x; low[1] = v.y; low[2] = v.z; low[3] = v.w;
        } else if constexpr (LOW == 4) {
            uint2 v = *(const uint2*)at;
            low[0] = v.x; low[1] = v.y;
        } else {
            low[0] = *(const u32*)at;
        }
        if constexpr (HIGH == 2) high = *(const u32*)codes_at<2>(chunk + PLANE_BYTES(LOW), unit, lane);
#if TABLE == 8
        // The bits of two units share nibbles.
        const u32 word = *(const u32*)codes_at<1>(chunk + PLANE_BYTES(LOW), unit & ~1u, lane);
        high = word >> (unit % 2 * 2);
        put_signs(word, unit % 2);
#else
        if constexpr (HIGH == 1) high = *(const u16*)codes_at<1>(chunk + PLANE_BYTES(LOW), unit, lane);
#endif
    }
#if TABLE > 0
    // Four bytes of the table, whose words are given: half i / 2, row g + 8 (i % 2).
    DEVICE_MEMBER u32 looked_up(int i, const u32* levels) const {
#if TABLE == 8
        const u32 bits = i / 2 ? low[0] >> 2 : low[0], sign = (i / 2 ? high << 1 : high << 2) & 0x44444444u;
        return named_bytes(levels[0], levels[1], ((bits & 0x33333333u) | sign) >> (i % 2 * 16));
#else
        const u32 which = only_bits(0x77777777u, low[i / 2]), shift = i % 2 * 16;
        const u32 upper = select_bits(0x44444444u, low[i / 2] >> 1, 0x32103210u);
        const u32 lower_half = named_bytes(levels[0], levels[1], which >> shift);
        return named_bytes(lower_half, named_bytes(levels[2], levels[3], which >> shift), upper >> shift);
#endif
    }
    // The same of numbers as they are, where signs were put.
    DEVICE_MEMBER u32 level(int i, const Kept& kept) const {
#if TABLE == 8
        const u32 which = select_bits(0x33333333u, i / 2 ? low[0] >> 2 : low[0], signs[i / 2]);
        return named_bytes(kept.levels[0], kept.levels[1], which >> (i % 2 * 16));
#else
        return looked_up(i, kept.levels);
#endif
    }
#endif
    // Four codes in bytes: half i / 2, row g + 8 (i % 2).
    DEVICE_MEMBER u32 bytes(int i) const {
#if TABLE > 0
        const u32 levels[4] = {level_bytes(LEVELS_0), level_bytes(LEVELS_1), level_bytes(LEVELS_2), level_bytes(LEVELS_3)};
        return looked_up(i, levels);
#endif
        u32 codes;
        if constexpr (LOW == 8) codes = low[i];
        else if constexpr (LOW == 4) codes = (low[i / 2] >> (i % 2 * 4)) & 0x0f0f0f0fu;
        else codes = (low[0] >> (i * 2)) & 0x03030303u;
        if constexpr (HIGH == 2) codes |= ((high >> (i * 2)) & 0x03030303u) << LOW;
        if constexpr (HIGH == 1) codes |= ((((high >> (i * 4)) & 15u) * 0x00204081u) & 0x01010101u) << LOW;
        return codes;
    }
};

// Levels of a table are signed.
#if TABLE > 0
#define multiply_codes multiply_signed
#define multiply_half_codes multiply_half_signed
#else
#define multiply_codes multiply
#define multiply_half_codes multiply_half
#endif

#endif
