// The sum of squares of a run, in 16 lanes, which are the first 16 threads of a block; numerics.rs.

// Numbers of a lane that are loaded together.
#define BATCH 32

// Of one of the 16 lanes.
DEVICE float sum_of_squares(const float* run, u32 width) {
    const int count = threadIdx.x < 16 ? ((int)width - (int)threadIdx.x + 15) / 16 : 0;
    const float* own = run + threadIdx.x;
    float sum = 0.0f;
    int k = 0;
    for (; k + BATCH <= count; k += BATCH) {
        float some[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) some[j] = own[(k + j) * 16];
#pragma unroll
        for (int j = 0; j < BATCH; j++) sum = fma(some[j], some[j], sum);
    }
    for (; k < count; k++) sum = fma(own[k * 16], own[k * 16], sum);
    return sum;
}
