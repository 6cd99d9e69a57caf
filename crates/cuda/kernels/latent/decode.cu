// Attention of decoded rows over latent rows of f16 on Hopper: a row is little work, so many processors have a part of it at once.
//
// A cluster of BLOCKS blocks is a row of the step and COLUMNS of its heads. Its PLACES warpgroups, two a block, share out the pages that the
// row goes through: place p has pages p, p + PLACES, …, so what it gives depends on the row's own pages alone, as what all give together
// does, which is added in the order of places. Scores are keys, rows of `wgmma`, by queries; weighed sums are the same keys, turned, by
// weights. A page's copies begin at once, and its first slabs are multiplied while others come.
//
// What a place gives stays in its block's shared memory; of what comes of all each block makes some heads, reading it there. Where the
// queue has joined that, results are turned by the angles of their rows (rope.cu), and their codes come last (quantize.cu).

#define BLOCKS 8
#define GROUPS 2
#define PLACES (BLOCKS * GROUPS)
#define SLABS (WIDTH / 64)
#define SLAB_BYTES (PAGE * 128)
// Slabs whose copies are waited for at once.
#define PIECE 2
#define PIECES (SLABS / PIECE)
#define WARPS (THREADS / 32)
// Heads that a block makes at the end.
#define OWN_COLUMNS (COLUMNS / BLOCKS)
#define QUERY_BYTES (SLABS * COLUMNS * 128)
#define WEIGHT_BYTES (GROUPS * COLUMNS * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define REST_BYTES ((2 * WARPS + 1 + 3 * GROUPS) * COLUMNS * 4)

static_assert(FORMAT == 1 && SLABS % PIECE == 0 && PIECES <= 4 && ROW_BYTES == WIDTH * 2, "rows of f16, of whole pieces");
static_assert(THREADS == GROUPS * 128 && COLUMNS % BLOCKS == 0 && SLABS * COLUMNS / 2 <= 128, "sums that fit into registers");
static_assert(COLUMNS * WIDTH * 4 <= STAGE_BYTES && OWN_COLUMNS * WIDTH * 4 <= QUERY_BYTES, "results fit where operands were");
static_assert(SHARED_BYTES == 1024 + QUERY_BYTES + WEIGHT_BYTES + GROUPS * STAGE_BYTES + REST_BYTES, "as the host reckons");

// Where number `d` of a column's sums lies: spread over the banks.
DEVICE u32 place_of_sum(u32 c, u32 d) { return c * WIDTH + (d ^ (c / 2 % 4 * 8)); }

// Starts the copies of a page's keys by a warpgroup, piece by piece; slots that are not seen become zeros, for they may hold anything.
DEVICE void bring(u8* stage, const Sight& sight, u32 row, u32 page) {
    constexpr u32 rows = PAGE / 4, parts = PIECE * 8, at_once = 32 / parts;
    const u32 lane = threadIdx.x % 32, first = threadIdx.x / 32 % 4 * rows;
    const uint2 slots = sight.slots(row, page);
    // A lane finds one of the warp's rows.
    u64 own = 0;
    if (lane < rows && first + lane >= slots.x && first + lane < slots.y) own = (u64)sight.key(row, page, first + lane);
    const u8* from[rows / at_once];
#pragma unroll
    for (u32 i = 0; i < rows / at_once; i++) from[i] = (const u8*)__shfl_sync(0xffffffffu, own, i * at_once + lane / parts);
#pragma unroll
    for (u32 piece = 0; piece < PIECES; piece++) {
#pragma unroll
        for (u32 i = 0; i < rows / at_once; i++) {
            const u32 slot = first + i * at_once + lane / parts, part = lane % parts, slab = piece * PIECE + part / 8;
            u8* to = stage + slab * SLAB_BYTES + slot * 128 + ((part % 8) ^ (slot % 8)) * 16;
            if (from[i]) copy_16(to, from[i] + slab * 128 + part % 8 * 16);
            else *(uint4*)to = make_uint4(0, 0, 0, 0);
        }
        end_of_copies();
    }
}

// Waits for all but so many pieces, the same in all lanes.
DEVICE void wait_for_pieces(u32 left) {
    if (left == 0) wait_for_copies<0>();
    else if (left == 1) wait_for_copies<1>();
    else if (left == 2) wait_for_copies<2>();
    else wait_for_copies<3>();
}

