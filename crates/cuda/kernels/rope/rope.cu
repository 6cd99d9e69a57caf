// Turns the heads of each row; heads.cuh. A warp is a block.

// The norm of each head, with weights, comes first where the queue has joined it, and codes of the result last.
KERNEL rotate(const float* x, float* y, const float* weight, const float* angles, u32 heads, u32 head_dim, u32 first, u32 pairs, u32 way,
              float epsilon, u8* codes, uint2* scales, float4* minima) {
    DYNAMIC_SHARED(float, shared);
    let_next_start();
    const Heads all = {x, y, weight, epsilon, angles, heads, head_dim, first, pairs, way};
    all.begin();
    after_earlier_work();
    all.compute(shared, blockIdx.y, blockIdx.x);
    const CodesOut out = {codes, scales, minima};
    if (codes) all.code(shared, blockIdx.y, blockIdx.x, out);
}
