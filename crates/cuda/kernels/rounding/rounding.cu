// Rounding of heads to small floats; crates/ops/src/rounding.rs. One block a head, one thread a number, or a warp a head.

// x (heads, width). `features` of each head to E4M3 in blocks of 64.
KERNEL round_fp8(float* x, u32 width, u32 features) {
    __shared__ float sizes[MOST / 32];
    after_earlier_work();
    const u32 t = threadIdx.x;
    float* head = x + (u64)blockIdx.x * width;
    const float v = rounded_to_fp8(t < features ? head[t] : 0.0f, features, sizes);
    if (t < features) head[t] = v;
}

// A head of 32 * EACH numbers, a warp's: a lane has neighbours. It is turned first, where there are angles of its row: neighbours pair.
template <int EACH> DEVICE void head_to_fp4(float* head, float factor, const float* angles, u32 first, u32 pairs, u32 way) {
    const u32 lane = threadIdx.x % 32;
    float v[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) v[e] = head[lane * EACH + e];
#pragma unroll
    for (int e = 0; e + 1 < EACH; e += 2) {
        const u32 pair = (lane * EACH + e - first) / 2;
        if (!angles || lane * EACH + e < first || pair >= pairs) continue;
        const float cosine = angles[pair], sine = way & 2 ? -angles[pairs + pair] : angles[pairs + pair];
        const float2 pair_turned = turned(v[e], v[e + 1], cosine, sine);
        v[e] = pair_turned.x;
        v[e + 1] = pair_turned.y;
    }
#pragma unroll
    for (int stride = 1; stride < EACH; stride *= 2)
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            if (e & stride) continue;
            const float a = v[e], b = v[e | stride];
            v[e] = a + b;
            v[e | stride] = a - b;
        }
#pragma unroll
    for (u32 stride = 1; stride < 32; stride *= 2)
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const float other = __shfl_xor_sync(0xffffffffu, v[e], (int)stride);
            v[e] = lane & stride ? other - v[e] : v[e] + other;
        }
    float size = FP4_FLOOR;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        v[e] = v[e] * factor;
        const float own = v[e] < 0.0f ? -v[e] : v[e];
        size = own > size ? own : size;
    }
    // A block is 32 numbers.
#pragma unroll
    for (int width = 16 / EACH; width > 0; width /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, size, width);
        size = other > size ? other : size;
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) head[lane * EACH + e] = to_fp4(v[e], size);
}

// x (count, width), of rows of `heads`: by the Hadamard matrix of `width`, a power of two, then to E2M1 in blocks of 32. Up to 256 numbers
// are a warp's, and may be turned first; more are a block's.
KERNEL round_hadamard_fp4(float* x, u32 width, float factor, u32 count, const float* angles, u32 heads, u32 first, u32 pairs, u32 way,
                          u32 beside) {
    __shared__ float numbers[MOST];
    const Turn turn(beside);
    after_earlier_work(turn);
    const u32 t = threadIdx.x;
    if (width >= 32 && width <= 256) {
        const u64 own = (u64)blockIdx.x * (blockDim.x / 32) + t / 32;
        if (own >= count) return;
        float* head = x + own * width;
        if (angles) angles += own / heads * 2 * pairs;
        if (width == 32) head_to_fp4<1>(head, factor, angles, first, pairs, way);
        if (width == 64) head_to_fp4<2>(head, factor, angles, first, pairs, way);
        if (width == 128) head_to_fp4<4>(head, factor, angles, first, pairs, way);
        if (width == 256) head_to_fp4<8>(head, factor, angles, first, pairs, way);
        return;
    }
    float* head = x + (u64)blockIdx.x * width;
    const float v = turned_to_fp4(t < width ? head[t] : 0.0f, width, factor, numbers);
    if (t < width) head[t] = v;
}
