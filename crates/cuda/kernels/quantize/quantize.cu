// Activations to 8-bit codes, each block of 32 features by itself; blocks.cuh. One warp a block.

// x (rows, blocks * 32). With `fine`, rows `rows ..` of the output are the codes of what the first codes leave.
KERNEL quantize(const float* x, u8* codes, uint2* scales, float4* minima, u32 rows, u32 blocks, u32 fine) {
    after_earlier_work();
    u64 at = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    u32 lane = threadIdx.x % 32;
    if (at >= (u64)rows * blocks) return;
    const CodesOut out = {codes, scales, minima};
    float value = x[at * 32 + lane];
    CodeBlock block = quantized(value);
    put_codes(block, lane, codes_place(at / blocks, at % blocks, blocks), out);
    if (!fine) return;
    float rest = block.scale != block.scale ? 0.0f : fma(-block.scale, (float)(int)block.code, value);
    put_codes(quantized(rest), lane, codes_place(rows + at / blocks, at % blocks, blocks), out);
}
