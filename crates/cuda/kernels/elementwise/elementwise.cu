// What touches each number by itself; numerics.rs and math.rs. One thread a number.

DEVICE u64 index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// y (rows, width) of two tensors whose rows begin `x_stride` and `up_stride` apart. With `codes`, those of y as quantize.cu gives them:
// a warp is a block then.
KERNEL gate(const float* x, const float* up, float* y, u8* codes, uint2* scales, float4* minima, u32 rows, u32 width, u32 x_stride,
            u32 up_stride, u32 kind, float limit, u32 beside) {
    const Turn turn(beside);
    // Where it stands takes a while, and waits for nothing.
    const u64 at = index(), row = at / width, column = at % width;
    after_earlier_work(turn);
    if (at >= (u64)rows * width) return;
    const float v = gated(x[row * x_stride + column], up[row * up_stride + column], kind, limit);
    y[at] = v;
    const CodesOut out = {codes, scales, minima};
    if (codes) put_codes(quantized(v), threadIdx.x % 32, codes_place(row, column / 32, width / 32), out);
}

KERNEL columns(const float* x, float* y, u32 rows, u32 width, u32 x_stride, u32 first) {
    after_earlier_work();
    u64 at = index();
    if (at < (u64)rows * width) y[at] = x[at / width * x_stride + first + at % width];
}

KERNEL scale(float* x, u64 count, float factor) {
    after_earlier_work();
    if (index() < count) x[index()] = x[index()] * factor;
}

KERNEL add(float* x, const float* y, u64 count) {
    after_earlier_work();
    if (index() < count) x[index()] = x[index()] + y[index()];
}

KERNEL soft_cap(float* x, u64 count, float cap) {
    after_earlier_work();
    if (index() < count) x[index()] = canonical_soft_cap(x[index()], cap);
}

// The rows `wanted` of x.
KERNEL gather_rows(const float* x, const u32* wanted, float* y, u32 rows, u32 width) {
    after_earlier_work();
    u64 at = index();
    if (at < (u64)rows * width) y[at] = x[(u64)wanted[at / width] * width + at % width];
}

// A fine product: row r and row rows + r of `parts` together, and the bias.
KERNEL add_fine(const float* parts, const float* bias, float* y, u32 rows, u32 width) {
    after_earlier_work();
    u64 at = index();
    if (at >= (u64)rows * width) return;
    float sum = parts[at] + parts[at + (u64)rows * width];
    y[at] = bias ? sum + bias[at % width] : sum;
}

// The way back from the experts: slots in order, from 0; and another summand behind them, if there is one.
KERNEL combine(const float* parts, const float* weights, float* y, u32 rows, u32 width, u32 slots, const float* added) {
    after_earlier_work();
    u64 at = index();
    if (at >= (u64)rows * width) return;
    u64 row = at / width, column = at % width;
    float sum = 0.0f;
    for (u32 s = 0; s < slots; s++) sum = fma(weights[row * slots + s], parts[(row * slots + s) * width + column], sum);
    y[at] = added ? sum + added[at] : sum;
}

// What the host has sent, to memory of a step: so many numbers each, which lie one behind the other in the host's memory, from multiples of
// 16 bytes on. A thread takes as much of them.
//
// Whoever comes next may look at them ahead of its turn. So it starts when all of this has ended.
KERNEL receive(u32* to_0, u32* to_1, u32* to_2, u32* to_3, u32* to_4, u32* to_5, u32* to_6, u32* to_7, const uint4* from, u32 count_0,
               u32 count_1, u32 count_2, u32 count_3, u32 count_4, u32 count_5, u32 count_6, u32 count_7) {
    u32* const to[8] = {to_0, to_1, to_2, to_3, to_4, to_5, to_6, to_7};
    const u32 counts[8] = {count_0, count_1, count_2, count_3, count_4, count_5, count_6, count_7};
    const u64 at = index();
    u32 left = (u32)at, count = 0;
    u32* own = nullptr;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 pieces = (counts[i] + 3) / 4;
        if (!own && left < pieces) {
            own = to[i] + 4 * left;
            count = counts[i] - 4 * left;
        }
        left -= pieces;
    }
    wait_for_earlier_work();
    if (!own) return;
    const uint4 piece = from[at];
    if (count >= 4) {
        *(uint4*)own = piece;
    } else {
        own[0] = piece.x;
        if (count > 1) own[1] = piece.y;
        if (count > 2) own[2] = piece.z;
    }
    write_out();
}

// Holds the card up for a while.
KERNEL spin(u64 nanoseconds) {
    after_earlier_work();
    const u64 until = clock_nanoseconds() + nanoseconds;
    while (clock_nanoseconds() < until) {}
}
