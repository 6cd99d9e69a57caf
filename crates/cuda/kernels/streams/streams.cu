// Several residual streams; crates/ops/src/streams.rs and numerics.rs.

DEVICE u64 index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// Each row of x `count` times, side by side. One thread a number.
KERNEL copies(const float* x, float* y, u32 rows, u32 width, u32 count) {
    begin_in_turn();
    u64 at = index();
    if (at < (u64)rows * width * count) y[at] = x[at / ((u64)width * count) * width + at % width];
}

// The sum over a line of the matrix, in order from 0: of numbers `stride` lanes apart, the first in lane `first`.
DEVICE float line_sum(float value, u32 first, u32 stride, u32 count) {
    float sum = 0.0f;
    for (u32 i = 0; i < count; i++) sum = sum + __shfl_sync(0xffffffffu, value, (int)(first + i * stride));
    return sum;
}

// The gates of a row, by a warp: lanes hold the matrix, of which lane r * count + k has row r and column k; lanes 16 and up the gates into
// the block and out of it. `rounds` 0: there are only gates into the block.
KERNEL stream_gates(const float* mix, const float* scale, const float* base, float* y, u32 count, u32 rounds, float epsilon) {
    begin_in_turn();
    const u32 lane = threadIdx.x, width = rounds ? count * (2 + count) : count, gate = lane - 16;
    const float* in = mix + (u64)blockIdx.x * width;
    float* out = y + (u64)blockIdx.x * width;
    if (lane >= 16 && gate < (rounds ? 2 * count : count)) {
        float t = fma(in[gate], scale[gate / count], base[gate]);
        float sigmoid = 1.0f / (1.0f + canonical_exp(-t));
        out[gate] = gate < count ? sigmoid + epsilon : 2.0f * sigmoid;
    }
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

// y (rows, width): the sum of streams by their gates, of which a row has `gates_width`. One thread a number.
KERNEL collapse_streams(const float* streams, const float* gates, float* y, u32 rows, u32 width, u32 count, u32 gates_width) {
    begin_in_turn();
    u64 at = index();
    if (at >= (u64)rows * width) return;
    u64 row = at / width, column = at % width;
    float sum = 0.0f;
    for (u32 j = 0; j < count; j++) sum = fma(gates[row * gates_width + j], streams[(row * count + j) * width + column], sum);
    y[at] = sum;
}

// Streams (rows, count * width) in place. One thread a feature.
KERNEL spread_streams(float* streams, const float* y, const float* gates, u32 rows, u32 width, u32 count) {
    begin_in_turn();
    u64 at = index();
    if (at >= (u64)rows * width) return;
    u64 row = at / width, column = at % width;
    const float* out = gates + row * count * (2 + count) + count;
    const float* matrix = out + count;
    float* stream = streams + row * count * width + column;
    float old[STREAMS_MAX];
#pragma unroll
    for (u32 j = 0; j < STREAMS_MAX; j++) old[j] = j < count ? stream[(u64)j * width] : 0.0f;
#pragma unroll
    for (u32 k = 0; k < STREAMS_MAX; k++) {
        if (k >= count) break;
        float v = out[k] * y[at];
#pragma unroll
        for (u32 j = 0; j < STREAMS_MAX; j++)
            if (j < count) v = fma(matrix[j * count + k], old[j], v);
        stream[(u64)k * width] = v;
    }
}
