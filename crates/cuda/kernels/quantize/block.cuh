// The rounding of 32 numbers to 8-bit codes and a scale, a lane a number; numerics.rs, `quantize_block`.

struct CodeBlock {
    u32 code;
    float scale;
};

DEVICE CodeBlock quantized(float x) {
    const u32 largest = __reduce_max_sync(0xffffffffu, __float_as_uint(x) & 0x7fffffffu);
    const float amax = __uint_as_float(largest);
    // Both divisions at once: odd threads take the inverse.
    const bool is_odd = threadIdx.x & 1;
    const float quotient = (is_odd ? 127.0f : amax) / (is_odd ? amax : 127.0f);
    CodeBlock block = {0, __shfl_sync(0xffffffffu, quotient, 0)};
    const float inverse = __shfl_sync(0xffffffffu, quotient, 1);
    if (largest >= 0x7f800000u) {
        block.scale = not_a_number();
    } else if (amax > 0.0f) {
        if (inverse < __uint_as_float(0x7f800000u)) block.code = (u32)__float2int_rn(x * inverse);
    }
    return block;
}

// The same of several blocks, in the same bits: what all wait for, they wait for at once, and a lane has one of their divisions.
template <int COUNT> DEVICE_MEMBER void quantize_several(CodeBlock (&blocks)[COUNT], const float (&x)[COUNT]) {
    static_assert(COUNT <= 16, "two divisions of each");
    u32 largest[COUNT], of_lane = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        u32 top = __reduce_max_sync(0xffffffffu, __float_as_uint(x[i]) & 0x7fffffffu);
        // Or the compiler puts them all into memory, to look one up.
        asked(top);
        largest[i] = top;
        of_lane = threadIdx.x % 32 / 2 == i ? top : of_lane;
    }
    const float amax = __uint_as_float(of_lane);
    const bool is_odd = threadIdx.x & 1;
    const float quotient = (is_odd ? 127.0f : amax) / (is_odd ? amax : 127.0f);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const float scale = __shfl_sync(0xffffffffu, quotient, i * 2), inverse = __shfl_sync(0xffffffffu, quotient, i * 2 + 1);
        const bool has_codes = largest[i] > 0 && largest[i] < 0x7f800000u && inverse < __uint_as_float(0x7f800000u);
        blocks[i] = {has_codes ? (u32)__float2int_rn(x[i] * inverse) : 0, largest[i] >= 0x7f800000u ? not_a_number() : scale};
    }
}
