// Rounding of heads to small floats; crates/ops/src/rounding.rs. One block a head, one thread a number.

// x (heads, width). `features` of each head to E4M3 in blocks of 64.
KERNEL round_fp8(float* x, u32 width, u32 features) {
    __shared__ float sizes[MOST / 32];
    begin_in_turn();
    const u32 t = threadIdx.x;
    float* head = x + (u64)blockIdx.x * width;
    const float v = rounded_to_fp8(t < features ? head[t] : 0.0f, features, sizes);
    if (t < features) head[t] = v;
}

// x (heads, width): by the Hadamard matrix of `width`, a power of two, then to E2M1 in blocks of 32.
KERNEL round_hadamard_fp4(float* x, u32 width, float factor) {
    __shared__ float numbers[MOST];
    begin_in_turn();
    const u32 t = threadIdx.x;
    float* head = x + (u64)blockIdx.x * width;
    const float v = turned_to_fp4(t < width ? head[t] : 0.0f, width, factor, numbers);
    if (t < width) head[t] = v;
}
