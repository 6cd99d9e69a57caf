// Scores of prompt rows become weights: a warp has sixteen columns, a lane of each eight keys two neighbours, for columns lane / 4 and 8
// on.

// What a thread knows of its two columns, 8 apart.
struct Columns {
    u32 begins[2], ends[2];
    float factors[2], highest[2], totals[2];
};

// Scores of keys from `position` on become weights, relative to the highest so far; `keep` is the factor on what was relative to the one
// before.
template <bool IS_WHOLE>
DEVICE_MEMBER void weigh_stage(float (&scores)[KEYS / 2], Columns& own, float (&keep)[2], u32 position, float cap) {
    const u32 column = threadIdx.x % 4 * 2;
    float top[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        const int h = i / 2 % 2;
        if (CAPPED) scores[i] = capped(scores[i] * own.factors[h], cap);
        if (!IS_WHOLE) {
            const u32 key = position + i / 4 * 8 + column + i % 2;
            if (key < own.begins[h] || key >= own.ends[h]) scores[i] = minus_infinity();
        }
        top[h] = larger(top[h], scores[i]);
    }
    float factor[2], base[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = larger(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
        top[h] = larger(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
        // Factors are positive; with a cap scores have theirs.
        factor[h] = CAPPED ? 1.0f : own.factors[h];
        top[h] = larger(own.highest[h], top[h] * factor[h]);
        keep[h] = factor_of(own.highest[h], top[h]);
        own.highest[h] = top[h];
        base[h] = -base_of(top[h]);
        own.totals[h] = own.totals[h] * keep[h];
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        const int h = i / 2 % 2;
        scores[i] = exp2_near(fma(scores[i], factor[h], base[h]));
        own.totals[h] = own.totals[h] + scores[i];
    }
}

DEVICE void weigh(float (&scores)[KEYS / 2], Columns& own, float (&keep)[2], u32 position, bool is_whole, float cap) {
    if (is_whole) weigh_stage<true>(scores, own, keep, position, cap);
    else weigh_stage<false>(scores, own, keep, position, cap);
}

// Writes what comes of a warp's sixteen columns of a tile whose rows were gone through whole; `column` is the first of the thread's two.
DEVICE_MEMBER void give(const Output& out, const Tile& tile, const Columns& own, u32 column, const float (&sums)[HEAD_DIM / 2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = own.totals[h];
        total = total + __shfl_xor_sync(0xffffffffu, total, 1);
        total = total + __shfl_xor_sync(0xffffffffu, total, 2);
        const u32 c = column + h * 8;
        if (c >= tile.columns) continue;
        const u32 row = tile.row_of(c), head = tile.head_of(c);
        const float factor = out.factor(head, own.highest[h], total);
        float* to = out.y + ((u64)row * out.heads + head) * HEAD_DIM + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 8; j++)
            *(float2*)(to + j * 8) = make_float2(sums[j * 4 + h * 2] * factor + 0.0f, sums[j * 4 + h * 2 + 1] * factor + 0.0f);
    }
}
