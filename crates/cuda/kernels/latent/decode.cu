// Attention of decoded rows over latent rows of f16, or packed ones that become such, on Hopper: a row is little work, so many processors
// have a part of it at once.
//
// A cluster of BLOCKS blocks, a warpgroup each, is a row of the step and COLUMNS of its heads. They share out the pages that the row goes
// through: block b has pages b, b + BLOCKS, …, so what it gives depends on the row's own pages alone, as what all give together does, which
// is added in the order of blocks. Scores are keys, rows of `wgmma`, by queries; weighed sums are the same keys, turned, by weights. A
// page's copies begin at once, and its first slabs are multiplied while others come.
//
// What a block gives stays in its shared memory; of what comes of all each block makes some heads, reading it there. Where the queue has
// joined that, results are turned by the angles of their rows (rope.cu), and their codes come last (quantize.cu).

#define BLOCKS 8
#define SLABS (WIDTH / 64)
// Slabs whose copies are waited for at once.
#define PIECE 2
#define PIECES (SLABS / PIECE)
#define WARPS (THREADS / 32)
// Keys of a page that a warp brings.
#define OWN_KEYS (PAGE / WARPS)
// Heads that a block makes at the end, and fours of their numbers.
#define OWN_COLUMNS (COLUMNS / BLOCKS)
#define OWN_FOURS (OWN_COLUMNS * WIDTH / 4)
#define QUERY_BYTES (SLABS * COLUMNS * 128)
#define WEIGHT_BYTES (COLUMNS * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define REST_BYTES ((2 * WARPS + 3) * COLUMNS * 4)

static_assert(SLABS % PIECE == 0 && PIECES <= 4 && (IS_PACKED || (FORMAT == 1 && ROW_BYTES == WIDTH * 2)), "rows of whole pieces");
static_assert(OWN_KEYS == 16, "lanes know of two pages");
static_assert(THREADS == 128 && COLUMNS % BLOCKS == 0 && SLABS * COLUMNS / 2 <= 128, "sums that fit into registers");
static_assert(COLUMNS * WIDTH * 4 <= STAGE_BYTES && OWN_COLUMNS * WIDTH * 4 <= QUERY_BYTES, "results fit where operands were");
static_assert(SHARED_BYTES == 1024 + QUERY_BYTES + WEIGHT_BYTES + STAGES * STAGE_BYTES + REST_BYTES, "as the host reckons");

// Where number `d` of a column's sums lies: spread over the banks.
DEVICE u32 place_of_sum(u32 c, u32 d) { return c * WIDTH + (d ^ (c / 2 % 4 * 8)); }

