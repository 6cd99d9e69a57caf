// Attention over latent rows of f16 on Hopper. A block is a row of the step, COLUMNS of its heads, and a span of the pages that it goes
// through: its heads share all keys, so a row alone fills the matrix units.
//
// Two warpgroups. Each has the scores of all 64 keys of a page with half the columns: keys, rows of `wgmma`, by queries. Weights go
// through shared memory; then each has half the features of the weighed sums: the same keys, turned, by all columns' weights. A page is
// copied by all threads while the one before is multiplied. No bit depends on other rows: a span is cut from the row's own pages.

#define COLUMNS 64
#define OWN_COLUMNS 32
#define SLABS (WIDTH / 64)
#define OWN (SLABS / 2)
#define SLAB_BYTES (PAGE * 128)
#define WARPS (THREADS / 32)
#define QUERY_BYTES (SLABS * COLUMNS * 128)
#define WEIGHT_BYTES (COLUMNS * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define REST_BYTES ((2 * WARPS * OWN_COLUMNS + 3 * COLUMNS) * 4)

static_assert(FORMAT == 1 && WIDTH % 128 == 0 && ROW_BYTES == WIDTH * 2, "rows of f16, whole slabs for each warpgroup");
static_assert(THREADS == 256 && OWN * 32 <= 128, "two warpgroups, whose sums fit into registers");
static_assert(SHARED_BYTES == 1024 + QUERY_BYTES + WEIGHT_BYTES + 2 * STAGE_BYTES + REST_BYTES, "as the host reckons");

// Starts copies of a page's keys into a stage; slots that are not seen become zeros, for they may hold anything.
DEVICE void bring(u8* stage, const Sight& sight, u32 row, u32 page) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint2 slots = sight.slots(row, page);
    // A lane finds one of the warp's rows.
    u64 own = 0;
    if (lane < PAGE / WARPS) {
        const u32 slot = warp + lane * WARPS;
        if (slot >= slots.x && slot < slots.y) own = (u64)sight.key(row, page, slot);
    }
#pragma unroll
    for (u32 i = 0; i < PAGE / WARPS; i++) {
        const u8* from = (const u8*)__shfl_sync(0xffffffffu, own, i);
        const u32 slot = warp + i * WARPS;
        for (u32 part = lane; part < SLABS * 8; part += 32) {
            u8* to = stage + part / 8 * SLAB_BYTES + slot * 128 + ((part % 8) ^ (slot % 8)) * 16;
            if (from) copy_16(to, from + part * 16);
            else *(uint4*)to = make_uint4(0, 0, 0, 0);
        }
    }
    end_of_copies();
}

// queries, y (rows, heads · WIDTH). Of a row with several spans: parts [row of the chunk][head][stride][WIDTH], and stats
// [row][head][stride] of the highest score and the sum of weights relative to it.
KERNEL __launch_bounds__(THREADS, 1) latent_spans(const float* queries, const u8* raw, const u8* compressed, const u32* selected,
                                                  float* parts, float2* stats, const float* sinks, float* y, const u32* rows,
                                                  const u32* lists, u32 first, u32 heads, u32 ring, u32 window, u32 ratio, u32 top_k,
                                                  u32 stride, u32 span_pages, float scale) {
    begin_in_turn();
    DYNAMIC_SHARED(u8, dynamic);
    u8* const shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const weights = shared + QUERY_BYTES;
    u8* const stages = weights + WEIGHT_BYTES;
    float* const tops = (float*)(stages + 2 * STAGE_BYTES); // [WARPS][OWN_COLUMNS]
    float* const totals = tops + WARPS * OWN_COLUMNS;      // the same
    float* const keeps = totals + WARPS * OWN_COLUMNS;     // [COLUMNS], as are those behind
    float* const factors = keeps + COLUMNS;
    float* const highs = factors + COLUMNS;

    const Sight sight = {{rows, lists}, raw, compressed, selected, ring, window, ratio, top_k};
    const u32 row = first + blockIdx.x, span = blockIdx.y, first_head = blockIdx.z * COLUMNS, pages = sight.pages(row);
    const u32 count = heads - first_head < COLUMNS ? heads - first_head : COLUMNS;
    const u32 from = span * span_pages, to = from + span_pages < pages ? from + span_pages : pages;
    if (from >= pages) return;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4;
    bring(stages, sight, row, from);
    auto query_of = [&](u32 c) { return c < count ? queries + ((u64)row * heads + first_head + c) * WIDTH : 0; };
    keep_queries<WIDTH, COLUMNS, WARPS>(shared, query_of, [&](u32 c, float down) { factors[c] = down * scale * LOG2_E; });

    // Of each product a lane has rows `own` and `own + 8` of its warpgroup's 64, and of each eight columns `column` and the next.
    const u32 own = warp % 4 * 16 + lane / 4, column = lane % 4 * 2, first_column = group * OWN_COLUMNS;
    const u32 queries_at = shared_address(shared) + first_column * 128, weights_at = shared_address(weights);
    float sums[OWN][32] = {}, highest[8], total[8] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) highest[i] = minus_infinity();
