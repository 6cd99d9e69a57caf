// Where keys and values lie: pages of 64 tokens, each [heads] of
//   keys    [head_dim][64] numbers, so that neighbouring threads take neighbouring tokens
//   values  [64][head_dim] numbers, so that they take neighbouring features
// with FORMAT 0: f32; 1: f16; 2: bytes, followed by f32 scales: keys [blocks][64], values [64][blocks], a block being 32 features.

#define NUMBERS (PAGE * HEAD_DIM)
#define BLOCKS ((HEAD_DIM + 31) / 32)
#if FORMAT == 0
#define HEAD_BYTES (NUMBERS * 4)
#elif FORMAT == 1
#define HEAD_BYTES (NUMBERS * 2)
#else
#define HEAD_BYTES (NUMBERS + PAGE * BLOCKS * 4)
#endif
static_assert(HEAD_BYTES == HEAD_PAGE_BYTES, "the cache and the kernel disagree");

// Number `at` of a head's page; `scale` is the index of its scale.
DEVICE float kept(const u8* head, u32 at, u32 scale) {
#if FORMAT == 0
    return ((const float*)head)[at];
#elif FORMAT == 1
    return half_to_float(((const u16*)head)[at]);
#else
    return ((const float*)(head + NUMBERS))[scale] * (float)(signed char)head[at];
#endif
}
DEVICE float kept_key(const u8* head, u32 d, u32 slot) { return kept(head, d * PAGE + slot, d / 32 * PAGE + slot); }
DEVICE float kept_value(const u8* head, u32 d, u32 slot) { return kept(head, slot * HEAD_DIM + d, slot * BLOCKS + d / 32); }
