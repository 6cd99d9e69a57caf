// Compressed rows of a step; compress.cuh. One block a row of it.

KERNEL __launch_bounds__(THREADS) compress(float* inputs, u8* pages, const float* ape, const float* norm, const double* frequencies,
                                           const u32* rows, const u32* lists, u32 input_width, u32 ring, u32 ratio, u32 overlap,
                                           u32 pairs, u32 interleaved, float magnitude, float epsilon, u32 rounding, u32 rounded,
                                           float hadamard_factor) {
    __shared__ float numbers[THREADS];
    __shared__ float sizes[THREADS / 32];
    begin_in_turn();
    const Step step = {rows, lists};
    const u32 row = blockIdx.x, end = step.position(row) + 1;
    if (end % ratio) return;
    const u32 first = end - ratio;
    const Compression all = {inputs, 0, ape, norm, frequencies, WIDTH, input_width, ring, ratio, overlap, pairs, interleaved,
                             magnitude, epsilon, rounding, rounded, hadamard_factor};
    const float v = all.number(step, row, first, numbers, sizes);
    u8* to = pages + place_of_compressed(step, row, first / ratio, ratio);
#if IS_PACKED
    // Others may still read what was here.
    __syncthreads();
    numbers[threadIdx.x] = v;
    __syncthreads();
    pack_row(to, PACKED_ROW, WIDTH, numbers);
#else
    keep_number(to, threadIdx.x, v);
#endif
}
