// Keys and values of a step's rows into their pages; crates/ops/src/kv.rs, `round`. One warp a row and head: blocks of 32 features.

// Number `d` of a token. Where there are scales, all lanes of a warp come, with a block between them.
DEVICE void keep(u8* head, u32 slot, u32 d, float value) {
#if FORMAT == 0
    if (d < HEAD_DIM) *(float*)(head + place_of_number(slot, d)) = value;
#elif FORMAT == 1
    if (d < HEAD_DIM) *(u16*)(head + place_of_number(slot, d)) = float_to_half(value);
#else
    const CodeBlock block = quantized(value);
    if (d < HEAD_DIM) head[place_of_number(slot, d)] = (u8)block.code;
    if (d % 32 == 0) *(float*)(head + place_of_scale(slot, d)) = half_to_float(float_to_half(block.scale));
#endif
}

// Keys are kept as they come out of `Heads`, and queries of the same rows may go the same way in blocks behind those of keys, where the
// queue has joined all that (crates/cuda/src/queue/heads.rs). `turns` says which turn: 1 keys, 2 queries.
KERNEL store(const float* keys, const float* values, u8* key_pages, u8* value_pages, const u32* rows, const u32* lists, u32 heads,
             u32 ring, float* turned_keys, const float* key_weight, float key_epsilon, const float* angles, u32 first_feature,
             u32 pairs, u32 way, u32 turns, const float* queries, float* turned_queries, const float* query_weight, float query_epsilon,
             u32 query_heads) {
    __shared__ float shared[HEAD_DIM];
    const u32 row = blockIdx.y;
    const bool is_key = blockIdx.x < heads;
    const u32 head = is_key ? blockIdx.x : blockIdx.x - heads;
    if (!(turns & (is_key ? 1 : 2))) angles = 0;
    Heads all = {keys, turned_keys, key_weight, key_epsilon, angles, heads, HEAD_DIM, first_feature, pairs, way};
    if (!is_key) all = {queries, turned_queries, query_weight, query_epsilon, angles, query_heads, HEAD_DIM, first_feature, pairs, way};
    const HeldNumbers weights = all.begin();
    after_earlier_work();
    const Heads::Brought brought = all.bring(row, head);
    if (!is_key) return all.compute(shared, weights, brought, row, head);
    // All that is loaded is on its way before a place is looked up.
    const Step step = {rows, lists};
    const float* value = values + ((u64)row * heads + head) * HEAD_DIM;
    float held[BLOCKS];
#pragma unroll
    for (u32 b = 0; b < BLOCKS; b++) held[b] = b * 32 + threadIdx.x < HEAD_DIM ? value[b * 32 + threadIdx.x] : 0.0f;
    const u32 place = step.place(row, step.position(row)), slot = place % PAGE;
    const u64 at = ((u64)step.page(row, place, ring) * heads + head) * HEAD_BYTES;
    all.compute(shared, weights, brought, row, head);
#pragma unroll
    for (u32 b = 0; b < BLOCKS; b++) {
        const u32 d = b * 32 + threadIdx.x;
        keep(key_pages + at, slot, d, d < HEAD_DIM ? shared[d] : 0.0f);
        keep(value_pages + at, slot, d, held[b]);
    }
}
