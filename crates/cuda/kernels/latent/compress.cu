// Compressed rows of a step; compress.cuh. One block a row of it.

KERNEL __launch_bounds__(THREADS) compress(float* inputs, u8* pages, const float* ape, const float* norm, const double* frequencies,
                                           const u32* rows, const u32* lists, u32 input_width, u32 ring, u32 ratio, u32 overlap,
                                           u32 pairs, u32 interleaved, float magnitude, float epsilon, u32 rounding, u32 rounded,
                                           float hadamard_factor) {
    __shared__ float numbers[THREADS];
    __shared__ float sizes[THREADS / 32];
    const float weight = threadIdx.x < WIDTH ? norm[threadIdx.x] : 0.0f;
    after_earlier_work();
    const Step step = {rows, lists};
    const u32 row = blockIdx.x;
    const RowOfStep own = step.of(row);
    const u32 end = own.position + 1;
    if (end % ratio) return;
    const u32 first = end - ratio;
    const Compression all = {inputs, 0, ape, norm, frequencies, WIDTH, input_width, ring, ratio, overlap, pairs, interleaved,
                             magnitude, epsilon, rounding, rounded, hadamard_factor};
    const float v = all.number(own, row, first, weight, numbers, sizes);
    u8* to = pages + place_of_compressed(own, first / ratio, ratio);
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