// queries, y (rows, heads · WIDTH). Grid: blocks of a cluster, tiles of heads, rows.
KERNEL __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, 1) latent_decode(
    const float* queries, const u8* raw, const u8* compressed, const u32* selected, const float* sinks, float* y, const u32* rows,
    const u32* lists, u32 first, u32 heads, u32 ring, u32 window, u32 ratio, u32 top_k, float scale, const float* angles,
    u32 first_feature, u32 pairs, u32 way, u8* codes, uint2* scales, float4* minima) {
    begin_in_turn();
    DYNAMIC_SHARED(u8, dynamic);
    u8* const shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const weights = shared + QUERY_BYTES;
    u8* const stages = weights + WEIGHT_BYTES;
    float2* const stats = (float2*)(stages + GROUPS * STAGE_BYTES); // [GROUPS][COLUMNS] of the highest score and the sum of weights
    float* const highs = (float*)(stats + GROUPS * COLUMNS);        // the same of the score alone
    float* const factors = highs + GROUPS * COLUMNS;
    float* const tops = factors + COLUMNS;       // [WARPS][COLUMNS]
    float* const totals = tops + WARPS * COLUMNS; // the same

    const Sight sight = {{rows, lists}, raw, compressed, selected, ring, window, ratio, top_k};
    const u32 row = first + blockIdx.z, first_head = blockIdx.y * COLUMNS, block = block_of_cluster();
    const u32 count = heads - first_head < COLUMNS ? heads - first_head : COLUMNS;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4, place = group * BLOCKS + block;
    const u32 pages = sight.pages(row), places = pages < PLACES ? pages : PLACES;
    u8* const stage = stages + group * STAGE_BYTES;
    const u32 stage_at = shared_address(stage), weights_at = shared_address(weights) + group * COLUMNS * 128;

    if (block < pages) {
        Query<WIDTH> several[COLUMNS / WARPS];
#pragma unroll
        for (int i = 0; i < COLUMNS / WARPS; i++) {
            const u32 c = warp + i * WARPS;
            several[i].load(c < count ? queries + ((u64)row * heads + first_head + c) * WIDTH : 0);
        }
        if (place < pages) bring(stage, sight, row, place);
#pragma unroll
        for (int i = 0; i < COLUMNS / WARPS; i++) {
            const u32 c = warp + i * WARPS;
            const float down = several[i].keep(shared, COLUMNS, c);
            if (lane == 0) factors[c] = down * scale * LOG2_E;
        }
        writes_before_copies();
        __syncthreads();
    }
    if (place < pages) {
        // Of each product a lane has rows `own` and `own + 8` of 64, and of each eight columns `column` and the next.
        const u32 own = warp % 4 * 16 + lane / 4, column = lane % 4 * 2, queries_at = shared_address(shared);
        float sums[SLABS][COLUMNS / 2] = {}, highest[COLUMNS / 4], total[COLUMNS / 4] = {};
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; i++) highest[i] = minus_infinity();
#pragma unroll 1
        for (u32 page = place; page < pages; page += PLACES) {
            if (page != place) bring(stage, sight, row, page);
            const uint2 slots = sight.slots(row, page);
            float scores[COLUMNS / 2];
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; i++) scores[i] = 0.0f;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) {
                wait_for_pieces(PIECES - 1 - piece);
                writes_before_copies();
                wait_for_threads(2 + group, 128);
                products_begin();
#pragma unroll
                for (int s = piece * PIECE; s < piece * PIECE + PIECE; s++) {
                    const u64 keys = operand_of(stage_at + s * SLAB_BYTES), others = operand_of(queries_at + s * COLUMNS * 128);
#pragma unroll
                    for (int k = 0; k < 4; k++) multiply_shared<COLUMNS>(scores, keys + k * 2, others + k * 2);
                }
                products_commit();
            }
            products_wait<0>();

#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                const float2 up = *(const float2*)&factors[j * 8 + column];
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
                    if (lane < 4) tops[warp * COLUMNS + j * 8 + column + e] = top;
                }
            }
            wait_for_threads(2 + group, 128);
            float keep[COLUMNS / 4];
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                float weight[2][2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float& before = highest[j * 2 + e];
                    float top = before;
#pragma unroll
                    for (int w = 0; w < 4; w++) top = larger(top, tops[(group * 4 + w) * COLUMNS + j * 8 + column + e]);
                    const float base = base_of(top);
                    keep[j * 2 + e] = factor_of(before, top);
                    before = top;
                    weight[0][e] = exp2_near(scores[j * 4 + e] - base);
                    weight[1][e] = exp2_near(scores[j * 4 + 2 + e] - base);
                    total[j * 2 + e] = total[j * 2 + e] * keep[j * 2 + e];
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
                const u32 at = j * 8 + lane % 8, part = warp % 4 * 2 + lane / 8 % 2;
                store_turned(weights_at + at * 128 + (part ^ (at % 8)) * 16, halves[0], halves[1]);
            }
            writes_before_copies();
            wait_for_threads(2 + group, 128);
            if (page != place) {
#pragma unroll
                for (int s = 0; s < SLABS; s++)
#pragma unroll
                    for (int i = 0; i < COLUMNS / 2; i++) sums[s][i] = sums[s][i] * keep[i / 4 * 2 + i % 2];
            }
            products_begin();