#if !IS_PACKED
// Starts the copies of a page's keys, piece by piece; slots that are not seen become zeros, for they may hold anything. Of what lanes have
// found, from `from_lane` on.
DEVICE void bring(u8* stage, u64 own, u32 from_lane) {
    constexpr u32 rows = OWN_KEYS, parts = PIECE * 8, at_once = 32 / parts;
    const u32 lane = threadIdx.x % 32, first = threadIdx.x / 32 * rows;
    const u8* from[rows / at_once];
#pragma unroll
    for (u32 i = 0; i < rows / at_once; i++) from[i] = (const u8*)__shfl_sync(0xffffffffu, own, from_lane + i * at_once + lane / parts);
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
#endif

// Waits for all but so many groups of copies, the same in all lanes.
DEVICE void wait_for_pieces(u32 left) {
    switch (left) {
    case 0: return wait_for_copies<0>();
    case 1: return wait_for_copies<1>();
    case 2: return wait_for_copies<2>();
    case 3: return wait_for_copies<3>();
    case 4: return wait_for_copies<4>();
    case 5: return wait_for_copies<5>();
    case 6: return wait_for_copies<6>();
    default: return wait_for_copies<7>();
    }
}

// What blocks give of four numbers of a head, on its way from their shared memory.
struct Given {
    float4 sums[BLOCKS];
    float2 stats[BLOCKS]; // the highest score, and the sum of weights relative to it

    DEVICE_MEMBER void load(u32 sums_at, u32 stats_at, u32 blocks) {
#pragma unroll
        for (u32 b = 0; b < BLOCKS; b++) {
            stats[b] = make_float2(minus_infinity(), 0.0f);
            sums[b] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (b >= blocks) continue;
            stats[b] = pair_of_block(stats_at, b);
            sums[b] = four_of_block(sums_at, b);
        }
    }
    // In order, behind the sink.
    DEVICE_MEMBER float4 together(float sink, u32 blocks) const {
        float highest = sink;
#pragma unroll
        for (u32 b = 0; b < BLOCKS; b++) highest = larger(highest, stats[b].x);
        // All before the first is needed: one behind another they would take longer than what blocks give.
        float factors[BLOCKS];
#pragma unroll
        for (u32 b = 0; b < BLOCKS; b++) factors[b] = factor_of(stats[b].x, highest);
        float total = exp2_near(sink - highest + WEIGHT_BITS);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (u32 b = 0; b < BLOCKS; b++) {
            const bool is_one = b < blocks;
            total = is_one ? fma(stats[b].y, factors[b], total) : total;
            sum.x = is_one ? fma(sums[b].x, factors[b], sum.x) : sum.x;
            sum.y = is_one ? fma(sums[b].y, factors[b], sum.y) : sum.y;
            sum.z = is_one ? fma(sums[b].z, factors[b], sum.z) : sum.z;
            sum.w = is_one ? fma(sums[b].w, factors[b], sum.w) : sum.w;
        }
        const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
        return make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
    }
};

// Starts the way of a lane's key into L2, if it has one; each tile of heads has some of its lines.
DEVICE void hasten(u64 own) {
    if (!own) return;
#pragma unroll 1
    for (u32 line = blockIdx.y; line < (ROW_BYTES + 127) / 128; line += gridDim.y) prefetch((const u8*)own + line * 128);
}

// queries, y (rows, heads · WIDTH). Grid: blocks of a cluster, tiles of heads, rows.
KERNEL __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS, RESIDENT) latent_decode(
    const float* queries, const u8* raw, const u8* compressed, const u32* selected, const float* sinks, float* y, const u32* rows,
    const u32* lists, u32 first, u32 heads, u32 ring, u32 window, u32 ratio, u32 top_k, float scale, const float* angles,
    u32 first_feature, u32 pairs, u32 way, u8* codes, uint2* scales, float4* minima) {
    let_next_start();
    DYNAMIC_SHARED(u8, dynamic);
    u8* const shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const weights = shared + QUERY_BYTES;
    u8* const stages = weights + WEIGHT_BYTES;
    float2* const stats = (float2*)(stages + STAGES * STAGE_BYTES); // [COLUMNS] of the highest score and the sum of weights
    float* const factors = (float*)(stats + COLUMNS);
    float* const tops = factors + COLUMNS;        // [WARPS][COLUMNS]
    float* const totals = tops + WARPS * COLUMNS; // the same

    const u32 row = first + blockIdx.z, first_head = blockIdx.y * COLUMNS, block = block_of_cluster();
    const Step step = {rows, lists, true};
    const Sight sight = {step.all_of(row), raw, compressed, selected_of(selected, row, top_k), ring, window, ratio, top_k};
    const u32 count = heads - first_head < COLUMNS ? heads - first_head : COLUMNS;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, own_keys = warp * OWN_KEYS;
    const u32 pages = sight.pages(), blocks = pages < BLOCKS ? pages : BLOCKS;
    // A lane finds one of a warp's keys of this page, or of the next. What the step itself says is found ahead of the turn, and on its way
    // into L2 by then; rows that are chosen are not.
    const u32 known = sight.selected ? sight.raw_pages() : pages;
    auto find = [&](u32 page, u32 from, u32 to) {
        page += lane / OWN_KEYS * BLOCKS;
        return page >= from && page < to ? sight.seen_key(page, own_keys + lane % OWN_KEYS) : 0;
    };
    u64 found = find(block, 0, known);
    hasten(found);
    after_earlier_work();

    if (block < pages) {
        // Queries are on their way while keys are looked up. Blocks without a page need none.
        Query<WIDTH> several[COLUMNS / WARPS];
#pragma unroll
        for (u32 i = 0; i < COLUMNS / WARPS; i++) {
            const u32 c = i * WARPS + warp;
            several[i].load(c < count ? queries + ((u64)row * heads + first_head + c) * WIDTH : 0);
        }
        if (known < pages) {
            const u64 chosen = find(block, known, pages);
            if (chosen) found = chosen;
            // A page that has to wait for a stage.
            if (STAGES == 1) hasten(lane < OWN_KEYS ? 0 : chosen);
        }
        u32 from_lane = 0;
        // The lanes that know of the page that comes; once there are none, those that are next are looked up.
        auto go_on = [&](u32 page) {
            from_lane ^= OWN_KEYS;
            if (from_lane == 0) found = find(page + BLOCKS, 0, pages);
        };
#if IS_PACKED
        PackedKeys<OWN_KEYS> keys;
        keys.load(found);
#else
        bring(stages, found, 0);
#endif
        go_on(block);
        // Always: behind a branch, or the assembler lets what waits for some numbers come before others are asked for.
        if (count > 0) {
#pragma unroll
            for (u32 i = 0; i < COLUMNS / WARPS; i++) {
                const u32 c = i * WARPS + warp;
                const float down = several[i].keep(shared, COLUMNS, c);
                if (lane == 0) factors[c] = down * scale * LOG2_E;
            }
#if IS_PACKED
            keys.put(stages, own_keys);
#endif
        }

        // Of each product a lane has rows `own` and `own + 8` of 64, and of each eight columns `column` and the next.
        const u32 own = warp * 16 + lane / 4, column = lane % 4 * 2;
        const u32 queries_at = shared_address(shared), weights_at = shared_address(weights);
        float sums[SLABS][COLUMNS / 2] = {}, highest[COLUMNS / 4], total[COLUMNS / 4] = {};
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; i++) highest[i] = minus_infinity();
        u32 turn = 0;
#pragma unroll 1
        for (u32 page = block; page < pages; page += BLOCKS, turn = (turn + 1) % STAGES) {
            const u32 stage_at = shared_address(stages) + turn * STAGE_BYTES;
#if IS_PACKED
            // What the next product reads is widened while this one's scores are made, where there is room for both.
            const bool has_next = STAGES > 1 && page + BLOCKS < pages;
            if (STAGES == 1 && page != block) {
                keys.load(found, from_lane);
                go_on(page);
                keys.put(stages, own_keys);
            }
            if (has_next) {
                keys.load(found, from_lane);
                go_on(page + BLOCKS);
            }
#else
            if (STAGES == 1) {
                if (page != block) {
                    bring(stages, found, from_lane);
                    go_on(page);
                }
            } else if (page + BLOCKS < pages) {
                bring(stages + (1 - turn) * STAGE_BYTES, found, from_lane);
                go_on(page + BLOCKS);
            } else {
#pragma unroll
                for (int piece = 0; piece < PIECES; piece++) end_of_copies();
            }
#endif
            const uint2 slots = sight.slots(page);
            float scores[COLUMNS / 2];
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; i++) scores[i] = 0.0f;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) {
                // What is packed is there at once.
                if (!IS_PACKED) wait_for_pieces(STAGES * PIECES - 1 - piece);
                if (!IS_PACKED || piece == 0) {
                    writes_before_copies();
                    __syncthreads();
                    products_begin();
                }
#pragma unroll
                for (int s = piece * PIECE; s < piece * PIECE + PIECE; s++) {
                    const u64 slab = operand_of(stage_at + s * SLAB_BYTES), others = operand_of(queries_at + s * COLUMNS * 128);
#pragma unroll
                    for (int k = 0; k < 4; k++) multiply_shared<COLUMNS>(scores, slab + k * 2, others + k * 2);
                }
                products_commit();
            }
