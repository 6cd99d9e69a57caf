// Attention, the last part: the spans of each row whose tokens are in more than one.
//
// A block is a row's query head and 64 of its numbers. Warp w adds spans w, w + 8, … in order; the eight sums are added in order. Where the
// queue has joined that, codes of the result come last, also of rows of one span (quantize.cu); heads are whole blocks then.

#define WARPS 8
#define FEATURES 64
#define SEVERAL 8

// Numbers `feature` and the next; heads may be odd.
DEVICE float2 pair_at(const float* at, u32 feature) {
    if constexpr (HEAD_DIM % FEATURES == 0) return *(const float2*)at;
    return make_float2(feature < HEAD_DIM ? at[0] : 0.0f, feature + 1 < HEAD_DIM ? at[1] : 0.0f);
}

KERNEL __launch_bounds__(WARPS * 32) merge(const float* parts, const float2* stats, const float* sinks, float* y, const u32* rows,
                                           const u32* lists, u32 first, u32 heads, u32 window, u32 stride, u8* codes,
                                           uint2* scales, float4* minima) {
    let_next_start();
    __shared__ float2 sums[WARPS][FEATURES / 2];
    __shared__ float totals[WARPS];
    __shared__ __align__(8) float result[FEATURES];
    const Step step = {rows, lists, true};
    const u32 row = blockIdx.x / heads, head = blockIdx.x % heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 count = Cut(window).count(seen_by(step, first + row, window));
    after_earlier_work();
    const CodesOut coded = {codes, scales, minima};
    auto code = [&](float v) {
        const u64 block = (head * HEAD_DIM + blockIdx.y * FEATURES) / 32 + warp;
        put_codes(quantized(v), lane, codes_place(first + row, block, heads * HEAD_DIM / 32), coded);
    };
    if (count == 1) {
        if (codes && warp < FEATURES / 32)
            code(y[((u64)(first + row) * heads + head) * HEAD_DIM + blockIdx.y * FEATURES + warp * 32 + lane]);
        return;
    }
    const u64 at = (u64)blockIdx.x * stride;
    const u32 feature = blockIdx.y * FEATURES + lane * 2;
    const float* own = parts + at * HEAD_DIM + feature;
    // Several spans are on their way at once, the first before it is known which is the highest. What is known of the warp's spans a lane
    // has of one in 32.
    float2 values[SEVERAL];
    auto load = [&](u32 from) {
#pragma unroll
        for (u32 k = 0; k < SEVERAL; k++) {
            const u32 i = from + k * WARPS;
            values[k] = make_float2(0.0f, 0.0f);
            if (i < count) values[k] = pair_at(own + (u64)i * HEAD_DIM, feature);
        }
    };
    auto stat_of = [&](u32 from) {
        const u32 i = from + lane * WARPS;
        return i < count ? stats[at + i] : make_float2(minus_infinity(), 0.0f);
    };
    float2 stat = stat_of(warp);
    load(warp);
    float highest = sinks ? sinks[head] * LOG2_E : minus_infinity();
#pragma unroll 1
    for (u32 from = 0; from < count; from += 4 * 32) {
        float all[4];
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const u32 i = from + k * 32 + lane;
            all[k] = i < count ? stats[at + i].x : minus_infinity();
        }
#pragma unroll
        for (u32 k = 0; k < 4; k++) highest = larger(highest, all[k]);
    }
#pragma unroll
    for (int width = 16; width > 0; width /= 2) highest = larger(highest, __shfl_xor_sync(0xffffffffu, highest, width));

    float2 sum = {0.0f, 0.0f};
    float total = 0.0f;
#pragma unroll 1
    for (u32 base = warp; base < count; base += 32 * WARPS) {
        if (base > warp) stat = stat_of(base);
        stat.x = factor_of(stat.x, highest);
#pragma unroll 1
        for (u32 n = 0; n < 32 && base + n * WARPS < count; n += SEVERAL) {
#pragma unroll
            for (u32 k = 0; k < SEVERAL; k++) {
                const float factor = __shfl_sync(0xffffffffu, stat.x, n + k), weight = __shfl_sync(0xffffffffu, stat.y, n + k);
                if (base + (n + k) * WARPS >= count) continue;
                total = fma(weight, factor, total);
                sum.x = fma(values[k].x, factor, sum.x);
                sum.y = fma(values[k].y, factor, sum.y);
            }
            load(base + (n + SEVERAL) * WARPS);
        }
    }
    sums[warp][lane] = sum;
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    if (warp == 0) {
        total = sinks ? exp2_near(sinks[head] * LOG2_E - highest + WEIGHT_BITS) : 0.0f;
        sum = {0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            sum.x = sum.x + sums[w][lane].x;
            sum.y = sum.y + sums[w][lane].y;
            total = total + totals[w];
        }
        float* out = y + ((u64)(first + row) * heads + head) * HEAD_DIM + feature;
        const float factor = total == 0.0f ? 0.0f : 1.0f / total;
        sum = {sum.x * factor, sum.y * factor};
        if (feature < HEAD_DIM) out[0] = sum.x;
        if (feature + 1 < HEAD_DIM) out[1] = sum.y;
        *(float2*)&result[lane * 2] = sum;
    }
    if (!codes) return;
    __syncthreads();
    if (warp < FEATURES / 32) code(result[warp * 32 + lane]);
}