#pragma unroll
            for (int s = 0; s < SLABS; s++) {
                const u64 values = turned_operand_of(stage_at + s * SLAB_BYTES, SLAB_BYTES), others = operand_of(weights_at);
#pragma unroll
                for (int k = 0; k < 4; k++) multiply_turned<COLUMNS>(sums[s], values + k * 128, others + k * 2);
            }
            products_commit();
            products_wait<0>();
            // The next page's keys, or sums, come where these keys are.
            wait_for_threads(2 + group, 128);
        }

        float* const of_place = (float*)stage;
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; i++) {
            const u32 c = i / 2 * 8 + column + i % 2;
            // Each warp has the weights of its keys.
#pragma unroll
            for (int width = 4; width < 32; width *= 2) total[i] = total[i] + __shfl_xor_sync(0xffffffffu, total[i], width);
            if (lane < 4) totals[warp * COLUMNS + c] = total[i];
            if (lane < 4 && warp % 4 == 0) highs[group * COLUMNS + c] = highest[i];
#pragma unroll
            for (int s = 0; s < SLABS; s++)
#pragma unroll
                for (int h = 0; h < 2; h++) of_place[place_of_sum(c, s * 64 + own + h * 8)] = sums[s][i / 2 * 4 + h * 2 + i % 2];
        }
        wait_for_threads(2 + group, 128);
        const u32 c = threadIdx.x % 128;
        if (c < COLUMNS) {
            float weight = 0.0f;
#pragma unroll
            for (int w = 0; w < 4; w++) weight = weight + totals[(group * 4 + w) * COLUMNS + c];
            stats[group * COLUMNS + c] = make_float2(highs[group * COLUMNS + c], weight);
        }
    }
    wait_for_cluster();

    // All places, in order, behind the sink. A thread has four numbers of a head.
    float* const result = (float*)shared; // [OWN_COLUMNS][WIDTH]
    const u32 stages_at = shared_address(stages), stats_at = shared_address(stats);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < OWN_COLUMNS * WIDTH / 4; i += THREADS) {
        const u32 c = block * OWN_COLUMNS + i / (WIDTH / 4), d = i % (WIDTH / 4) * 4;
        if (c >= count) break;
        float4 part[PLACES];
        float2 stat[PLACES];
#pragma unroll
        for (u32 p = 0; p < PLACES; p++) {
            stat[p] = make_float2(minus_infinity(), 0.0f);
            part[p] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (p >= places) continue;
            stat[p] = pair_of_block(stats_at + (p / BLOCKS * COLUMNS + c) * 8, p % BLOCKS);
            part[p] = four_of_block(stages_at + p / BLOCKS * STAGE_BYTES + place_of_sum(c, d) * 4, p % BLOCKS);
        }
        const float sink = sinks[first_head + c] * LOG2_E;
        float highest = sink;
#pragma unroll
        for (u32 p = 0; p < PLACES; p++) highest = larger(highest, stat[p].x);
        float total = exp2_near(sink - highest + WEIGHT_BITS);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (u32 p = 0; p < PLACES; p++) {
            if (p >= places) continue;
            const float factor = factor_of(stat[p].x, highest);
            total = fma(stat[p].y, factor, total);
            sum.x = fma(part[p].x, factor, sum.x);
            sum.y = fma(part[p].y, factor, sum.y);
            sum.z = fma(part[p].z, factor, sum.z);
            sum.w = fma(part[p].w, factor, sum.w);
        }
        const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
        *(float4*)&result[i * 4] = make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
    }
    // What others have is read.
    arrive_at_cluster();
    __syncthreads();
    if (angles) {
        const float* of_row = angles + (u64)row * 2 * pairs;
        for (u32 i = threadIdx.x; i < OWN_COLUMNS * pairs; i += THREADS) {
            const u32 pair = i % pairs;
            const float cosine = of_row[pair], sine = way & 2 ? -of_row[pairs + pair] : of_row[pairs + pair];
            float* one = result + i / pairs * WIDTH + first_feature + (way & 1 ? 2 * pair : pair);
            float* other = way & 1 ? one + 1 : one + pairs;
            const float a = *one, b = *other;
            *one = fma(a, cosine, -(b * sine));
            *other = fma(b, cosine, a * sine);
        }
        __syncthreads();
    }
    const CodesOut coded = {codes, scales, minima};
    for (u32 i = threadIdx.x; i < OWN_COLUMNS * WIDTH; i += THREADS) {
        const u32 c = block * OWN_COLUMNS + i / WIDTH, d = i % WIDTH, head = first_head + c;
        if (c >= count) break;
        y[((u64)row * heads + head) * WIDTH + d] = result[i];
        if (codes) put_codes(quantized(result[i]), lane, codes_place(row, ((u64)head * WIDTH + d) / 32, heads * WIDTH / 32), coded);
    }
    // Nobody leaves while another block may still read here.
    cluster_arrived();
}
