// Activations to f16, each row scaled by a power of two of its own, so that its largest number is just below 2^15: prefill's operand.
//
// They lie as matmul/prefill.cu copies them: [slices][depth / 64][eights of rows][8][64], where of each 16 features the even ones come
// first, then the odd ones (matmul/expand.cuh), and the eight 16-byte parts of a row of 128 bytes are swizzled: part p of row r stands at
// p ^ r % 8. The depth of a slice is padded by zeros. One block a row: rows of whole runs of 256 features are held by its warps, HELD runs
// each, and read and written in whole lines; others are read twice. Where the queue has joined it, rows are what a gate gives
// (elementwise.cu), and are written too.

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

// Neighbours in fours: a lane has four features of each half of a run of 256, and four lanes the sixteens of each.
struct Run {
    float4 low, high;

    DEVICE_MEMBER void load(const float* at) {
        low = __ldg((const float4*)at);
        high = __ldg((const float4*)(at + 128));
    }
    DEVICE_MEMBER void gate(const Run& up, u32 kind, float limit) {
        low = make_float4(gated(low.x, up.low.x, kind, limit), gated(low.y, up.low.y, kind, limit), gated(low.z, up.low.z, kind, limit),
                          gated(low.w, up.low.w, kind, limit));
        high = make_float4(gated(high.x, up.high.x, kind, limit), gated(high.y, up.high.y, kind, limit),
                           gated(high.z, up.high.z, kind, limit), gated(high.w, up.high.w, kind, limit));
    }
    DEVICE_MEMBER u32 largest() const {
        const float all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        u32 most = 0;
#pragma unroll
        for (int k = 0; k < 8; k++) most = max(most, __float_as_uint(all[k]) & 0x7fffffffu);
        return most;
    }
    // Four lanes turn their words about: the first has the even features of the low sixteen then, the second the odd ones, and the
    // others those of the high one.
    DEVICE_MEMBER uint4 halves(float factor) const {
        const u32 lane = threadIdx.x % 32;
        const u32 w[4] = {pair_of_halves(low.x * factor, low.z * factor), pair_of_halves(low.y * factor, low.w * factor),
                          pair_of_halves(high.x * factor, high.z * factor), pair_of_halves(high.y * factor, high.w * factor)};
        const bool is_odd = lane & 1, is_high = lane & 2;
        const u32 first = __shfl_xor_sync(0xffffffffu, is_odd ? w[0] : w[1], 1);
        const u32 second = __shfl_xor_sync(0xffffffffu, is_odd ? w[2] : w[3], 1);
        const uint2 a = is_odd ? make_uint2(first, w[1]) : make_uint2(w[0], first);
        const uint2 b = is_odd ? make_uint2(second, w[3]) : make_uint2(w[2], second);
        const u32 x = __shfl_xor_sync(0xffffffffu, is_high ? a.x : b.x, 2), y = __shfl_xor_sync(0xffffffffu, is_high ? a.y : b.y, 2);
        return is_high ? make_uint4(x, y, b.x, b.y) : make_uint4(a.x, a.y, x, y);
    }
};

// The largest of a block's, in all threads.
DEVICE u32 largest_of_block(u32 largest, u32* of_warps) {
    largest = __reduce_max_sync(0xffffffffu, largest);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) largest = max(largest, of_warps[w]);
    return largest;
}

// Where an eighth of 128 bytes goes: sixteen `i` of a row, its even or odd features.
DEVICE u8* place_of(u8* out, u32 i, u32 odd, u32 row, u32 eights) {
    return out + ((u64)(i / 4) * eights + row / 8) * 1024 + row % 8 * 128 + ((i % 4 * 2 + odd) ^ (row % 8)) * 16;
}

// x (rows, slices * depth). A row goes to the row of the output with its number, or to those that `columns` names for its `places`. With
// `up`, x is what is gated, rows of both begin `x_stride` and `up_stride` apart, and y is the result; a row is one slice then, which the
// block's warps hold.
KERNEL __launch_bounds__(THREADS) halves(const float* x, u8* out, float* scales, const u32* columns, u32 slices, u32 depth, u32 eights,
                                         u32 places, const float* up, float* y, u32 x_stride, u32 up_stride, u32 kind, float limit) {
    after_earlier_work();
    __shared__ u32 of_warps[THREADS / 32];
    const float* in = x + (u64)blockIdx.x * (up ? x_stride : slices * depth);
    const u32 groups = (depth + 63) / 64 * 4, count = slices * groups, lane = threadIdx.x % 32, runs = slices * depth / 256;
    auto row_of = [&](u32 place) { return columns ? columns[blockIdx.x * places + place] : blockIdx.x; };
    float down;
    if (depth % 256 == 0 && runs <= HELD * (THREADS / 32)) {
        Run held[HELD];
        u32 largest = 0;
#pragma unroll
        for (int h = 0; h < HELD; h++) {
            const u32 run = h * (THREADS / 32) + threadIdx.x / 32, first = run * 256 + lane * 4;
            if (run >= runs) continue;
            held[h].load(in + first);
            if (up) {
                Run other;
                other.load(up + (u64)blockIdx.x * up_stride + first);
                held[h].gate(other, kind, limit);
                float* to = y + (u64)blockIdx.x * depth + first;
                *(float4*)to = held[h].low;
                *(float4*)(to + 128) = held[h].high;
            }
            largest = max(largest, held[h].largest());
        }
        const float factor = row_factor(largest_of_block(largest, of_warps), down);
        uint4 eighths[HELD];
#pragma unroll
        for (int h = 0; h < HELD; h++)
            if (h * (THREADS / 32) + threadIdx.x / 32 < runs) eighths[h] = held[h].halves(factor);
        for (u32 place = 0; place < places; place++) {
            const u32 row = row_of(place);
            if (threadIdx.x == 0) scales[row] = down;
#pragma unroll
            for (int h = 0; h < HELD; h++) {
                const u32 run = h * (THREADS / 32) + threadIdx.x / 32, i = run * 16 + (lane & 2) * 4 + lane / 4;
                if (run < runs) *(uint4*)place_of(out, i, lane & 1, row, eights) = eighths[h];
            }
        }
        return;
    }
    const bool is_aligned = depth % 4 == 0;
    auto load = [&](Sixteen& some, u32 i) {
        u32 first = i % groups * 16;
        some.load(in + i / groups * depth + first, depth - min(depth, first), is_aligned);
    };
    u32 largest = 0;
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        Sixteen some;
        load(some, i);
        largest = max(largest, some.largest());
    }
    const float factor = row_factor(largest_of_block(largest, of_warps), down);
    for (u32 place = 0; place < places; place++) {
        const u32 row = row_of(place);
        if (threadIdx.x == 0) scales[row] = down;
        for (u32 i = threadIdx.x; i < count; i += THREADS) {
            Sixteen some;
            load(some, i);
#pragma unroll
            for (int odd = 0; odd < 2; odd++) *(uint4*)place_of(out, i, odd, row, eights) = some.halves(odd, factor);
        }
    }
}
