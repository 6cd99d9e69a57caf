// Turns the heads of rows; heads.cuh. A warp has a head, or two where heads are many; a block is several warps then.

// Two pairs of neighbours.
DEVICE float4 turned(float4 v, float2 cosine, float2 sine) {
    const float2 first = turned(v.x, v.y, cosine.x, sine.x), second = turned(v.z, v.w, cosine.y, sine.y);
    return make_float4(first.x, first.y, second.x, second.y);
}

// Two neighbours, heads of 128 * PIECES numbers, normed and turned on the way through registers: all is read and written once, and all
// that is read is on its way at once. Pairs are neighbours, and fours of features turn or do not.
template <int PIECES> DEVICE void two_heads(const Heads& all, u64 first, u64 count, float* shared) {
    const u32 lane = threadIdx.x % 32, width = PIECES * 128;
    const bool are_two = first + 1 < count;
    float4 v[2][PIECES], weight[PIECES];
    // The fours that turn, as far as a piece goes, are of the last pieces; each lane may have one in each.
    float2 cosine[2][PIECES], sine[2][PIECES];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const u64 head = first + (h && are_two);
        const float* of_row = all.angles + head / all.heads * 2 * all.pairs;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const u32 feature = p * 128 + lane * 4, pair = (feature - all.first_feature) / 2;
            v[h][p] = *(const float4*)(all.x + head * width + feature);
            const bool turns = all.angles && feature >= all.first_feature && pair < all.pairs;
            cosine[h][p] = turns ? *(const float2*)(of_row + pair) : make_float2(1.0f, 1.0f);
            sine[h][p] = turns ? *(const float2*)(of_row + all.pairs + pair) : make_float2(0.0f, 0.0f);
            if (all.way & 2) sine[h][p] = make_float2(-sine[h][p].x, -sine[h][p].y);
        }
    }
#pragma unroll
    for (int p = 0; p < PIECES; p++) weight[p] = *(const float4*)(all.weight + p * 128 + lane * 4);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (h && !are_two) return;
#pragma unroll
        for (int p = 0; p < PIECES; p++) *(float4*)(shared + p * 128 + lane * 4) = v[h][p];
        __syncwarp();
        const float inverse = all.factor(shared);
        __syncwarp();
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const u32 feature = p * 128 + lane * 4, pair = (feature - all.first_feature) / 2;
            float4 n = v[h][p];
            n = make_float4((n.x * inverse) * weight[p].x, (n.y * inverse) * weight[p].y, (n.z * inverse) * weight[p].z,
                            (n.w * inverse) * weight[p].w);
            if (all.angles && feature >= all.first_feature && pair < all.pairs) n = turned(n, cosine[h][p], sine[h][p]);
            *(float4*)(all.y + (first + h) * width + feature) = n;
        }
    }
}

// The norm of each head, with weights, comes first where the queue has joined it, and codes of the result last. `rows` of `heads`. What
// turns alone, in place, is all that is read and written of a head.
KERNEL rotate(const float* x, float* y, const float* weight, const float* angles, u32 heads, u32 head_dim, u32 first, u32 pairs, u32 way,
              float epsilon, u8* codes, uint2* scales, float4* minima, u32 rows, u32 beside) {
    DYNAMIC_SHARED(float, shared);
    const Turn turn(beside);
    const Heads all = {x, y, weight, epsilon, angles, heads, head_dim, first, pairs, way};
    const u32 warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u64 own = (u64)blockIdx.x * warps + warp, count = (u64)rows * heads;
    float* const numbers = shared + warp * head_dim;
    const HeldNumbers weights = all.begin();
    after_earlier_work(turn);
    const bool are_fours = !angles || ((way & 1) && first % 4 == 0 && pairs % 2 == 0);
    if (warps > 1 && weight && !codes && are_fours && head_dim % 128 == 0 && head_dim <= 512) {
        if (2 * own >= count) return;
        if (head_dim == 128) two_heads<1>(all, 2 * own, count, numbers);
        if (head_dim == 256) two_heads<2>(all, 2 * own, count, numbers);
        if (head_dim == 384) two_heads<3>(all, 2 * own, count, numbers);
        if (head_dim == 512) two_heads<4>(all, 2 * own, count, numbers);
        return;
    }
    const CodesOut out = {codes, scales, minima};
#pragma unroll 1
    for (u64 head = own; head < count; head += (u64)gridDim.x * warps) {
        if (x == y && angles && !weight && !codes) {
            const u32 pair = threadIdx.x % 32 < pairs ? threadIdx.x % 32 : 0;
            const float* of_row = angles + head / heads * 2 * pairs;
            all.turn(y + head * head_dim, head / heads, of_row[pair], of_row[pairs + pair]);
            continue;
        }
        all.compute(numbers, weights, all.bring(head / heads, head % heads), head / heads, head % heads);
        if (codes) all.code(numbers, head / heads, head % heads, out);
        __syncwarp();
    }
}
