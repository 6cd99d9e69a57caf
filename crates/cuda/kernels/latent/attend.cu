// Attention over latent rows in three launches, in the canonical order; crates/ops/src/numerics.rs.

// Heads of a tile of scores, and numbers of a stage of it.
#define TILE_HEADS 16
#define TILE_DEPTH 32
// A thread of it has 2 heads and 4 keys.
static_assert(THREADS == TILE_HEADS / 2 * PAGE / 4, "a thread has eight scores");

// queries (rows, heads · WIDTH). scores [row of the chunk][head][stride pages][64]. One block a row, a page and 16 heads.
KERNEL __launch_bounds__(THREADS) latent_scores(const float* queries, const u8* raw, const u8* compressed, const u32* selected,
    float* scores, const u32* rows,
              const u32* lists, u32 first, u32 heads, u32 ring, u32 window, u32 ratio, u32 top_k, u32 stride, float scale) {
    // Rows of a stage are padded, so that writes of a warp spread over the banks.
    __shared__ __align__(16) float key[TILE_DEPTH][PAGE + 4];
    __shared__ __align__(16) float query[TILE_DEPTH][TILE_HEADS + 4];
    __shared__ const u8* places[PAGE];
    after_earlier_work();
    const u32 row = first + blockIdx.x, page = blockIdx.y, first_head = blockIdx.z * TILE_HEADS;
    const Sight sight = {Step{rows, lists}.all_of(row), raw, compressed, selected_of(selected, row, top_k), ring, window, ratio, top_k};
    if (page >= sight.pages()) return;
    const uint2 slots = sight.slots(page);
    const u32 t = threadIdx.x, lane = t % 32, warp = t / 32;
    // Slots that are not seen are never read: they stand for zeros.
    if (t < PAGE) places[t] = t >= slots.x && t < slots.y ? sight.key(page, t) : 0;
    __syncthreads();
    const u32 keys_at = t % 16 * 4, heads_at = t / 16 * 2;
    float sums[2][4] = {};
    for (u32 depth = 0; depth < WIDTH; depth += TILE_DEPTH) {
        const u32 d = depth + lane;
#pragma unroll 4
        for (u32 i = warp; i < PAGE; i += THREADS / 32)
            key[lane][i] = places[i] && d < WIDTH ? number_of(places[i], d) : 0.0f;
#pragma unroll
        for (u32 i = warp; i < TILE_HEADS; i += THREADS / 32) {
            const u32 head = first_head + i;
            query[lane][i] = head < heads && d < WIDTH ? queries[((u64)row * heads + head) * WIDTH + d] * scale : 0.0f;
        }
        __syncthreads();
        const u32 count = WIDTH - depth < TILE_DEPTH ? WIDTH - depth : TILE_DEPTH;
#pragma unroll 8
        for (u32 i = 0; i < count; i++) {
            const float4 k = *(const float4*)&key[i][keys_at];
            const float2 q = *(const float2*)&query[i][heads_at];
            sums[0][0] = fma(q.x, k.x, sums[0][0]);
            sums[0][1] = fma(q.x, k.y, sums[0][1]);
            sums[0][2] = fma(q.x, k.z, sums[0][2]);
            sums[0][3] = fma(q.x, k.w, sums[0][3]);
            sums[1][0] = fma(q.y, k.x, sums[1][0]);
            sums[1][1] = fma(q.y, k.y, sums[1][1]);
            sums[1][2] = fma(q.y, k.z, sums[1][2]);
            sums[1][3] = fma(q.y, k.w, sums[1][3]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const u32 head = first_head + heads_at + h;
        if (head >= heads) continue;
        float* to = scores + (((u64)blockIdx.x * heads + head) * stride + page) * PAGE + keys_at;
        *(float4*)to = make_float4(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    }
}

DEVICE float larger(float a, float b) { return b > a ? b : a; } // NaN never becomes it

// Scores become weights, in place; factors [row][head][stride] on the sums of earlier pages, totals [row][head]. One warp a row and
// head.
KERNEL __launch_bounds__(THREADS) latent_weights(float* scores, float* factors, float* totals, const float* sinks,
    const u32* selected, const u32* rows,
               const u32* lists, u32 first, u32 count, u32 heads, u32 window, u32 ratio, u32 top_k, u32 stride) {
    after_earlier_work();
    const u32 lane = threadIdx.x % 32, at = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (at >= count * heads) return;
    const u32 row = first + at / heads;
    const Sight sight = {Step{rows, lists}.of(row), 0, 0, selected_of(selected, row, top_k), 0, window, ratio, top_k};
    const u32 pages = sight.pages();
    float highest = sinks[at % heads], total = 1.0f;
    for (u32 page = 0; page < pages; page++) {
        const uint2 slots = sight.slots(page);
        float* score = scores + ((u64)at * stride + page) * PAGE;
        const bool has_a = lane >= slots.x && lane < slots.y, has_b = lane + 32 >= slots.x && lane + 32 < slots.y;
        float a = score[lane], b = score[lane + 32];
        float now = highest;
        if (has_a) now = larger(now, a);
        if (has_b) now = larger(now, b);
#pragma unroll
        for (int width = 16; width > 0; width /= 2) now = larger(now, __shfl_xor_sync(0xffffffffu, now, width));
        a = has_a ? canonical_exp(a - now) : 0.0f;
        b = has_b ? canonical_exp(b - now) : 0.0f;
        score[lane] = a;
        score[lane + 32] = b;
        // Slot t is in lane t mod 16.
        const float sum = ((a + __shfl_down_sync(0xffffffffu, a, 16)) + b) + __shfl_down_sync(0xffffffffu, b, 16);
        const float of_page = __shfl_sync(0xffffffffu, add_lanes(sum), 0);
        const float factor = canonical_exp(highest - now);
        total = fma(total, factor, of_page);
        highest = now;
        if (lane == 0) factors[(u64)at * stride + page] = factor;
    }
    if (lane == 0) totals[at] = total;
}

// Heads of a block of values, whose threads each have a feature of them all.
#define VALUES_HEADS 8

// y (rows, heads · WIDTH): weighted sums of the rows.
KERNEL __launch_bounds__(THREADS) latent_values(const u8* raw, const u8* compressed, const u32* selected, const float* scores,
    const float* factors,
              const float* totals, float* y, const u32* rows, const u32* lists, u32 first, u32 heads, u32 ring, u32 window, u32 ratio,
              u32 top_k, u32 stride) {
    __shared__ __align__(16) float weights[PAGE][VALUES_HEADS];
    __shared__ const u8* places[PAGE];
    after_earlier_work();
    const u32 row = first + blockIdx.x, first_head = blockIdx.y * VALUES_HEADS, t = threadIdx.x;
    const Sight sight = {Step{rows, lists}.all_of(row), raw, compressed, selected_of(selected, row, top_k), ring, window, ratio, top_k};
    const u32 count = heads - first_head < VALUES_HEADS ? heads - first_head : VALUES_HEADS;
    const u32 own = blockIdx.z * THREADS + t, d = own < WIDTH ? own : WIDTH - 1, pages = sight.pages();
    const u64 at = (u64)blockIdx.x * heads + first_head;
    float sums[VALUES_HEADS] = {};
    for (u32 page = 0; page < pages; page++) {
        const uint2 slots = sight.slots(page);
        __syncthreads();
        for (u32 i = t; i < PAGE; i += THREADS) places[i] = i >= slots.x && i < slots.y ? sight.key(page, i) : 0;
        for (u32 i = t; i < PAGE * VALUES_HEADS; i += THREADS) {
            const u32 slot = i % PAGE, head = i / PAGE;
            weights[slot][head] = head < count ? scores[((at + head) * stride + page) * PAGE + slot] : 0.0f;
        }
#pragma unroll
        for (int h = 0; h < VALUES_HEADS; h++) sums[h] = h < count ? sums[h] * factors[(at + h) * stride + page] : 0.0f;
        __syncthreads();
#pragma unroll 8
        for (u32 slot = slots.x; slot < slots.y; slot++) {
            const float value = number_of(places[slot], d);
            const float4 low = *(const float4*)&weights[slot][0], high = *(const float4*)&weights[slot][4];
            sums[0] = fma(low.x, value, sums[0]);
            sums[1] = fma(low.y, value, sums[1]);
            sums[2] = fma(low.z, value, sums[2]);
            sums[3] = fma(low.w, value, sums[3]);
            sums[4] = fma(high.x, value, sums[4]);
            sums[5] = fma(high.y, value, sums[5]);
            sums[6] = fma(high.z, value, sums[6]);
            sums[7] = fma(high.w, value, sums[7]);
        }
    }
    if (own >= WIDTH) return;
#pragma unroll
    for (int h = 0; h < VALUES_HEADS; h++) {
        if (h >= count) break;
        const float total = totals[at + h];
        y[((u64)row * heads + first_head + h) * WIDTH + d] = total == 0.0f ? 0.0f : sums[h] / total;
    }
}
