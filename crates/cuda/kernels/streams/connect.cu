// From what a block gave to what the next one reads, of several residual streams, at once: the streams take it in (spread_streams), are
// normed together, and projected onto their gates; by these they are summed (collapse_streams), and the sum is normed. Every number is
// made by the operations that the kernels of these ops do, in their order, and every tensor is written that they would write.
//
// A row is a cluster of BLOCKS blocks, which share features at first, and then the segments of the depth (floats.cu): a block's first warp
// has a chain of each row of the projection. What takes long are chains of dependent sums, so all blocks add up the same squares, where
// the result would have to come around otherwise, and the matrix between streams is left to one warp, which no other waits for.
//
// Blocks exchange numbers through memory: new streams, and sums of segments, which lie where the result will be.

#define WARPS (THREADS / 32)
// Threads that do not make gates.
#define OTHERS (THREADS - 32)
// Numbers of a row of gates, at most.
#define GATES_MAX 32

static_assert(FIXED_NUMBERS >= 4 + STREAMS_MAX + GATES_MAX && FIXED_NUMBERS % 4 == 0, "room for gates");
static_assert(BLOCKS == 8, "a block for each segment of the depth");
static_assert(STAGES >= 2 && 256 % (STAGE_RUNS * RUN) == 0, "weights come ahead, and segments are whole steps");

// A lane's weights of one tile of 32 rows on their way: each reads what it copied itself.
struct Ring {
    uint4* own;
    const uint4* from;
    u32 brought, end;

    // The next runs, if there are any; each call ends a group.
    DEVICE_MEMBER void bring() {
        uint4* to = own + brought / STAGE_RUNS % STAGES * STAGE_RUNS * 32;
        if (brought < end) {
#pragma unroll
            for (u32 r = 0; r < STAGE_RUNS; r++) copy_16_once(to + r * 32, from + (u64)(brought + r) * 32);
        }
        brought += STAGE_RUNS;
        end_of_copies();
    }
};

// The sum along a segment, `x` its inputs: one chain, as in floats.cu. A step has no branch, so that all it reads is on its way ahead of
// the chain.
DEVICE float product_of(Ring& ring, const float* x) {
    float sum = 0.0f;
#pragma unroll 1
    for (u32 first = 0; first < ring.end; first += STAGE_RUNS) {
        wait_for_copies<STAGES - 2>();
        ring.bring();
        const uint4* weights = ring.own + first / STAGE_RUNS % STAGES * STAGE_RUNS * 32;
        const float4* in = (const float4*)(x + first * RUN);
        uint4 held[STAGE_RUNS];
#pragma unroll
        for (u32 r = 0; r < STAGE_RUNS; r++) held[r] = weights[r * 32];
#pragma unroll
        for (u32 r = 0; r < STAGE_RUNS; r++) {
#pragma unroll
            for (u32 i = 0; i < RUN; i += 4) {
                const float4 v = in[(r * RUN + i) / 4];
                sum = fma(value_of(held[r], i), v.x, sum);
                sum = fma(value_of(held[r], i + 1), v.y, sum);
                sum = fma(value_of(held[r], i + 2), v.z, sum);
                sum = fma(value_of(held[r], i + 3), v.w, sum);
            }
        }
    }
    return sum;
}

// The longest segment of a depth.
DEVICE u32 longest_segment(u32 depth, u32 split) { return (depth / 256 + split - 1) / split * 256 + depth % 256; }

// The factor of a norm, in all threads that come; `inverse` is shared. They are so many, the first 32 among them.
DEVICE float factor_of_norm(const float* run, u32 width, float epsilon, float* inverse, u32 threads) {
    if (threadIdx.x < 32) {
        const float mean = add_lanes(sum_of_squares(run, width)) / (float)width;
        if (threadIdx.x == 0) *inverse = 1.0f / __fsqrt_rn(mean + epsilon);
    }
    wait_for_threads(1, threads);
    return *inverse;
}

