// Rounding to small floats, a number a thread; crates/ops/src/rounding.rs.

DEVICE float power(int exponent) { return __uint_as_float((u32)(exponent + 127) << 23); }

DEVICE int exponent_of(float x) { return (int)((__float_as_uint(x) >> 23) & 255) - 127; }

// The nearest multiple of a step that goes with the exponent: `fraction_bits` and `exponent_min` of the kind, up to `largest`.
DEVICE float rounded(float x, int fraction_bits, int exponent_min, float largest) {
    x = x > largest ? largest : x;
    x = x < -largest ? -largest : x;
    int exponent = exponent_of(x);
    exponent = exponent > exponent_min ? exponent : exponent_min;
    float magic = 1.5f * power(exponent - fraction_bits + 23);
    return (x + magic) - magic;
}

// The exponent of the scale of numbers whose largest is `size`.
DEVICE int scale_exponent(float size, int largest_exponent, float largest_fraction) {
    float fraction = __uint_as_float((__float_as_uint(size) & 0x007fffffu) | 0x3f800000u);
    return exponent_of(size) - largest_exponent + (fraction > largest_fraction ? 1 : 0);
}

// Numbers of a block share the scale of its largest, which is at least the floor.
DEVICE float scaled(float v, float size, int fraction_bits, int exponent_min, int largest_exponent, float largest_fraction) {
    int scale = scale_exponent(size, largest_exponent, largest_fraction);
    return rounded(v * power(-scale), fraction_bits, exponent_min, largest_fraction * power(largest_exponent)) * power(scale);
}

// The largest size among the lanes of a warp, at least `floor`; NaN is none.
DEVICE float largest_of_warp(float v, float floor) {
    float size = v < 0.0f ? -v : v;
    size = size > floor ? size : floor;
#pragma unroll
    for (int width = 16; width > 0; width /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, size, width);
        size = other > size ? other : size;
    }
    return size;
}

// Below this no block of E4M3 has its largest looked at.
#define FP8_FLOOR 1e-4f

// A head's number in each thread of a block, of which the first `features` become E4M3 in blocks of 64. `sizes` has a place a warp.
DEVICE float rounded_to_fp8(float v, u32 features, float* sizes) {
    const u32 t = threadIdx.x, warp = t / 32;
    float size = largest_of_warp(t < features ? v : 0.0f, FP8_FLOOR);
    if (t % 32 == 0) sizes[warp] = size;
    __syncthreads();
    const u32 other = warp ^ 1;
    if (other < blockDim.x / 32 && sizes[other] > size) size = sizes[other];
    return t < features ? scaled(v, size, 3, -6, 8, 1.75f) : v;
}

// The same of E2M1.
#define FP4_FLOOR (6.0f * __uint_as_float(0x00800000u))

// A number to E2M1, in a block whose largest is `size`.
DEVICE float to_fp4(float v, float size) { return scaled(v, size, 1, 0, 2, 1.5f); }

// The same by the Hadamard matrix of `width`, a power of two, and then E2M1 in blocks of 32. `numbers` has a place a thread.
DEVICE float turned_to_fp4(float v, u32 width, float factor, float* numbers) {
    const u32 t = threadIdx.x;
    v = t < width ? v : 0.0f;
#pragma unroll 1
    for (u32 stride = 1; stride < width; stride *= 2) {
        __syncthreads();
        numbers[t] = v;
        __syncthreads();
        float other = numbers[t ^ stride];
        v = t & stride ? other - v : v + other;
    }
    v = v * factor;
    return to_fp4(v, largest_of_warp(t < width ? v : 0.0f, FP4_FLOOR));
}
