// Several residual streams; crates/ops/src/streams.rs and numerics.rs.

DEVICE u64 index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// Each row of x `count` times, side by side. One thread a number.
KERNEL copies(const float* x, float* y, u32 rows, u32 width, u32 count) {
    after_earlier_work();
    u64 at = index();
    if (at < (u64)rows * width * count) y[at] = x[at / ((u64)width * count) * width + at % width];
}

KERNEL stream_gates(const float* mix, const float* scale, const float* base, float* y, u32 count, u32 rounds, float epsilon) {
    after_earlier_work();
    const u64 at = (u64)blockIdx.x * (rounds ? count * (2 + count) : count);
    row_gates(mix + at, scale, base, y + at, count, rounds, epsilon);
}

// y (rows, width): the sum of streams by their gates, of which a row has `gates_width`. One thread a number.
KERNEL collapse_streams(const float* streams, const float* gates, float* y, u32 rows, u32 width, u32 count, u32 gates_width) {
    after_earlier_work();
    u64 at = index();
    if (at >= (u64)rows * width) return;
    u64 row = at / width, column = at % width;
    float sum = 0.0f;
    for (u32 j = 0; j < count; j++) sum = fma(gates[row * gates_width + j], streams[(row * count + j) * width + column], sum);
    y[at] = sum;
}

// Streams (rows, count * width) in place. One thread a feature.
KERNEL spread_streams(float* streams, float* y, const float* gates, u32 rows, u32 width, u32 count, const float* parts,
                      const float* weights, const float* added, u32 slots) {
    after_earlier_work();
    const u64 at = index();
    if (at >= (u64)rows * width) return;
    const u64 row = at / width;
    const u32 column = at % width;
    const Given given = {y, parts, weights, added, slots};
    float numbers[STREAMS_MAX];
    const float of_block = spread(streams, given, gates, row, column, width, count, numbers);
    if (parts) y[at] = of_block;
#pragma unroll
    for (u32 j = 0; j < STREAMS_MAX; j++)
        if (j < count) streams[(row * count + j) * width + column] = numbers[j];
}
