// Gates of a row, by a warp; crates/ops/src/streams.rs.

// The sum over a line of the matrix, in order from 0: of numbers `stride` lanes apart, the first in lane `first`.
DEVICE float line_sum(float value, u32 first, u32 stride, u32 count) {
    float numbers[STREAMS_MAX];
    // All are asked for before the first is there.
#pragma unroll
    for (u32 i = 0; i < STREAMS_MAX; i++) numbers[i] = __shfl_sync(0xffffffffu, value, (int)(first + i * stride) % 32);
    // None is below zero, so the first is what it is on top of zero.
    float sum = numbers[0];
#pragma unroll
    for (u32 i = 1; i < STREAMS_MAX; i++)
        if (i < count) sum = sum + numbers[i];
    return sum;
}

// A gate into the block, or out of it.
DEVICE float gate_of(float mix, float scale, float base, bool is_in, float epsilon) {
    const float sigmoid = 1.0f / (1.0f + canonical_exp(-fma(mix, scale, base)));
    return is_in ? sigmoid + epsilon : 2.0f * sigmoid;
}

// Lines of the matrix divided by their sums, in turns; the first by rows is done. Each division waits for the one before it.
template <class Divide>
DEVICE_MEMBER float balanced(float v, u32 row, u32 column, u32 count, u32 rounds, float epsilon, const Divide& divide) {
#pragma unroll 1
    for (u32 round = 0; round < rounds; round++) {
        if (round > 0) v = divide(v, line_sum(v, row * count, 1, count) + epsilon);
        v = divide(v, line_sum(v, column, count, count) + epsilon);
    }
    return v;
}

// Whether a number is positive, and neither very large nor very small: from 2^-60 to 2^60.
DEVICE bool is_moderate(float value) { return __float_as_uint(value) - 0x21800000u <= 0x3c000000u; }

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
#pragma unroll
    for (u32 k = 0; k < STREAMS_MAX; k++) {
        const float other = __shfl_sync(0xffffffffu, v, (int)(row * count + k) % 32);
        if (k < count) highest = other > highest ? other : highest;
    }
    v = canonical_exp(v - highest);
    v = v / line_sum(v, row * count, 1, count) + epsilon;
    // The processor's own division asks each time whether numbers are moderate, and branches. Here they are asked once, at the end.
    bool are_moderate = true;
    const float quick = balanced(v, row, column, count, rounds, epsilon, [&](float a, float b) {
        are_moderate = are_moderate && is_moderate(a) && is_moderate(b);
        return moderate_quotient(a, b);
    });
    if (__all_sync(0xffffffffu, are_moderate)) v = quick;
    else v = balanced(v, row, column, count, rounds, epsilon, [](float a, float b) { return a / b; });
    if (is_ours) out[at] = v;
}

// Slots of a token that are asked for at once.
#define SLOTS_HELD 8

// What a block of experts gave, as spread_streams takes it: the weighed sums of each token's slots, and another summand, where the queue
// has joined them (elementwise.cu, `combine` and `add`).
struct Given {
    // (rows, width): what it gave, where there are no parts.
    const float* y;
    // (rows * slots, width) and (rows, slots), or null.
    const float* parts;
    const float* weights;
    // (rows, width), or null.
    const float* added;
    u32 slots;

    DEVICE_MEMBER float at(u64 row, u32 column, u32 width) const {
        const u64 place = row * width + column;
        if (!parts) return y[place];
        const float more = added ? added[place] : 0.0f;
        float sum = 0.0f;
#pragma unroll 1
        for (u32 first = 0; first < slots; first += SLOTS_HELD) {
            float by[SLOTS_HELD], part[SLOTS_HELD];
#pragma unroll
            for (u32 i = 0; i < SLOTS_HELD; i++) {
                const u64 slot = row * slots + first + i;
                by[i] = first + i < slots ? weights[slot] : 0.0f;
                part[i] = first + i < slots ? parts[slot * width + column] : 0.0f;
            }
#pragma unroll
            for (u32 i = 0; i < SLOTS_HELD; i++)
                if (first + i < slots) sum = fma(by[i], part[i], sum);
        }
        if (added) sum = sum + more;
        return sum;
    }
};

// A feature of all streams of a row as it becomes, in `numbers`; what the block gave. All that is read is asked for at once.
DEVICE float spread(const float* streams, const Given& all, const float* gates, u64 row, u32 column, u32 width, u32 count,
                    float (&numbers)[STREAMS_MAX]) {
    const float* out = gates + row * count * (2 + count) + count;
    const float* stream = streams + row * count * width + column;
    float old[STREAMS_MAX], by[STREAMS_MAX], matrix[STREAMS_MAX][STREAMS_MAX];
#pragma unroll
    for (u32 j = 0; j < STREAMS_MAX; j++) {
        old[j] = j < count ? stream[(u64)j * width] : 0.0f;
        by[j] = j < count ? out[j] : 0.0f;
#pragma unroll
        for (u32 k = 0; k < STREAMS_MAX; k++) matrix[j][k] = j < count && k < count ? out[count + j * count + k] : 0.0f;
    }
    const float given = all.at(row, column, width);
#pragma unroll
    for (u32 k = 0; k < STREAMS_MAX; k++) {
        float v = by[k] * given;
#pragma unroll
        for (u32 j = 0; j < STREAMS_MAX; j++)
            if (j < count) v = fma(matrix[j][k], old[j], v);
        numbers[k] = v;
    }
    return given;
}
