// Root-mean-square norm of runs of `width` numbers; numerics.rs. One block a run, a warp a part of it, whose numbers stay in registers.
//
// What stands around it in a model is done on the way: a sum before it, and codes of the result behind it. At one row a single block
// has the card to itself, and all is latency: what a thread loads it loads at once, and weights, which come from far, before its turn.

// x (runs, width), to which `added` is added first, if there is any. With `codes`, those of y as quantize.cu gives them; a run is a row
// then. Shared memory has a place for each part.
KERNEL __launch_bounds__(THREADS) rms_norm(float* x, const float* added, const float* weight, float* y, u8* codes, uint2* scales,
                                           float4* minima, u32 width, float epsilon) {
    DYNAMIC_SHARED(float, sums);
    let_next_start();
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, parts = parts_of(width);
    float weights[PART_NUMBERS], numbers[PART_NUMBERS];
    auto bring = [&](float (&to)[PART_NUMBERS], const float* from, u32 part) {
#pragma unroll
        for (u32 k = 0; k < PART_NUMBERS; k++) {
            const u32 i = part * PART_DEPTH + k * 32 + lane;
            to[k] = i < width ? from[i] : 0.0f;
        }
    };
    bring(weights, weight, warp);
    after_earlier_work();
    float* run = x + (u64)blockIdx.x * width;
    if (added) added += (u64)blockIdx.x * width;
    for (u32 part = warp; part < parts; part += warps) {
        bring(numbers, run, part);
        if (added) {
            float more[PART_NUMBERS];
            bring(more, added, part);
#pragma unroll
            for (u32 k = 0; k < PART_NUMBERS; k++) {
                const u32 i = part * PART_DEPTH + k * 32 + lane;
                numbers[k] = numbers[k] + more[k];
                if (i < width) run[i] = numbers[k];
            }
        }
        const float sum = squares_of(numbers);
        if (lane == 0) sums[part] = sum;
    }
    __syncthreads();
    const float inverse = factor_of_norm(sums, parts, width, epsilon);
    const CodesOut out = {codes, scales, minima};
    y += (u64)blockIdx.x * width;
    for (u32 part = warp; part < parts; part += warps) {
        // Where a warp has several parts, they come again.
        if (parts > warps) {
            bring(numbers, run, part);
            bring(weights, weight, part);
        }
#pragma unroll
        for (u32 k = 0; k < PART_NUMBERS; k++) {
            const u32 i = part * PART_DEPTH + k * 32 + lane;
            const float v = (numbers[k] * inverse) * weights[k];
            if (i < width) y[i] = v;
            if (codes && i - lane < width) put_codes(quantized(v), lane, codes_place(blockIdx.x, i / 32, width / 32), out);
        }
    }
}
