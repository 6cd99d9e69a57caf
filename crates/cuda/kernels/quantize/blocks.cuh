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

DEVICE void put_codes(CodeBlock block, u32 lane, u64 at, const CodesOut& out) {
    out.codes[at * 32 + (lane & 15) / 4 * 8 + lane / 16 * 4 + lane % 4] = (u8)block.code;
    const int sum = (int)__reduce_add_sync(0xffffffffu, lane < 16 ? block.code : 0);
    const int second = (int)__reduce_add_sync(0xffffffffu, block.code) - sum;
    if (lane != 0) return;
    out.scales[at] = make_uint2(__float_as_uint(block.scale), ((u32)sum & 0xffffu) | ((u32)second << 16));
    const float weighed[3] = {block.scale * (float)(sum + second), block.scale * (float)sum, block.scale * (float)second};
    out.minima[at] = make_float4(block.scale, weighed[0], weighed[1], weighed[2]);
}

DEVICE u64 codes_place(u64 row, u64 block, u64 blocks) { return (row / 8 * blocks + block) * 8 + row % 8; }
