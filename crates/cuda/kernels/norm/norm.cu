// Root-mean-square norm of runs of `width` numbers; numerics.rs. The sum of squares runs in 16 lanes, which are 16 threads of the
// first warp; then all threads scale. One block a run.

KERNEL rms_norm(const float* x, const float* weight, float* y, u32 width, float epsilon) {
    __shared__ float inverse;
    const float* in = x + (u64)blockIdx.x * width;
    if (threadIdx.x < 32) {
        float lane = 0.0f;
        if (threadIdx.x < 16) {
#pragma unroll 8
            for (u32 i = threadIdx.x; i < width; i += 16) lane = fma(in[i], in[i], lane);
        }
        float mean = add_lanes(lane) / (float)width;
        if (threadIdx.x == 0) inverse = 1.0f / __fsqrt_rn(mean + epsilon);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[(u64)blockIdx.x * width + i] = (in[i] * inverse) * weight[i];
}
