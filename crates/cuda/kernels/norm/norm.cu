// Root-mean-square norm of runs of `width` numbers; numerics.rs. One block a run.
//
// What stands around it in a model is done on the way: a sum before it, and codes of the result behind it. At one row a single block
// has the card to itself, and all is latency: many threads have few numbers each, all asked for at once, and weights come before the turn.

// Numbers of a thread that are asked for at once: one behind the other, each would wait for the one before it.
#define HELD 4

// x (runs, width), to which `added` is added first, if there is any. With `codes`, those of y as quantize.cu gives them; a run is a row
// then. Shared memory has a place for each part, and, where `is_held`, for numbers and weights of a run.
KERNEL __launch_bounds__(THREADS) rms_norm(float* x, const float* added, const float* weight, float* y, u8* codes, uint2* scales,
                                           float4* minima, u32 width, float epsilon, u32 is_held) {
    DYNAMIC_SHARED(float, shared);
    let_next_start();
    const u32 lane = threadIdx.x % 32, first_of_warp = threadIdx.x - lane, parts = parts_of(width);
    float* run = x + (u64)blockIdx.x * width;
    float *sums = shared, *numbers = is_held ? sums + parts : run, *held_weights = numbers + width;
    if (is_held)
#pragma unroll 1
        for (u32 first = threadIdx.x; first < width; first += HELD * blockDim.x) {
            float of[HELD];
#pragma unroll
            for (u32 k = 0; k < HELD; k++) of[k] = first + k * blockDim.x < width ? weight[first + k * blockDim.x] : 0.0f;
#pragma unroll
            for (u32 k = 0; k < HELD; k++)
                if (first + k * blockDim.x < width) held_weights[first + k * blockDim.x] = of[k];
        }
    const float* weights = is_held ? held_weights : weight;
    after_earlier_work();
    if (added) added += (u64)blockIdx.x * width;
#pragma unroll 1
    for (u32 first = threadIdx.x; first < width; first += HELD * blockDim.x) {
        float v[HELD], more[HELD];
#pragma unroll
        for (u32 k = 0; k < HELD; k++) {
            const u32 i = first + k * blockDim.x;
            v[k] = i < width ? run[i] : 0.0f;
            more[k] = added && i < width ? added[i] : 0.0f;
        }
#pragma unroll
        for (u32 k = 0; k < HELD; k++) {
            const u32 i = first + k * blockDim.x;
            if (i >= width) break;
            if (added) run[i] = v[k] = v[k] + more[k];
            if (is_held) numbers[i] = v[k];
        }
    }
    __syncthreads();
    const float inverse = norm_of_block(numbers, width, epsilon, sums);
    const CodesOut out = {codes, scales, minima};
    y += (u64)blockIdx.x * width;
#pragma unroll 1
    for (u32 first = first_of_warp; first < width; first += blockDim.x) {
        const u32 i = first + lane;
        const float v = i < width ? (numbers[i] * inverse) * weights[i] : 0.0f;
        if (i < width) y[i] = v;
        if (codes) put_codes(quantized(v), lane, codes_place(blockIdx.x, first / 32, width / 32), out);
    }
}
