// Attention, the second of three: scores become weights, relative to the highest score up to the end of their page; each page's sum of
// weights, and the factor on the sums of earlier pages. numerics.rs, "Attention".
//
// One block is PAGES pages of a row and a query head, one warp a page. All that came before a page is one number, its running maximum.

#define WARPS (THREADS / 32)
#define PAGES WARPS

DEVICE float larger(float a, float b) { return b > a ? b : a; } // NaN never becomes it

DEVICE float largest_of_warp(float value) {
#pragma unroll
    for (int width = 16; width > 0; width /= 2) value = larger(value, __shfl_xor_sync(0xffffffffu, value, width));
    return value;
}

// weights: the scores of scores.cu, in place. pages [row][head][stride] of (factor, sum).
KERNEL __launch_bounds__(THREADS) weights(float* weights, const float* highest, float2* pages, const float* sinks, const u32* rows,
                                          const u32* lists, u32 first, u32 heads, u32 window, u32 stride) {
    begin_in_turn();
    __shared__ float parts[WARPS];
    const Step step = {rows, lists};
    const u32 row = blockIdx.x / heads, head = blockIdx.x % heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Seen seen = seen_by(step, first + row, window);
    const u32 count = seen.pages(), start = blockIdx.y * PAGES;
    if (start >= count) return;
    const u64 at = (u64)blockIdx.x * stride;
    float before = sinks ? sinks[head] : __uint_as_float(0xff800000u);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < start; i += THREADS) before = larger(before, highest[at + i]);
    before = largest_of_warp(before);
    if (lane == 0) parts[warp] = before;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARPS; i++) before = larger(before, parts[i]);
    const u32 index = start + warp;
    if (index >= count) return;
    // Of the block's own pages, those up to this one.
    const float mine = lane <= warp ? highest[at + start + lane] : __uint_as_float(0xff800000u);
    const float old = largest_of_warp(lane < warp ? larger(before, mine) : before);
    const float now = larger(old, __shfl_sync(0xffffffffu, mine, warp));
    const u32 page = seen.first_page() + index, from = seen.from(page), to = seen.to(page);
    float* score = weights + (at + index) * PAGE;
    const float a = lane >= from && lane < to ? canonical_exp(score[lane] - now) : 0.0f;
    const float b = lane + 32 >= from && lane + 32 < to ? canonical_exp(score[lane + 32] - now) : 0.0f;
    score[lane] = a;
    score[lane + 32] = b;
    // Slot t is in lane t mod 16.
    const float sum = ((a + __shfl_down_sync(0xffffffffu, a, 16)) + b) + __shfl_down_sync(0xffffffffu, b, 16);
    const float total = add_lanes(sum);
    const float factor = index > 0 || sinks ? canonical_exp(old - now) : 0.0f;
    if (lane == 0) pages[at + index] = make_float2(factor, total);
}
