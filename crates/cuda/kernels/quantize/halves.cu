// Activations to f16, each row scaled by a power of two of its own, so that its largest number is just below 2^15: prefill's operand.
//
// They lie as matmul/prefill.cu copies them: [slices][depth / 64][eights of rows][8][64], where of each 16 features the even ones come
// first, then the odd ones (matmul/expand.cuh), and the eight 16-byte parts of a row of 128 bytes are swizzled: part p of row r stands at
// p ^ r % 8. The depth of a slice is padded by zeros. One block a row, whose threads hold HELD runs of 16 features each; longer rows are
// read twice. Where the queue has joined it, rows are what a gate gives (elementwise.cu), and are written too.

// The factor that takes `largest` into [2^14, 2^15), a power of two; 1 where there is none. `down` undoes it.
DEVICE float row_factor(u32 largest, float& down) {
    int exponent = (int)(largest >> 23);
    bool is_plain = largest != 0 && exponent < 255;
    int up = is_plain ? 14 + 127 - exponent : 0;
    up = up > 126 ? 126 : up;
    down = __uint_as_float((u32)(127 - up) << 23);
    return __uint_as_float((u32)(127 + up) << 23);
}

struct Sixteen {
    float v[16];
    // `left` of them are there; others are zeros.
    DEVICE_MEMBER void load(const float* at, u32 left, bool is_aligned) {
        if (left >= 16 && is_aligned) {
#pragma unroll
            for (int q = 0; q < 4; q++) {
                float4 four = __ldg((const float4*)at + q);
                v[4 * q] = four.x; v[4 * q + 1] = four.y; v[4 * q + 2] = four.z; v[4 * q + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int k = 0; k < 16; k++) v[k] = k < left ? __ldg(at + k) : 0.0f;
        }
    }
    // Bits of the largest magnitude; those of NaN are above all.
    DEVICE_MEMBER u32 largest() const {
        u32 most = 0;
#pragma unroll
        for (int k = 0; k < 16; k++) most = max(most, __float_as_uint(v[k]) & 0x7fffffffu);
        return most;
    }
    // Even features, then odd ones.
    DEVICE_MEMBER uint4 halves(int odd, float factor) const {
        u32 pairs[4];
#pragma unroll
        for (int k = 0; k < 4; k++) pairs[k] = pair_of_halves(v[4 * k + odd] * factor, v[4 * k + 2 + odd] * factor);
        return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
};

// x (rows, slices * depth). A row goes to the row of the output with its number, or to those that `columns` names for its `places`. With
// `up`, x is what is gated, rows of both begin `x_stride` and `up_stride` apart, and y is the result; a row is one slice of whole
// sixteens, all of them held.
KERNEL __launch_bounds__(THREADS) halves(const float* x, u8* out, float* scales, const u32* columns, u32 slices, u32 depth, u32 eights,
                                         u32 places, const float* up, float* y, u32 x_stride, u32 up_stride, u32 kind, float limit) {
    after_earlier_work();
    __shared__ u32 of_warps[THREADS / 32];
    const float* in = x + (u64)blockIdx.x * (up ? x_stride : slices * depth);
    if (up) up += (u64)blockIdx.x * up_stride;
    const u32 groups = (depth + 63) / 64 * 4, count = slices * groups;
    const bool is_aligned = depth % 4 == 0;
    auto load = [&](Sixteen& some, u32 i) {
        u32 first = i % groups * 16;
        some.load(in + i / groups * depth + first, depth - min(depth, first), is_aligned);
    };
    Sixteen held[HELD];
    u32 largest = 0;
#pragma unroll
    for (int h = 0; h < HELD; h++)
        if (threadIdx.x + h * THREADS < count) {
            load(held[h], threadIdx.x + h * THREADS);
            if (up) {
                const u32 first = (threadIdx.x + h * THREADS) * 16;
                Sixteen other;
                other.load(up + first, 16, true);
                float4* to = (float4*)(y + (u64)blockIdx.x * depth + first);
#pragma unroll
                for (int k = 0; k < 16; k++) held[h].v[k] = gated(held[h].v[k], other.v[k], kind, limit);
#pragma unroll
                for (int q = 0; q < 4; q++)
                    to[q] = make_float4(held[h].v[4 * q], held[h].v[4 * q + 1], held[h].v[4 * q + 2], held[h].v[4 * q + 3]);
            }
            largest = max(largest, held[h].largest());
        }
    for (u32 i = threadIdx.x + HELD * THREADS; i < count; i += THREADS) {
        Sixteen some;
        load(some, i);
        largest = max(largest, some.largest());
    }
    largest = __reduce_max_sync(0xffffffffu, largest);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) largest = max(largest, of_warps[w]);
    float down;
    const float factor = row_factor(largest, down);

    for (u32 place = 0; place < places; place++) {
        const u32 row = columns ? columns[blockIdx.x * places + place] : blockIdx.x;
        if (threadIdx.x == 0) scales[row] = down;
        auto put = [&](const Sixteen& some, u32 i) {
            u8* to = out + ((u64)(i / 4) * eights + row / 8) * 1024 + row % 8 * 128;
#pragma unroll
            for (int odd = 0; odd < 2; odd++) *(uint4*)(to + ((i % 4 * 2 + odd) ^ (row % 8)) * 16) = some.halves(odd, factor);
        };
#pragma unroll
        for (int h = 0; h < HELD; h++)
            if (threadIdx.x + h * THREADS < count) put(held[h], threadIdx.x + h * THREADS);
        for (u32 i = threadIdx.x + HELD * THREADS; i < count; i += THREADS) {
            Sixteen some;
            load(some, i);
            put(some, i);
        }
    }
}
