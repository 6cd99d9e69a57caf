// Root-mean-square norm of runs of `width` numbers; numerics.rs. The sum of squares runs in 16 lanes, which are 16 threads of the
// first warp; then all threads scale. One block a run.
//
// What stands around it in a model is done on the way: a sum before it, and codes of the result behind it. At one row a single block
// has the card to itself, and all is latency: what a thread loads it loads at once, and weights, which come from far, before its turn.

// Numbers of a run that a thread takes at a time.
#define HELD 4

// x (runs, width), to which `added` is added first, if there is any. With `codes`, those of y as quantize.cu gives them; a run is a row
// then. The run lies in shared memory, if `is_shared`.
KERNEL rms_norm(float* x, const float* added, const float* weight, float* y, u8* codes, uint2* scales, float4* minima, u32 width,
                float epsilon, u32 is_shared) {
    DYNAMIC_SHARED(float, shared);
    __shared__ float inverse;
    let_next_start();
    float weights[HELD];
#pragma unroll
    for (u32 h = 0; h < HELD; h++) {
        const u32 i = h * blockDim.x + threadIdx.x;
        weights[h] = i < width ? weight[i] : 0.0f;
    }
    after_earlier_work();
    float* run = x + (u64)blockIdx.x * width;
    if (added) added += (u64)blockIdx.x * width;
    for (u32 first = threadIdx.x; first < width; first += HELD * blockDim.x) {
        float v[HELD], more[HELD];
#pragma unroll
        for (u32 h = 0; h < HELD; h++) {
            const u32 i = first + h * blockDim.x;
            v[h] = i < width ? run[i] : 0.0f;
            more[h] = added && i < width ? added[i] : 0.0f;
        }
#pragma unroll
        for (u32 h = 0; h < HELD; h++) {
            const u32 i = first + h * blockDim.x;
            if (added) v[h] = v[h] + more[h];
            if (added && i < width) run[i] = v[h];
            if (is_shared && i < width) shared[i] = v[h];
        }
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const float mean = add_lanes(is_shared ? sum_of_squares(shared, width) : sum_of_squares(run, width)) / (float)width;
        if (threadIdx.x == 0) inverse = 1.0f / __fsqrt_rn(mean + epsilon);
    }
    __syncthreads();
    const CodesOut out = {codes, scales, minima};
    y += (u64)blockIdx.x * width;
    for (u32 first = threadIdx.x; first < width; first += HELD * blockDim.x) {
#pragma unroll
        for (u32 h = 0; h < HELD; h++) {
            const u32 i = first + h * blockDim.x;
            if (i >= width) continue;
            if (first != threadIdx.x) weights[h] = weight[i];
            const float v = ((is_shared ? shared[i] : run[i]) * inverse) * weights[h];
            y[i] = v;
            if (codes) put_codes(quantized(v), threadIdx.x % 32, codes_place(blockIdx.x, i / 32, width / 32), out);
        }
    }
}
