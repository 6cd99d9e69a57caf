// From what a block gave to what the next one reads, of several residual streams, at once: the streams take it in (spread_streams), are
// normed together, and projected onto their gates; by these they are summed (collapse_streams), and the sum is normed. Every number is
// made by the operations that the kernels of these ops do, in their order, and every tensor is written that they would write.
//
// A row is a cluster of BLOCKS blocks, which share the parts of its streams: a block has the same features of all of them, and keeps
// these to the end. Sums of parts go to the shared memory of all blocks, three times: squares, products with the rows of the
// projection, and squares of the result. A lane has a chain of the products (chains.cuh), whose weights are in registers before it begins.
// The matrix between streams is left to one warp more, which no other waits for.
//
// To meet, a cluster's blocks wait for whatever they have written to the card's memory so far. So what they write goes there right after
// they have said that they came, and long before they say so again.

// Threads that do not make gates.
#define WORKERS (THREADS - 32)
// Numbers of a row of gates, at most, and as many rows as a warp has chains of a part.
#define GATES_MAX 32
#define ROWS_EACH 8
// Numbers of gates' scales and base.
#define SCALES_MAX 3

static_assert(FIXED_NUMBERS >= STREAMS_MAX + 2 * GATES_MAX + SCALES_MAX + 1 && FIXED_NUMBERS % 4 == 0, "room for gates");

// Where number i of a block's features is for the chains, which are apart by as much as spreads them over the banks.
DEVICE u32 place_of(u32 i) { return i + i / CHAIN_DEPTH * 4; }

