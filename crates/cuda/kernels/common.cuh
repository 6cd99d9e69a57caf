// What every kernel stands on: the fixed sequences of IEEE operations of crates/ops/src/math.rs.
//
// Sources are compiled without contraction: a multiplication and an addition are fused only where `fma` is written, as the
// canonical order (crates/ops/src/numerics.rs) asks.
//
// Where a loop mostly has one turn it is told not to be unrolled. What a kernel reads is asked for in batches of a fixed number, by
// predicate: in a loop whose bound is known at run time alone, unrolled or not, each load waits for the one before it.

#ifndef STAMP
#error "compile kernels through crates/cuda/src/compiler: it defines the tile and its stamp"
#endif
// Read back when the module is loaded: a binary compiled for another tile is refused.
extern "C" __device__ const u64 tile_stamp = STAMP;

// 1.5 * 2^23 as bits and as a number. Added to an integer below 2^22, the bits are those of the float sum: an exact conversion
// for the price of an addition.
#define MAGIC_BITS 0x4B400000
#define MAGIC 12582912.0f

// Two to so many halvings.
#define UNIT_SCALE (1.0f / (float)(1 << UNIT_HALVINGS))

DEVICE float exact(int magic_sum) { return __int_as_float(magic_sum) - MAGIC; }

DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// a / b as division rounds it, by the operations that it is made of where both are moderate and not zero, so that nothing on the way is
// too large or too small: no branch.
DEVICE float moderate_quotient(float a, float b) {
    const float near = reciprocal_near(b), inverse = fma(near, fma(-b, near, 1.0f), near);
    float quotient = a * inverse;
    quotient = fma(inverse, fma(-b, quotient, a), quotient);
    return fma(inverse, fma(-b, quotient, a), quotient);
}

// A pair of features turned by an angle; numerics.rs, `rotate`.
DEVICE float2 turned(float a, float b, float cosine, float sine) {
    return make_float2(fma(a, cosine, -(b * sine)), fma(b, cosine, a * sine));
}

DEVICE float not_a_number() { return __uint_as_float(0x7fc00000u); }

// Numbers as whole ones in the order of their choice, the higher first: NaN before every number, both zeros equal. Zero is no number's.
DEVICE u32 order_of(float value) {
    const u32 bits = __float_as_uint(value + 0.0f);
    // Without branches.
    const u32 order = bits ^ ((u32)((int)bits >> 31) | 0x80000000u);
    return value != value ? 0xffffffffu : order;
}

// e^x; math.rs, `exp`.
DEVICE float canonical_exp(float x) {
    if (x != x) return x;
    if (x < -87.0f) return 0.0f;
    if (x > 88.3f) x = 88.3f;
    float n = fma(x, 1.44269504088896340736f, MAGIC) - MAGIC;
    float r = fma(n, 2.1219444e-4f, fma(n, -0.6933594f, x));
    float p = (float)(1.0f / 5040.0f);
    p = fma(p, r, 1.0f / 720.0f);
    p = fma(p, r, 1.0f / 120.0f);
    p = fma(p, r, 1.0f / 24.0f);
    p = fma(p, r, 1.0f / 6.0f);
    p = fma(p, r, 0.5f);
    p = fma(p, r, 1.0f);
    p = fma(p, r, 1.0f);
    return p * __uint_as_float((u32)(__float2int_rz(n) + 127) << 23);
}

// cap * tanh(x / cap); math.rs, `soft_cap`.
DEVICE float canonical_soft_cap(float x, float cap) {
    return cap * (1.0f - 2.0f / (canonical_exp(2.0f * (x / cap)) + 1.0f));
}

// The sum of `count` numbers in order, `stride` apart; more than none. Those of a batch are asked for before the first is added.
DEVICE float sum_in_order(const float* numbers, u32 stride, u32 count) {
    float sum = numbers[0];
#pragma unroll 1
    for (u32 first = 1; first < count; first += 8) {
        float batch[8];
#pragma unroll
        for (u32 i = 0; i < 8; i++) batch[i] = first + i < count ? numbers[(first + i) * stride] : 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++)
            if (first + i < count) sum = sum + batch[i];
    }
    return sum;
}

// Folds 16 lanes by halves; numerics.rs, `add_lanes`. Lanes of a warp above the 16 hold anything. Lane 0 has the sum.
DEVICE float add_lanes(float lane) {
#pragma unroll
    for (int width = 8; width > 0; width /= 2) lane = lane + __shfl_down_sync(0xffffffffu, lane, width, 16);
    return lane;
}
