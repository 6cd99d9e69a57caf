// Packed weights by units, as crates/cuda/src/matmul/layout.rs lays them: where they are in a chunk, and codes in bytes.

#ifdef CHUNK

#define SUBS_PER_UNIT (32 / SUB)
#define SUBS (UNITS * SUBS_PER_UNIT)
#define F16_SCALES 0
#define F32_SCALES 1
#define SUPER_SCALES 2
#define PLANE_BYTES(bits) (UNITS * (bits) * 64)
#define SCALE_PART (SCALES == SUPER_SCALES ? 32 + 16 * SUBS : 16 * SUBS * (SCALES == F32_SCALES ? 4 : 2))
#define CHUNK_FEATURES (UNITS * 32)

static_assert(CHUNK == PLANE_BYTES(LOW) + PLANE_BYTES(HIGH) + SCALE_PART * (1 + HAS_MIN), "the packed layout and the kernel disagree");

// This lane's codes of a unit, in a plane of BITS a code.
template <int BITS> DEVICE const u8* codes_at(const u8* plane, u32 unit, u32 lane) {
    constexpr u32 lane_bytes = UNITS * BITS * 2;
    u32 at = unit * BITS * 2;
    return plane + (lane_bytes >= 16 ? at / 16 * 512 + lane * 16 + at % 16 : lane * lane_bytes + at);
}

// Codes of a unit as they lie.
struct Raw {
    u32 low[LOW / 2];
    u32 high;
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
        if constexpr (HIGH == 1) high = *(const u16*)codes_at<1>(chunk + PLANE_BYTES(LOW), unit, lane);
    }
    // Four codes in bytes: half i / 2, row g + 8 (i % 2).
    DEVICE_MEMBER u32 bytes(int i) const {
        u32 codes;
        if constexpr (LOW == 8) codes = low[i];
        else if constexpr (LOW == 4) codes = (low[i / 2] >> (i % 2 * 4)) & 0x0f0f0f0fu;
        else codes = (low[0] >> (i * 2)) & 0x03030303u;
        if constexpr (HIGH == 2) codes |= ((high >> (i * 2)) & 0x03030303u) << LOW;
        if constexpr (HIGH == 1) codes |= ((((high >> (i * 4)) & 15u) * 0x00204081u) & 0x01010101u) << LOW;
        return codes;
    }
};

#endif