// streams (rows, count * width), which take in `y` by `gates_before`, if there are any; normed, weights `ones`; mix (rows, gates), weights
// of `mix_weights` as floats.cu has them; gates; x (rows, width); out, and its codes if wanted. A width is whole parts.
KERNEL __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(THREADS) connect(
    float* streams, float* y, const float* gates_before, const float* parts, const float* weights, const float* added, u32 slots,
    const float* ones, float* normed, u8* normed_codes, uint2* normed_scales, float4* normed_minima, float epsilon, const u8* mix_weights,
    float* mix, const float* scale, const float* base, float* gates, u32 rounds, float gates_epsilon, float* x,
    const float* norm_weight, float* out, u8* codes, uint2* scales, float4* minima, float norm_epsilon, u32 width) {
    DYNAMIC_SHARED(float, shared);
    let_next_start();
    arrive_at_cluster();
    constexpr u32 count = STREAMS_MAX;
    const u32 block = block_of_cluster(), t = threadIdx.x, lane = t % 32, warp = t / 32;
    const u32 depth = count * width, gates_width = rounds ? count * (2 + count) : count;
    const u64 row = blockIdx.y;
    // The block's parts of each stream.
    const u32 all_parts = width / PART_DEPTH, first_part = all_parts * block / BLOCKS;
    const u32 own_parts = all_parts * (block + 1) / BLOCKS - first_part, each = own_parts * PART_DEPTH, first = first_part * PART_DEPTH;
    const u32 own_parts_max = (all_parts + BLOCKS - 1) / BLOCKS, chains_stride = place_of(own_parts_max * PART_DEPTH);

    // Gates into the block; all before they are gates; what makes them gates; sums of parts, of all blocks: of products, of squares of
    // streams, of squares of the result. Then what is the block's own: streams, the same normed, and the result.
    float *into = shared, *mixed = into + STREAMS_MAX, *gate_base = mixed + GATES_MAX, *gate_scale = gate_base + GATES_MAX;
    float *products = shared + FIXED_NUMBERS, *squares = products + count * all_parts * GATES_MAX;
    float *result_squares = squares + count * all_parts, *inverse = result_squares + all_parts;
    float* own = shared + (FIXED_NUMBERS + count * all_parts * (GATES_MAX + 1) + all_parts + 1 + 3) / 4 * 4;
    float *own_normed = own + count * own_parts_max * PART_DEPTH, *result = own_normed + count * chains_stride;
    auto place = [&](u32 stream, u32 i) { return stream * chains_stride + place_of(i); };

    // A warp takes so many rows of the projection and a part at a time.
    const u32 row_groups = (gates_width + ROWS_EACH - 1) / ROWS_EACH, items = count * own_parts * row_groups;
    const uint4* of_row = (const uint4*)mix_weights + lane % ROWS_EACH;
    auto part_of = [&](u32 item) { return item / row_groups; };
    auto first_of = [&](u32 item) {
        const u32 part = part_of(item);
        return part / own_parts * width + first + part % own_parts * PART_DEPTH + lane / ROWS_EACH * CHAIN_DEPTH;
    };
    Weights<1> mine;
    if (warp < items) mine.bring_all(of_row + warp % row_groups * ROWS_EACH, 0, first_of(warp), depth);
    if (t < gates_width) gate_base[t] = base[t];
    if (t < SCALES_MAX && (rounds || t == 0)) gate_scale[t] = scale[t];
    float last_weight = t < each ? norm_weight[first + t] : 0.0f;
#pragma unroll 1
    for (u32 i = t; i < each; i += THREADS) {
        float numbers[count];
#pragma unroll
        for (u32 j = 0; j < count; j++) numbers[j] = ones[j * width + first + i];
#pragma unroll
        for (u32 j = 0; j < count; j++) own_normed[place(j, i)] = numbers[j];
    }
    after_earlier_work();

    float* streams_here = streams + row * depth + first;
    const Given given = {y, parts, weights, added, slots};
#pragma unroll 1
    for (u32 i = t; i < each; i += THREADS) {
        float numbers[count];
        if (gates_before) {
            // Until there is a result, what the block gave is there.
            result[i] = spread(streams, given, gates_before, row, first + i, width, count, numbers);
        } else {
#pragma unroll
            for (u32 j = 0; j < count; j++) numbers[j] = streams_here[j * width + i];
        }
#pragma unroll
        for (u32 j = 0; j < count; j++) own[j * each + i] = numbers[j];
    }
    __syncthreads();
    // All blocks are there by now.
    cluster_arrived();
#pragma unroll 1
    for (u32 part = warp; part < count * own_parts; part += THREADS / 32) {
        const float sum = squares_of_part(own + part * PART_DEPTH, PART_DEPTH);
        if (lane < BLOCKS) store_in_block(squares + part / own_parts * all_parts + first_part + part % own_parts, lane, sum);
    }
    arrive_at_cluster();
    if (parts)
#pragma unroll 1
        for (u32 i = t; i < each; i += THREADS) y[row * width + first + i] = result[i];
    cluster_arrived();
    if (warp == 0) {
        const float factor = factor_of_norm(squares, count * all_parts, depth, epsilon);
        if (t == 0) *inverse = factor;
    }
    __syncthreads();
#pragma unroll 1
    for (u32 i = t; i < each; i += THREADS) {
#pragma unroll
        for (u32 j = 0; j < count; j++) own_normed[place(j, i)] = (own[j * each + i] * *inverse) * own_normed[place(j, i)];
    }
    __syncthreads();

#pragma unroll 1
    for (u32 item = warp; item < items; item += THREADS / 32) {
        const u32 part = part_of(item), begin = first_of(item), stream = part / own_parts, of_stream = part % own_parts;
        const u32 first_row = item % row_groups * ROWS_EACH;
        if (item != warp) mine.bring_all(of_row + first_row, 0, begin, depth);
        const float* in = own_normed + place(stream, of_stream * PART_DEPTH + lane / ROWS_EACH * CHAIN_DEPTH);
        float acc[1][1] = {};
#pragma unroll
        for (u32 k = 0; k < CHAIN_DEPTH; k += STEP_FEATURES) {
            // Behind the chain's last step comes nothing.
            const u32 next = k + STEP_FEATURES < CHAIN_DEPTH ? begin + k + STEP_FEATURES : depth;
            mine.go_on(acc, in + k, 0, of_row + first_row, 0, begin + k, next, depth);
        }
        const float sum = part_of_chains(acc[0][0], ROWS_EACH, PART_DEPTH);
        const float of_lane = __shfl_sync(0xffffffffu, sum, lane % ROWS_EACH);
        float* to = products + (stream * all_parts + first_part + of_stream) * GATES_MAX + first_row + lane % ROWS_EACH;
#pragma unroll 1
        for (u32 b = lane / ROWS_EACH; b < BLOCKS; b += 32 / ROWS_EACH) store_in_block(to, b, of_lane);
    }
    arrive_at_cluster();
    const CodesOut coded = {codes, scales, minima}, normed_coded = {normed_codes, normed_scales, normed_minima};
#pragma unroll 1
    for (u32 i = t; i < each; i += THREADS) {
        for (u32 j = 0; j < count; j++) {
            const u32 at = j * width + first + i;
            const float v = own_normed[place(j, i)];
            normed[row * depth + at] = v;
            if (normed_codes) put_codes(quantized(v), lane, codes_place(row, at / 32, depth / 32), normed_coded);
        }
    }
    cluster_arrived();
    if (t < gates_width) {
        const float v = sum_in_order(products + t, GATES_MAX, count * all_parts);
        mixed[t] = v;
        if (t < count) into[t] = gate_of(v, gate_scale[0], gate_base[t], true, gates_epsilon);
        if (block == 0) mix[row * gates_width + t] = v;
    }
    __syncthreads();

    if (t >= WORKERS) {
        // Few chains of many links, in one block.
        arrive_at_cluster();
        if (block == BLOCKS - 1) row_gates(mixed, gate_scale, gate_base, gates + row * gates_width, count, rounds, gates_epsilon);
        cluster_arrived();
        return;
    }
#pragma unroll 1
    for (u32 i = t; i < each; i += WORKERS) {
        float v = 0.0f;
#pragma unroll
        for (u32 j = 0; j < count; j++) v = fma(into[j], own[j * each + i], v);
        result[i] = v;
    }
    wait_for_threads(1, WORKERS);
#pragma unroll 1
    for (u32 part = warp; part < own_parts; part += WORKERS / 32) {
        const float sum = squares_of_part(result + part * PART_DEPTH, PART_DEPTH);
        if (lane < BLOCKS) store_in_block(result_squares + first_part + part, lane, sum);
    }
    arrive_at_cluster();
#pragma unroll 1
    for (u32 i = t; i < each; i += WORKERS) {
        x[row * width + first + i] = result[i];
        if (gates_before)
#pragma unroll
            for (u32 j = 0; j < count; j++) streams_here[j * width + i] = own[j * each + i];
    }
    cluster_arrived();
    const float factor = factor_of_norm(result_squares, all_parts, width, norm_epsilon);
#pragma unroll 1
    for (u32 i = t; i < each; i += WORKERS) {
        const u32 at = first + i;
        if (i != t) last_weight = norm_weight[at];
        const float v = (result[i] * factor) * last_weight;
        out[row * width + at] = v;
        if (codes) put_codes(quantized(v), lane, codes_place(row, at / 32, width / 32), coded);
    }
}
