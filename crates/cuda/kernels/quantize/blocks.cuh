// Blocks of 32 activations as 8-bit codes (block.cuh). One warp a block.
//
// Rows go by eights, as the matrix instruction takes columns: [rows / 8][blocks][8], so that a tile of neighbours is read in one
// piece, and any other row is found all the same.
//
// Codes of a block lie as the second operand of the matrix instruction wants them (matmul/codes.cu): the thread with index t
// of 4 reads 8 bytes, the features 4t .. 4t+3 of each half. Beside each block lie its scale and the sums of its halves' codes, and for
// weights with minima (scale, scale * sum of all codes, scale * sum of each half's).

// Where codes go.
struct CodesOut {
    u8* codes;
    uint2* scales;
    float4* minima;
};

// What stands beside the codes of a block: of the sums of its halves.
DEVICE void put_scales(float scale, int sum, int second, u64 at, const CodesOut& out) {
    out.scales[at] = make_uint2(__float_as_uint(scale), ((u32)sum & 0xffffu) | ((u32)second << 16));
    const float weighed[3] = {scale * (float)(sum + second), scale * (float)sum, scale * (float)second};
    out.minima[at] = make_float4(scale, weighed[0], weighed[1], weighed[2]);
}

DEVICE void put_codes(CodeBlock block, u32 lane, u64 at, const CodesOut& out) {
    out.codes[at * 32 + (lane & 15) / 4 * 8 + lane / 16 * 4 + lane % 4] = (u8)block.code;
    const int sum = (int)__reduce_add_sync(0xffffffffu, lane < 16 ? block.code : 0);
    const int second = (int)__reduce_add_sync(0xffffffffu, block.code) - sum;
    if (lane == 0) put_scales(block.scale, sum, second, at, out);
}

DEVICE u64 codes_place(u64 row, u64 block, u64 blocks) { return (row / 8 * blocks + block) * 8 + row % 8; }

// Codes of the first `count` of several blocks of which a warp has the numbers: the first at `at`, the next `stride` places on. The count
// is the same in all lanes.
template <int COUNT>
DEVICE_MEMBER void put_codes_of(const float (&numbers)[COUNT], u32 count, u64 at, u32 stride, const CodesOut& out) {
    const u32 lane = threadIdx.x % 32;
    CodeBlock blocks[COUNT];
    quantize_several(blocks, numbers);
    u8* const of_lane = out.codes + at * 32 + (lane & 15) / 4 * 8 + lane / 16 * 4 + lane % 4;
    // A lane has what stands beside one of the blocks.
    int own_sum = 0, own_second = 0;
    float own_scale = 0.0f;
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        const int sum = (int)__reduce_add_sync(0xffffffffu, lane < 16 ? blocks[i].code : 0);
        const int second = (int)__reduce_add_sync(0xffffffffu, blocks[i].code) - sum;
        if (i < count) of_lane[i * stride * 32] = (u8)blocks[i].code;
        own_sum = lane == i ? sum : own_sum;
        own_second = lane == i ? second : own_second;
        own_scale = lane == i ? blocks[i].scale : own_scale;
    }
    if (lane < COUNT && lane < count) put_scales(own_scale, own_sum, own_second, at + lane * stride, out);
}
