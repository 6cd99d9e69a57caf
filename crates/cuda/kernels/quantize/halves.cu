// Activations to f16, each row scaled by a power of two of its own, so that its largest number is just below 2^15: prefill's operand.
//
// They lie as matmul/prefill.cu copies them: [slices][depth / 64][eights of rows][8][64], where of each 16 features the even ones come
// first, then the odd ones (matmul/expand.cuh), and the eight 16-byte parts of a row of 128 bytes are swizzled: part p of row r stands at
// p ^ r % 8. The depth of a slice is padded by zeros. One block a row.

// The factor that takes `largest` into [2^14, 2^15), a power of two; 1 where there is none. `down` undoes it.
DEVICE float row_factor(u32 largest, float& down) {
    int exponent = (int)(largest >> 23);
    bool is_plain = largest != 0 && exponent < 255;
    int up = is_plain ? 14 + 127 - exponent : 0;
    up = up > 126 ? 126 : up;
    down = __uint_as_float((u32)(127 - up) << 23);
    return __uint_as_float((u32)(127 + up) << 23);
}

// x (tokens, slices * depth). Row i of the output is row i, or with `starts` that of the place order[i], at what prefill.cu calls
// `first_row` of its segment and on: `slots` places a row.
KERNEL __launch_bounds__(THREADS) halves(const float* x, u8* out, float* scales, const u32* starts, const u32* order, u32 slices,
                                         u32 depth, u32 eights, u32 segments, u32 slots) {
    u32 source = blockIdx.x, row = blockIdx.x;
    if (starts) {
        u32 low = 0, high = segments;
        while (high - low > 1) {
            u32 middle = (low + high) / 2;
            if (starts[middle] <= blockIdx.x) low = middle;
            else high = middle;
        }
        source = order[blockIdx.x] / slots;
        row = (starts[low] + 7) / 8 * 8 + 8 * low + blockIdx.x - starts[low];
    }
    const u32 width = slices * depth;
    const float* in = x + (u64)source * width;
    u32 largest = 0;
    if (depth % 4 == 0) {
        for (u32 i = threadIdx.x; i < width / 4; i += THREADS) {
            uint4 v = __ldg((const uint4*)in + i);
            largest = max(max(max(largest, v.x & 0x7fffffffu), max(v.y & 0x7fffffffu, v.z & 0x7fffffffu)), v.w & 0x7fffffffu);
        }
    } else {
        for (u32 i = threadIdx.x; i < width; i += THREADS) largest = max(largest, __float_as_uint(__ldg(in + i)) & 0x7fffffffu);
    }
    __shared__ u32 of_warps[THREADS / 32];
    largest = __reduce_max_sync(0xffffffffu, largest);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) largest = max(largest, of_warps[w]);
    float down;
    const float factor = row_factor(largest, down);
    if (threadIdx.x == 0) scales[row] = down;

    const u32 groups = (depth + 63) / 64 * 4;
    for (u32 i = threadIdx.x; i < slices * groups; i += THREADS) {
        u32 slice = i / groups, group = i % groups, left = depth - min(depth, group * 16);
        const float* at = in + slice * depth + group * 16;
        float v[16];
        if (left >= 16 && depth % 4 == 0) {
#pragma unroll
            for (int q = 0; q < 4; q++) {
                float4 four = __ldg((const float4*)at + q);
                v[4 * q] = four.x; v[4 * q + 1] = four.y; v[4 * q + 2] = four.z; v[4 * q + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int k = 0; k < 16; k++) v[k] = k < left ? __ldg(at + k) : 0.0f;
        }
        u8* to = out + ((u64)(i / 4) * eights + row / 8) * 1024 + row % 8 * 128;
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            u32 pairs[4];
#pragma unroll
            for (int k = 0; k < 4; k++) pairs[k] = pair_of_halves(v[4 * k + odd] * factor, v[4 * k + 2 + odd] * factor);
            *(uint4*)(to + ((group % 4 * 2 + odd) ^ (row % 8)) * 16) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}