#if IS_PACKED
            if (has_next) keys.put(stages + (1 - turn) * STAGE_BYTES, own_keys);
#endif
            products_wait<0>();

#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                const float2 up = *(const float2*)&factors[j * 8 + column];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float top = highest_seen(scores[j * 4 + e], scores[j * 4 + 2 + e], e ? up.y : up.x, own, slots);
                    if (lane < 4) tops[warp * COLUMNS + j * 8 + column + e] = top;
                }
            }
            __syncthreads();
            float keep[COLUMNS / 4];
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                float base[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float& before = highest[j * 2 + e];
                    float top = before;
#pragma unroll
                    for (int w = 0; w < WARPS; w++) top = larger(top, tops[w * COLUMNS + j * 8 + column + e]);
                    base[e] = base_of(top);
                    keep[j * 2 + e] = factor_of(before, top);
                    before = top;
                    total[j * 2 + e] = total[j * 2 + e] * keep[j * 2 + e];
                }
                u32 halves[2];
                weigh_pairs(halves, scores + j * 4, base, total + j * 2);
                // Of lanes 0 to 15, each names where eight keys of a column go.
                const u32 at = j * 8 + lane % 8, part = warp * 2 + lane / 8 % 2;
                store_turned(weights_at + at * 128 + (part ^ (at % 8)) * 16, halves[0], halves[1]);
            }
            writes_before_copies();
            __syncthreads();
            if (page != block) {
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
            // Other keys, or sums, come where these keys are.
            __syncthreads();
        }

        float* const of_block = (float*)stages;
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; i++) {
            const u32 c = i / 2 * 8 + column + i % 2;
            // Each warp has the weights of its keys.
#pragma unroll
            for (int width = 4; width < 32; width *= 2) total[i] = total[i] + __shfl_xor_sync(0xffffffffu, total[i], width);
            if (lane < 4) totals[warp * COLUMNS + c] = total[i];
            if (lane < 4 && warp == 0) stats[c].x = highest[i];
#pragma unroll
            for (int s = 0; s < SLABS; s++)
#pragma unroll
                for (int h = 0; h < 2; h++) of_block[place_of_sum(c, s * 64 + own + h * 8)] = sums[s][i / 2 * 4 + h * 2 + i % 2];
        }
        __syncthreads();
        if (threadIdx.x < COLUMNS) {
            float weight = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) weight = weight + totals[w * COLUMNS + threadIdx.x];
            stats[threadIdx.x].y = weight;
        }
    }
    // What the end needs besides comes while others are waited for.
    arrive_with_shared();
    constexpr u32 ENDS = (OWN_FOURS + THREADS - 1) / THREADS;
    float own_sinks[ENDS];
