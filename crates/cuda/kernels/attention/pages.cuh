// Where keys and values lie: pages of 64 tokens, each [heads] of a row of numbers for each token, keys as values.
//
// FORMAT 0: f32; 1: f16; 2: bytes with an f32 scale for each 32 of them. Heads of whole 64 numbers lie in slabs, as the operands of
// `wgmma` do, so that a slab is one run of bytes: [head_dim / 64][64 tokens][64 numbers], of f16 with the 16-byte parts of a token's run
// swizzled by token, of bytes with scales [64 tokens][2] behind each slab. Else [64 tokens][head_dim], scales [64 tokens][blocks] behind
// all.

#define NUMBERS (PAGE * HEAD_DIM)
#define BLOCKS ((HEAD_DIM + 31) / 32)
#define HAS_SLABS (HEAD_DIM % 64 == 0 && FORMAT != 0)
#define SLABS (HEAD_DIM / 64)
#if FORMAT == 0
#define HEAD_BYTES (NUMBERS * 4)
#elif FORMAT == 1
#define HEAD_BYTES (NUMBERS * 2)
#define SLAB_BYTES (PAGE * 64 * 2)
#else
#define HEAD_BYTES (NUMBERS + PAGE * BLOCKS * 4)
#define SLAB_CODES (PAGE * 64)
#define SLAB_BYTES (SLAB_CODES + PAGE * 2 * 4)
#endif
static_assert(HEAD_BYTES == HEAD_PAGE_BYTES, "the cache and the kernel disagree");

// The byte of a head's page where number `d` of a token begins.
DEVICE u32 place_of_number(u32 slot, u32 d) {
#if FORMAT == 0
    return (slot * HEAD_DIM + d) * 4;
#elif FORMAT == 1
    if constexpr (HAS_SLABS) return d / 64 * SLAB_BYTES + slot * 128 + ((d % 64 / 8) ^ (slot % 8)) * 16 + d % 8 * 2;
    return (slot * HEAD_DIM + d) * 2;
#else
    if constexpr (HAS_SLABS) return d / 64 * SLAB_BYTES + slot * 64 + d % 64;
    return slot * HEAD_DIM + d;
#endif
}
#if FORMAT == 2
// The same of its scale.
DEVICE u32 place_of_scale(u32 slot, u32 d) {
    if constexpr (HAS_SLABS) return d / 64 * SLAB_BYTES + SLAB_CODES + (slot * 2 + d % 64 / 32) * 4;
    return NUMBERS + (slot * BLOCKS + d / 32) * 4;
}
#endif

DEVICE float kept(const u8* head, u32 slot, u32 d) {
    const u8* at = head + place_of_number(slot, d);
#if FORMAT == 0
    return *(const float*)at;
#elif FORMAT == 1
    return half_to_float(*(const u16*)at);
#else
    return *(const float*)(head + place_of_scale(slot, d)) * (float)*(const signed char*)at;
#endif
}