#pragma unroll 1
    for (u32 page = from; page < to; page++) {
        u8* const stage = stages + (page - from) % 2 * STAGE_BYTES;
        const u32 stage_at = shared_address(stage);
        wait_for_copies<0>();
        writes_before_copies();
        __syncthreads();
        // The other stage is read to its end: all have come here.
        if (page + 1 < to) bring(stages + (page - from + 1) % 2 * STAGE_BYTES, sight, row, page + 1);

        float scores[16];
#pragma unroll
        for (int i = 0; i < 16; i++) scores[i] = 0.0f;
        products_begin();
#pragma unroll
        for (int s = 0; s < SLABS; s++) {
            const u64 keys = operand_of(stage_at + s * SLAB_BYTES), others = operand_of(queries_at + s * COLUMNS * 128);
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_shared<OWN_COLUMNS>(scores, keys + k * 2, others + k * 2);
        }
        products_commit();
        products_wait<0>();

        const uint2 slots = sight.slots(row, page);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 up = *(const float2*)&factors[first_column + j * 8 + column];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float top = minus_infinity();
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float& score = scores[j * 4 + h * 2 + e];
                    const u32 slot = own + h * 8;
                    score = slot >= slots.x && slot < slots.y ? score * (e ? up.y : up.x) : minus_infinity();
                    top = larger(top, score);
                }
#pragma unroll
                for (int width = 4; width < 32; width *= 2) top = larger(top, __shfl_xor_sync(0xffffffffu, top, width));
                if (lane < 4) tops[warp * OWN_COLUMNS + j * 8 + column + e] = top;
            }
        }
        wait_for_threads(2 + group, 128);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float weight[2][2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float& before = highest[j * 2 + e];
                float top = before;
#pragma unroll
                for (int w = 0; w < 4; w++) top = larger(top, tops[(group * 4 + w) * OWN_COLUMNS + j * 8 + column + e]);
                const float base = base_of(top), keep = factor_of(before, top);
                before = top;
                if (warp % 4 == 0 && lane < 4) keeps[first_column + j * 8 + column + e] = keep;
                weight[0][e] = exp2_near(scores[j * 4 + e] - base);
                weight[1][e] = exp2_near(scores[j * 4 + 2 + e] - base);
                total[j * 2 + e] = total[j * 2 + e] * keep;
            }
            u32 halves[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                halves[h] = pair_of_halves(weight[h][0], weight[h][1]);
                // Sums are of weights as they are multiplied.
                total[j * 2] = total[j * 2] + half_to_float(halves[h] & 0xffffu);
                total[j * 2 + 1] = total[j * 2 + 1] + half_to_float(halves[h] >> 16);
            }
            // Of lanes 0 to 15, each names where eight keys of a column go.
            const u32 at = first_column + j * 8 + lane % 8, part = warp % 4 * 2 + lane / 8 % 2;
            store_turned(weights_at + at * 128 + (part ^ (at % 8)) * 16, halves[0], halves[1]);
        }
        writes_before_copies();
        __syncthreads();

        float2 keep[8];
        bool is_moved = false;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            keep[j] = *(const float2*)&keeps[j * 8 + column];
            is_moved |= keep[j].x != 1.0f || keep[j].y != 1.0f;
        }
        if (__any_sync(0xffffffffu, is_moved)) {
#pragma unroll
            for (int o = 0; o < OWN; o++)
#pragma unroll
                for (int i = 0; i < 32; i++) sums[o][i] = sums[o][i] * (i % 2 ? keep[i / 4].y : keep[i / 4].x);
        }
        products_begin();
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            const u32 slab = group * OWN + o;
            const u64 values = turned_operand_of(stage_at + slab * SLAB_BYTES, SLAB_BYTES), others = operand_of(weights_at);
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_turned<COLUMNS>(sums[o], values + k * 128, others + k * 2);
        }
        products_commit();
        products_wait<0>();
    }

    // Each warp has the weights of its keys.
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int width = 4; width < 32; width *= 2) total[i] = total[i] + __shfl_xor_sync(0xffffffffu, total[i], width);
        if (lane < 4) totals[warp * OWN_COLUMNS + i / 2 * 8 + column + i % 2] = total[i];
        if (warp % 4 == 0 && lane < 4) highs[first_column + i / 2 * 8 + column + i % 2] = highest[i];
    }
    __syncthreads();
    const bool is_one = pages <= span_pages;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const u32 c = i / 2 * 8 + column + i % 2, head = first_head + c;
        if (c >= count) continue;
        float weight = 0.0f;