#pragma unroll
    for (u32 i = 0; i < ENDS; i++) {
        const u32 c = block * OWN_COLUMNS + (i * THREADS + threadIdx.x) / (WIDTH / 4);
        own_sinks[i] = c < count ? sinks[first_head + c] : 0.0f;
        asked(own_sinks[i]);
    }
    const float* const of_row = angles + (u64)row * 2 * pairs;
    const u32 turns = angles ? OWN_COLUMNS * pairs : 0;
    u32 pair = 0, turning = 0;
    float cosine = 0.0f, sine = 0.0f;
    auto look_up = [&](u32 turn) {
        pair = turn % pairs;
        turning = turn / pairs;
        cosine = of_row[pair];
        sine = of_row[pairs + pair];
    };
    if (threadIdx.x < turns) look_up(threadIdx.x);
    asked(pair);
    asked(turning);
    asked(cosine);
    asked(sine);
    cluster_arrived();

    float* const result = (float*)shared; // [OWN_COLUMNS][WIDTH]
    const u32 sums_at = shared_address(stages), stats_at = shared_address(stats);
    constexpr u32 AT_ONCE = ENDS <= 3 ? ENDS : 2;
#pragma unroll
    for (u32 i = 0; i < OWN_FOURS; i += AT_ONCE * THREADS) {
        Given given[AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            const u32 four = i + j * THREADS + threadIdx.x, c = block * OWN_COLUMNS + four / (WIDTH / 4);
            // Nothing that is not used: who says that it has read would not wait for that.
            if (four < OWN_FOURS && c < count)
                given[j].load(sums_at + place_of_sum(c, four % (WIDTH / 4) * 4) * 4, stats_at + c * 8, blocks);
        }
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            const u32 four = i + j * THREADS + threadIdx.x, c = block * OWN_COLUMNS + four / (WIDTH / 4);
            if (four < OWN_FOURS && c < count)
                *(float4*)&result[four * 4] = given[j].together(own_sinks[i / THREADS + j] * LOG2_E, blocks);
        }
    }
    __syncthreads();
    // What others have is read.
    arrive_alone();
    if (angles) {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < turns; i += THREADS) {
            if (i >= THREADS) look_up(i);
            float* one = result + turning * WIDTH + first_feature + (way & 1 ? 2 * pair : pair);
            float* other = way & 1 ? one + 1 : one + pairs;
            const float2 both = turned(*one, *other, cosine, way & 2 ? -sine : sine);
            *one = both.x;
            *other = both.y;
        }
        __syncthreads();
    }
    // All heads of the block at once, so that nothing of one waits for another.
    constexpr u32 EACH = WIDTH / THREADS, NUMBERS = OWN_COLUMNS * EACH;
    const u32 own_first = block * OWN_COLUMNS, own_count = count > own_first ? min(count - own_first, (u32)OWN_COLUMNS) : 0;
    const u64 first_number = ((u64)row * heads + first_head + own_first) * WIDTH + threadIdx.x;
    float numbers[NUMBERS];
#pragma unroll
    for (u32 i = 0; i < NUMBERS; i++) numbers[i] = result[i * THREADS + threadIdx.x];
#pragma unroll
    for (u32 i = 0; i < NUMBERS; i++)
        if (i < own_count * EACH) y[first_number + i * THREADS] = numbers[i];
    if (codes) {
        // Neighbouring blocks of a row are eight places apart.
        const u64 first_place = codes_place(row, (first_head + own_first) * (WIDTH / 32) + warp, heads * WIDTH / 32);
        put_codes_of(numbers, own_count * EACH, first_place, WARPS * 8, CodesOut{codes, scales, minima});
    }
    // Nobody leaves while another block may still read here.
    cluster_arrived();
}
