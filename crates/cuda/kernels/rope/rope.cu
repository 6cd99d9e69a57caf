// Turns the heads of rows; heads.cuh. A warp has a head; a block is several warps where heads are many.

// The norm of each head, with weights, comes first where the queue has joined it, and codes of the result last. `rows` of `heads`. What
// turns alone, in place, is all that is read and written of a head.
KERNEL rotate(const float* x, float* y, const float* weight, const float* angles, u32 heads, u32 head_dim, u32 first, u32 pairs, u32 way,
              float epsilon, u8* codes, uint2* scales, float4* minima, u32 rows) {
    DYNAMIC_SHARED(float, shared);
    let_next_start();
    const Heads all = {x, y, weight, epsilon, angles, heads, head_dim, first, pairs, way};
    const u32 warp = threadIdx.x / 32;
    const u64 head = (u64)blockIdx.x * (blockDim.x / 32) + warp, row = head / heads;
    all.begin();
    after_earlier_work();
    if (row >= rows) return;
    if (x == y && angles && !weight && !codes) {
        all.turn(y + head * head_dim, row, threadIdx.x % 32);
        return;
    }
    float* const numbers = shared + warp * head_dim;
    all.compute(numbers, row, head % heads);
    const CodesOut out = {codes, scales, minima};
    if (codes) all.code(numbers, row, head % heads, out);
}
