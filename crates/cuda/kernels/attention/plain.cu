// Attention in f32, for what the matrix units do not take: cells of f32, and heads of odd sizes. One warp is a row's query head and a span.

#define HELD ((HEAD_DIM + 31) / 32)

KERNEL __launch_bounds__(32) plain(const float* queries, const u8* key_pages, const u8* value_pages, float* parts, float2* stats,
                                   const float* sinks, float* y, const u32* rows, const u32* lists, u32 first, u32 heads,
                                   u32 kv_heads, u32 ring, u32 window, u32 stride, float scale, u32 has_cap, float cap) {
    after_earlier_work();
    __shared__ float weights[PAGE];
    const Step step = {rows, lists};
    const u32 row = first + blockIdx.x / heads, head = blockIdx.x % heads, lane = threadIdx.x;
    const Seen seen = seen_by(step, row, window);
    const Cut cut(window);
    if (blockIdx.y >= cut.count(seen)) return;
    const u32 span = cut.first(seen) + blockIdx.y, kv_head = head / (heads / kv_heads);
    const u32 begin = max(seen.begin, cut.begin_of(span)), end = min(seen.end, cut.begin_of(span + 1));
    const float* query = queries + ((u64)row * heads + head) * HEAD_DIM;
    auto head_of = [&](const u8* pages, u32 position, u32& slot) {
        const u32 place = step.place(row, position);
        slot = place % PAGE;
        return pages + ((u64)step.page(row, place, ring) * kv_heads + kv_head) * HEAD_BYTES;
    };

    float sums[HELD] = {}, highest = minus_infinity(), total = 0.0f;
    for (u32 page = begin / PAGE; page * PAGE < end; page++) {
        float score[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 position = page * PAGE + lane + 32 * i;
            score[i] = minus_infinity();
            if (position < begin || position >= end) continue;
            u32 slot;
            const u8* keys = head_of(key_pages, position, slot);
            float sum = 0.0f;
            for (u32 d = 0; d < HEAD_DIM; d++) sum = fma(query[d], kept(keys, slot, d), sum);
            sum = sum * scale;
            score[i] = (has_cap ? canonical_soft_cap(sum, cap) : sum) * LOG2_E;
        }
        float now = larger(larger(highest, score[0]), score[1]);
#pragma unroll
        for (int width = 16; width > 0; width /= 2) now = larger(now, __shfl_xor_sync(0xffffffffu, now, width));
        const float factor = factor_of(highest, now), base = base_of(now);
        highest = now;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 2; i++) weights[lane + 32 * i] = score[i] = exp2_near(score[i] - base);
        __syncwarp();
        total = fma(total, factor, score[0] + score[1]);
#pragma unroll
        for (int i = 0; i < HELD; i++) sums[i] = sums[i] * factor;
        for (u32 position = max(begin, page * PAGE); position < min(end, page * PAGE + PAGE); position++) {
            u32 slot;
            const u8* values = head_of(value_pages, position, slot);
            const float weight = weights[position % PAGE];
#pragma unroll
            for (int i = 0; i < HELD; i++)
                if (lane + 32 * i < HEAD_DIM) sums[i] = fma(weight, kept(values, slot, lane + 32 * i), sums[i]);
        }
    }
#pragma unroll
    for (int width = 16; width > 0; width /= 2) total = total + __shfl_xor_sync(0xffffffffu, total, width);

    const Output out = {parts, stats, sinks, y, first, heads, stride};
    const bool is_whole = cut.count(seen) == 1;
    const u64 at = out.place(row, head, blockIdx.y);
    const float factor = is_whole ? out.factor(head, highest, total) : 1.0f;
    float* to = is_whole ? y + ((u64)row * heads + head) * HEAD_DIM : parts + at * HEAD_DIM;
    if (!is_whole && lane == 0) stats[at] = make_float2(highest, total);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (lane + 32 * i < HEAD_DIM) to[lane + 32 * i] = sums[i] * factor;
}
