// Root-mean-square norm of runs of `width` numbers; numerics.rs. The sum of squares runs in 16 lanes, which are 16 threads of the
// first warp; then all threads scale. One block a run.
//
// What stands around it in a model is done on the way: a sum before it, and codes of the result behind it.

// x (runs, width), to which `added` is added first, if there is any. With `codes`, those of y as quantize.cu gives them; a run is a row
// then. The run lies in shared memory, if `is_shared`.
KERNEL rms_norm(float* x, const float* added, const float* weight, float* y, u8* codes, uint2* scales, float4* minima, u32 width,
                float epsilon, u32 is_shared) {
    DYNAMIC_SHARED(float, shared);
    __shared__ float inverse;
    begin_in_turn();
    const u64 first = (u64)blockIdx.x * width;
    const float* run = is_shared ? shared : x + first;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float v = x[first + i];
        if (added) {
            v = v + added[first + i];
            x[first + i] = v;
        }
        if (is_shared) shared[i] = v;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        float lane = 0.0f;
        if (threadIdx.x < 16) {
#pragma unroll 16
            for (u32 i = threadIdx.x; i < width; i += 16) lane = fma(run[i], run[i], lane);
        }
        float mean = add_lanes(lane) / (float)width;
        if (threadIdx.x == 0) inverse = 1.0f / __fsqrt_rn(mean + epsilon);
    }
    __syncthreads();
    const CodesOut out = {codes, scales, minima};
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float v = (run[i] * inverse) * weight[i];
        y[first + i] = v;
        if (codes) put_codes(quantized(v), threadIdx.x % 32, codes_place(blockIdx.x, i / 32, width / 32), out);
    }
}
