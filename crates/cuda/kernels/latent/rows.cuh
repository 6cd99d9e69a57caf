// Where rows lie that are key and value at once, or inputs of others: pages of rows, each WIDTH numbers one after another, with
// FORMAT 0: f32; 1: f16; 2: bytes, and behind them a f32 scale for each 32; 3 and 4: packed, as E4M3 and as E2M1 (packed.cuh). A row
// takes ROW_BYTES, a multiple of 16, or of 4 where it is packed.

#define IS_PACKED (FORMAT >= 3)
#define ROW_BLOCKS ((WIDTH + 31) / 32)
#if FORMAT == 0
static_assert(ROW_BYTES >= WIDTH * 4 && ROW_BYTES % 16 == 0, "the cache and the kernel disagree");
#elif FORMAT == 1
static_assert(ROW_BYTES >= WIDTH * 2 && ROW_BYTES % 16 == 0, "the cache and the kernel disagree");
#elif FORMAT == 2
#define CODES_BYTES ((WIDTH + 15) / 16 * 16)
static_assert(ROW_BYTES >= CODES_BYTES + ROW_BLOCKS * 4 && ROW_BYTES % 16 == 0, "the cache and the kernel disagree");
#else
static_assert(CODES_AT == 2 * (WIDTH - CODED) && ROW_BYTES > SCALES_AT && ROW_BYTES % 4 == 0, "the cache and the kernel disagree");
#define PACKED_ROW Packed{FORMAT == 4, CODED, CODES_AT, SCALES_AT}
#endif

// Number `d` of a row.
DEVICE float number_of(const u8* row, u32 d) {
#if FORMAT == 0
    return ((const float*)row)[d];
#elif FORMAT == 1
    return half_to_float(((const u16*)row)[d]);
#elif FORMAT == 2
    return ((const float*)(row + CODES_BYTES))[d / 32] * (float)(signed char)row[d];
#else
    return packed_number(row, PACKED_ROW, d);
#endif
}

#if !IS_PACKED
// Writes number `d` of a row, or nothing where there is none. The threads of a warp write 32 that share a scale. kv.rs, `round`.
DEVICE void keep_number(u8* row, u32 d, float value) {
#if FORMAT == 0
    if (d < WIDTH) ((float*)row)[d] = value;
#elif FORMAT == 1
    if (d < WIDTH) ((u16*)row)[d] = float_to_half(value);
#else
    const CodeBlock block = quantized(d < WIDTH ? value : 0.0f);
    if (d < WIDTH) row[d] = (u8)block.code;
    if (d < WIDTH && d % 32 == 0) ((float*)(row + CODES_BYTES))[d / 32] = half_to_float(float_to_half(block.scale));
#endif
}
#endif

// Where the row of a token lies, of rows of `bytes`.
DEVICE u64 place_of_token(const RowOfStep& row, u32 position, u32 ring, u32 bytes) {
    const u32 place = row.place(position);
    return ((u64)row.page(place, ring) * PAGE + place % PAGE) * bytes;
}

// Where compressed row `index` lies: with the last of its tokens. kv.rs, `compressed_place`.
DEVICE u64 place_in_page(u32 page, u32 index, u32 ratio) {
    const u32 slots = ratio >= PAGE ? 1 : PAGE / ratio;
    return ((u64)page * slots + index % slots) * ROW_BYTES;
}
DEVICE u64 place_of_compressed(const RowOfStep& row, u32 index, u32 ratio) {
    return place_in_page(row.page(index * ratio + ratio - 1, 0), index, ratio);
}
// The same, ahead of the turn.
DEVICE u64 place_ahead(const RowOfStep& row, u32 index, u32 ratio) {
    return place_in_page(load_anew(row.listed(index * ratio + ratio - 1)), index, ratio);
}
