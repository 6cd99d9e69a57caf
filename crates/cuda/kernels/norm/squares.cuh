// Sums of squares, part by part; numerics.rs, `sum_of_squares`. A warp has a part, a lane two of its 64 lanes.

static_assert(SQUARE_LANES == 64 && PART_DEPTH % SQUARE_LANES == 0, "a lane of a warp has two of a sum");

// Numbers of a part that a lane has: lane, lane + 32, …
#define PART_NUMBERS (PART_DEPTH / 32)

// Of `count` numbers. All lanes have the sum.
DEVICE float squares_of_part(const float* part, u32 count) {
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (u32 k = 0; k < PART_NUMBERS; k += 2) {
        const u32 i = k * 32 + threadIdx.x % 32;
        const float a = i < count ? part[i] : 0.0f, b = i + 32 < count ? part[i + 32] : 0.0f;
        low = fma(a, a, low);
        high = fma(b, b, high);
    }
    float sum = low + high;
#pragma unroll
    for (int width = 16; width > 0; width /= 2) sum = sum + __shfl_xor_sync(0xffffffffu, sum, width);
    return sum;
}

DEVICE u32 parts_of(u32 width) { return (width + PART_DEPTH - 1) / PART_DEPTH; }

// The factor of a norm, from the sums of parts.
DEVICE float factor_of_norm(const float* sums, u32 parts, u32 width, float epsilon) {
    return 1.0f / __fsqrt_rn(sum_in_order(sums, 1, parts) / (float)width + epsilon);
}

// The same of numbers that all threads of a block see, by all of them, each of which has it; `sums` has a place for each part. The
// numbers may change only once threads have met again.
DEVICE float norm_of_block(const float* numbers, u32 width, float epsilon, float* sums) {
    const u32 parts = parts_of(width);
#pragma unroll 1
    for (u32 p = threadIdx.x / 32; p < parts; p += blockDim.x / 32) {
        const float sum = squares_of_part(numbers + p * PART_DEPTH, min(width - p * PART_DEPTH, (u32)PART_DEPTH));
        if (threadIdx.x % 32 == 0) sums[p] = sum;
    }
    __syncthreads();
    return factor_of_norm(sums, parts, width, epsilon);
}
