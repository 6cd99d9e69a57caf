// Keys and values of a step's rows into their pages; crates/ops/src/kv.rs, `round`. One warp a row and head: blocks of 32 features.

// Number `d` of a token. Where there are scales, all lanes of a warp come, with a block between them.
DEVICE void keep(u8* head, u32 slot, u32 d, float value) {
#if FORMAT == 0
    if (d < HEAD_DIM) *(float*)(head + place_of_number(slot, d)) = value;
#elif FORMAT == 1
    if (d < HEAD_DIM) *(u16*)(head + place_of_number(slot, d)) = float_to_half(value);
#else
    u32 largest = __float_as_uint(value) & 0x7fffffffu;
#pragma unroll
    for (int width = 16; width > 0; width /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, width));
    float amax = __uint_as_float(largest), scale = amax / 127.0f;
    int code = 0;
    if (largest >= 0x7f800000u) {
        scale = not_a_number();
    } else if (amax > 0.0f) {
        float inverse = 127.0f / amax;
        if (inverse < __uint_as_float(0x7f800000u)) code = __float2int_rn(value * inverse);
    }
    if (d < HEAD_DIM) head[place_of_number(slot, d)] = (u8)code;
    if (d % 32 == 0) *(float*)(head + place_of_scale(slot, d)) = half_to_float(float_to_half(scale));
#endif
}

// Keys are kept as they come out of `Heads`, and queries of the same rows may go the same way in blocks behind those of keys, where the
// queue has joined all that (crates/cuda/src/queue/heads.rs). `turns` says which turn: 1 keys, 2 queries.
KERNEL store(const float* keys, const float* values, u8* key_pages, u8* value_pages, const u32* rows, const u32* lists, u32 heads,
             u32 ring, float* turned_keys, const float* key_weight, float key_epsilon, const float* angles, u32 first_feature,
             u32 pairs, u32 way, u32 turns, const float* queries, float* turned_queries, const float* query_weight, float query_epsilon,
             u32 query_heads) {
    __shared__ float shared[HEAD_DIM];
    begin_in_turn();
    const u32 head = blockIdx.x, row = blockIdx.y;
    if (head >= heads) {
        const Heads all = {queries, turned_queries, query_weight, query_epsilon, turns & 2 ? angles : 0, query_heads, HEAD_DIM,
                           first_feature, pairs, way};
        return all.compute(shared, row, head - heads);
    }
    const Heads all = {keys, turned_keys, key_weight, key_epsilon, turns & 1 ? angles : 0, heads, HEAD_DIM, first_feature, pairs, way};
    all.compute(shared, row, head);
    Step step = {rows, lists};
    u32 place = step.place(row, step.position(row));
    u64 at = ((u64)step.page(row, place, ring) * heads + head) * HEAD_BYTES;
    u32 slot = place % PAGE;
    u64 in = ((u64)row * heads + head) * HEAD_DIM;
    for (u32 d = threadIdx.x; d < BLOCKS * 32; d += 32) {
        float key = d < HEAD_DIM ? shared[d] : 0.0f, value = d < HEAD_DIM ? values[in + d] : 0.0f;
        keep(key_pages + at, slot, d, key);
        keep(value_pages + at, slot, d, value);
    }
}