// streams (rows, count * width), which take in `y` by `gates_before`, if there are any; normed, weights `ones`; mix (rows, gates), weights
// of `mix_weights` as floats.cu has them, the depth cut into `split`; gates; x (rows, width); out, and its codes if wanted. A width is
// a multiple of 32 * BLOCKS.
KERNEL __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS) connect(
    float* streams, float* y, const float* gates_before, const float* parts, const float* weights, const float* added, u32 slots,
    const float* ones, float* normed, u8* normed_codes, uint2* normed_scales, float4* normed_minima, float epsilon, const u8* mix_weights,
    float* mix, const float* scale, const float* base, float* gates, u32 count, u32 rounds, float gates_epsilon, float* x,
    const float* norm_weight, float* out, u8* codes, uint2* scales, float4* minima, float norm_epsilon, u32 width, u32 split) {
    DYNAMIC_SHARED(float, shared);
    let_next_start();
    const u32 block = block_of_cluster(), t = threadIdx.x, depth = count * width, gates_width = rounds ? count * (2 + count) : count;
    const u64 row = blockIdx.y;
    u32 start = 0, end = 0;
    if (block < split) segment_of(depth, split, block, start, end);

    // The factors of norms, gates into the block and all of them before they are gates; all streams; the segment of them, normed; what the
    // block reads; weights.
    float *inverses = shared, *into = shared + 4, *mixed = into + STREAMS_MAX, *all = shared + FIXED_NUMBERS;
    float* segment = all + depth;
    float* sum = segment + longest_segment(depth, split);
    Ring ring = {(uint4*)(sum + width) + t, (const uint4*)mix_weights + (u64)(start / RUN) * 32 + t, 0, (end - start) / RUN};
    if (t < 32)
        for (int i = 0; i < STAGES - 1; i++) ring.bring();
    for (u32 i = t; i < end - start; i += THREADS) segment[i] = ones[start + i];
    const u32 each = width / BLOCKS, first = block * each;
    after_earlier_work();

    if (gates_before) {
        const Given given = {y, parts, weights, added, slots};
        for (u32 i = t; i < each; i += THREADS)
            spread(streams, given.at(row, first + i, width), gates_before, row, first + i, width, count);
        wait_for_cluster();
    }
    const float4* from = (const float4*)(streams + row * depth);
#pragma unroll 16
    for (u32 i = t; i < depth / 4; i += THREADS) ((float4*)all)[i] = __ldcg(from + i);
    __syncthreads();
    const float inverse = factor_of_norm(all, depth, epsilon, inverses, THREADS);
    for (u32 i = t; i < end - start; i += THREADS) segment[i] = (all[start + i] * inverse) * segment[i];
    __syncthreads();

    // Each block has a place for its sums, which all read before the first results are there.
    float* sums = x + row * width;
    const CodesOut coded = {codes, scales, minima}, normed_coded = {normed_codes, normed_scales, normed_minima};
    if (t >= 32) {
        for (u32 i = t - 32; i < end - start; i += OTHERS) {
            const u32 at = start + i;
            normed[row * depth + at] = segment[i];
            if (normed_codes) put_codes(quantized(segment[i]), t % 32, codes_place(row, at / 32, depth / 32), normed_coded);
        }
    } else if (block < split) {
        sums[block * GATES_MAX + t] = product_of(ring, segment);
    }
    wait_for_cluster();
    if (t < gates_width) {
        float v = __ldcg(sums + t);
        for (u32 s = 1; s < split; s++) v = v + __ldcg(sums + s * GATES_MAX + t);
        mixed[t] = v;
        if (block == 0) mix[row * gates_width + t] = v;
    }
    __syncthreads();
    arrive_at_cluster();

    if (t >= OTHERS) {
        // Few chains of many links, in one block.
        if (block == BLOCKS - 1) row_gates(mixed, scale, base, gates + row * gates_width, count, rounds, gates_epsilon);
    } else {
        if (t < count) into[t] = gate_of(mixed[t], scale[0], base[t], true, gates_epsilon);
        wait_for_threads(1, OTHERS);
        for (u32 i = t; i < width; i += OTHERS) {
            float v = 0.0f;
            for (u32 j = 0; j < count; j++) v = fma(into[j], all[j * width + i], v);
            sum[i] = v;
        }
        wait_for_threads(1, OTHERS);
        factor_of_norm(sum, width, norm_epsilon, inverses + 1, OTHERS);
    }
    cluster_arrived();
    if (t >= OTHERS) return;
    for (u32 i = t; i < each; i += OTHERS) {
        const u32 at = first + i;
        const float v = (sum[at] * inverses[1]) * norm_weight[at];
        x[row * width + at] = sum[at];
        out[row * width + at] = v;
        if (codes) put_codes(quantized(v), t % 32, codes_place(row, at / 32, width / 32), coded);
    }
}
