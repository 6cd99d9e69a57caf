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
