// Gates of a row, by a warp; crates/ops/src/streams.rs.

// The sum over a line of the matrix, in order from 0: of numbers `stride` lanes apart, the first in lane `first`.
DEVICE float line_sum(float value, u32 first, u32 stride, u32 count) {
    float sum = 0.0f;
    for (u32 i = 0; i < count; i++) sum = sum + __shfl_sync(0xffffffffu, value, (int)(first + i * stride));
    return sum;
}

// A gate into the block, or out of it.
DEVICE float gate_of(float mix, float scale, float base, bool is_in, float epsilon) {
    const float sigmoid = 1.0f / (1.0f + canonical_exp(-fma(mix, scale, base)));
    return is_in ? sigmoid + epsilon : 2.0f * sigmoid;
}

// All gates of a row: lanes hold the matrix, of which lane r * count + k has row r and column k; lanes 16 and up the gates into the block
// and out of it. `rounds` 0: there are only gates into the block.
DEVICE void row_gates(const float* in, const float* scale, const float* base, float* out, u32 count, u32 rounds, float epsilon) {
    const u32 lane = threadIdx.x % 32, gate = lane - 16;
    if (lane >= 16 && gate < (rounds ? 2 * count : count))
        out[gate] = gate_of(in[gate], scale[gate / count], base[gate], gate < count, epsilon);
    if (!rounds) return;
    const bool is_ours = lane < count * count;
    // Lanes without a number go along with the first.
    const u32 row = is_ours ? lane / count : 0, column = is_ours ? lane % count : 0, at = 2 * count + row * count + column;
    float v = fma(in[at], scale[2], base[at]);
    float highest = __uint_as_float(0xff800000u);
    for (u32 k = 0; k < count; k++) {
        float other = __shfl_sync(0xffffffffu, v, (int)(row * count + k));
        highest = other > highest ? other : highest;
    }
    v = canonical_exp(v - highest);
    v = v / line_sum(v, row * count, 1, count) + epsilon;
    for (u32 round = 0; round < rounds; round++) {
        if (round > 0) v = v / (line_sum(v, row * count, 1, count) + epsilon);
        v = v / (line_sum(v, column, count, count) + epsilon);
    }
    if (is_ours) out[at] = v;
}

// What a block of experts gave, as spread_streams takes it: the weighed sums of each token's slots, and another summand, where the queue
// has joined them (elementwise.cu, `combine` and `add`).
struct Given {
    // (rows, width); where there are parts, it is written.
    float* y;
    // (rows * slots, width) and (rows, slots), or null.
    const float* parts;
    const float* weights;
    // (rows, width), or null.
    const float* added;
    u32 slots;

    DEVICE_MEMBER float at(u64 row, u32 column, u32 width) const {
        const u64 place = row * width + column;
        if (!parts) return y[place];
        float sum = 0.0f;
#pragma unroll 8
        for (u32 s = 0; s < slots; s++) sum = fma(weights[row * slots + s], parts[(row * slots + s) * width + column], sum);
        if (added) sum = sum + added[place];
        y[place] = sum;
        return sum;
    }
};

// A feature of all streams of a row, in place.
DEVICE void spread(float* streams, float given, const float* gates, u64 row, u32 column, u32 width, u32 count) {
    const float* out = gates + row * count * (2 + count) + count;
    const float* matrix = out + count;
    float* stream = streams + row * count * width + column;
    float old[STREAMS_MAX];
#pragma unroll
    for (u32 j = 0; j < STREAMS_MAX; j++) old[j] = j < count ? stream[(u64)j * width] : 0.0f;
#pragma unroll
    for (u32 k = 0; k < STREAMS_MAX; k++) {
        if (k >= count) break;
        float v = out[k] * given;
#pragma unroll
        for (u32 j = 0; j < STREAMS_MAX; j++)
            if (j < count) v = fma(matrix[j * count + k], old[j], v);
        stream[(u64)k * width] = v;
    }
}