#pragma unroll
        for (int w = 0; w < 4; w++) weight = weight + totals[(c / OWN_COLUMNS * 4 + w) * OWN_COLUMNS + c % OWN_COLUMNS];
        const float high = highs[c];
        const u64 at = ((u64)blockIdx.x * heads + head) * stride + span;
        float factor = 1.0f;
        if (is_one) {
            const float sink = sinks[head] * LOG2_E, most = larger(high, sink);
            const float before = factor_of(high, most);
            weight = fma(weight, before, exp2_near(sink - most + WEIGHT_BITS));
            factor = weight == 0.0f ? 0.0f : before / weight;
        } else if (warp == 0 && lane < 4) {
            stats[at] = make_float2(high, weight);
        }
        float* out = is_one ? y + ((u64)row * heads + head) * WIDTH : parts + at * WIDTH;
#pragma unroll
        for (int o = 0; o < OWN; o++) {
#pragma unroll
            for (int h = 0; h < 2; h++)
                out[(group * OWN + o) * 64 + own + h * 8] = sums[o][i / 2 * 4 + h * 2 + i % 2] * factor + 0.0f;
        }
    }
}

// The spans of each row that has several, in order, behind its sink. One block a row and a head; one thread a feature. Where the queue has
// joined that, results are turned by the angles of their rows (rope.cu), and their codes come last (quantize.cu), also of rows of one span.
KERNEL __launch_bounds__(THREADS) latent_merge(const float* parts, const float2* stats, const float* sinks, float* y,
                                               const u32* selected, const u32* rows, const u32* lists, u32 first, u32 heads,
                                               u32 window, u32 ratio, u32 top_k, u32 stride, u32 span_pages, const float* angles,
                                               u32 first_feature, u32 pairs, u32 way, u8* codes, uint2* scales, float4* minima) {
    __shared__ float result[WIDTH];
    begin_in_turn();
    const Sight sight = {{rows, lists}, 0, 0, selected, 0, window, ratio, top_k};
    const u32 row = blockIdx.x / heads, head = blockIdx.x % heads, pages = sight.pages(first + row);
    const u32 count = (pages + span_pages - 1) / span_pages;
    if (count == 1 && !angles) return;
    const u64 at = (u64)blockIdx.x * stride;
    float* out = y + ((u64)(first + row) * heads + head) * WIDTH;
    if (count == 1) {
        for (u32 d = threadIdx.x; d < WIDTH; d += THREADS) result[d] = out[d];
    } else {
        const float sink = sinks[head] * LOG2_E;
        float highest = sink;
        for (u32 i = 0; i < count; i++) highest = larger(highest, stats[at + i].x);
        float total = exp2_near(sink - highest + WEIGHT_BITS);
        for (u32 i = 0; i < count; i++) total = fma(stats[at + i].y, factor_of(stats[at + i].x, highest), total);
        const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
        for (u32 d = threadIdx.x; d < WIDTH; d += THREADS) {
            float sum = 0.0f;
#pragma unroll 4
            for (u32 i = 0; i < count; i++) sum = fma(parts[(at + i) * WIDTH + d], factor_of(stats[at + i].x, highest), sum);
            result[d] = sum * inverse;
            if (!angles) out[d] = sum * inverse;
        }
    }
    if (!angles) return;
    __syncthreads();
    const float* of_row = angles + (u64)(first + row) * 2 * pairs;
    for (u32 pair = threadIdx.x; pair < pairs; pair += THREADS) {
        const float cosine = of_row[pair], sine = way & 2 ? -of_row[pairs + pair] : of_row[pairs + pair];
        float* one = result + first_feature + (way & 1 ? 2 * pair : pair);
        float* other = way & 1 ? one + 1 : one + pairs;
        const float a = *one, b = *other;
        *one = fma(a, cosine, -(b * sine));
        *other = fma(b, cosine, a * sine);
    }
    __syncthreads();
    const CodesOut coded = {codes, scales, minima};
    for (u32 d = threadIdx.x; d < WIDTH; d += THREADS) {
        out[d] = result[d];
        const u64 block = (head * WIDTH + d) / 32;
        if (codes) put_codes(quantized(result[d]), threadIdx.x % 32, codes_place(first + row, block, heads * WIDTH / 32), coded);
    }
}
