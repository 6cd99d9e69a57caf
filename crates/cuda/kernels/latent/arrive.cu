// What comes of a block's input before its attention, all of it at once, where rows are kept as f16 or packed: the row that is key and
// value, normed, turned, rounded and kept (norm.cu, rope.cu, rounding.cu, store.cu); inputs of compressed rows, kept, and what they
// complete (compress.cuh); and narrow queries, normed, with their codes. These wait for nothing of each other, so a block has one of
// them, of a row.

#define WARPS (THREADS / 32)
// Blocks of a processor: each waits for one thing after another, so the more there are the better.
#define RESIDENT 3

// How rows are kept, from one number: whether they are plain f16 (1) or packed (as FORMAT of rows.cuh), and, 16 bits each, the numbers
// that are codes, where scales begin, and the bytes of a row. queue/latent.rs.
struct Kept {
    u64 bits;

    DEVICE_MEMBER u32 format() const { return (u32)bits & 0xffff; }
    DEVICE_MEMBER u32 bytes() const { return (u32)(bits >> 48); }
    DEVICE_MEMBER Packed packed(u32 width) const {
        const u32 coded = (u32)bits >> 16;
        return {format() == 4, coded, 2 * (width - coded), (u32)(bits >> 32) & 0xffff};
    }
};

// Keeps a row, of which each thread has a number. `numbers` has a place a thread.
DEVICE void keep(u8* pages, u64 place, const Kept& kept, u32 width, float value, float* numbers) {
    u8* row = pages + place * kept.bytes();
    const u32 t = threadIdx.x;
    if (kept.format() == 1) {
        if (t < width) ((u16*)row)[t] = float_to_half(value);
        return;
    }
    // Others may still read what was here.
    __syncthreads();
    numbers[t] = value;
    __syncthreads();
    pack_row(row, kept.packed(width), width, numbers);
}

DEVICE void turn_pairs(float* features, const float* angles, u32 pairs, u32 way) {
#pragma unroll 1
    for (u32 pair = threadIdx.x; pair < pairs; pair += THREADS) {
        const float cosine = angles[pair], sine = way & 2 ? -angles[pairs + pair] : angles[pairs + pair];
        float *first = features + (way & 1 ? 2 * pair : pair), *second = way & 1 ? first + 1 : first + pairs;
        const float2 both = turned(*first, *second, cosine, sine);
        *first = both.x;
        *second = both.y;
    }
    __syncthreads();
}

// The row that is kept: a thread has a number.
DEVICE void keep_row(const Step& step, u32 row, const float* x, float* y, const float* weight, float epsilon, const float* angles,
                     u32 width, u32 first, u32 pairs, u32 way, u32 rounded, u8* pages, u32 ring, const Kept& kept, float* numbers,
                     float* sizes) {
    const u32 t = threadIdx.x, place = step.place(row, step.position(row));
    const u64 at = (u64)step.page(row, place, ring) * PAGE + place % PAGE;
    const float own = t < width ? x[(u64)row * width + t] : 0.0f, scale = t < width ? weight[t] : 0.0f;
    numbers[t] = own;
    __syncthreads();
    numbers[t] = (own * norm_of_block(numbers, width, epsilon, sizes)) * scale;
    __syncthreads();
    turn_pairs(numbers + first, angles + (u64)row * 2 * pairs, pairs, way);
    float v = numbers[t];
    if (rounded) v = rounded_to_fp8(v, rounded, sizes);
    if (t < width) y[(u64)row * width + t] = v;
    keep(pages, at, kept, width, v, numbers);
}

// Inputs of compressed rows.
DEVICE void compress_row(const Step& step, u32 row, const Compression& all, u8* pages, const Kept& form, float* numbers, float* sizes) {
    const float* fresh = all.fresh + (u64)row * 2 * all.input_width;
    float* kept = all.kept(step, row, step.position(row));
    for (u32 i = threadIdx.x; i < 2 * all.input_width; i += THREADS) kept[i] = fresh[i];
    const u32 end = step.position(row) + 1;
    if (end % all.ratio) return;
    const u32 first = end - all.ratio, slots = all.ratio >= PAGE ? 1 : PAGE / all.ratio;
    const float v = all.number(step, row, first, numbers, sizes);
    keep(pages, (u64)step.page(row, end - 1, 0) * slots + first / all.ratio % slots, form, all.width, v, numbers);
}

// A run of numbers; norm.cu.
DEVICE void norm_run(u32 row, const float* x, const float* weight, float* y, const CodesOut& out, u32 width, float epsilon,
                     float* numbers, float* sizes) {
    x += (u64)row * width;
    y += (u64)row * width;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < width; i += THREADS) numbers[i] = x[i];
    __syncthreads();
    const float inverse = norm_of_block(numbers, width, epsilon, sizes);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        const float v = (numbers[i] * inverse) * weight[i];
        y[i] = v;
        if (out.codes) put_codes(quantized(v), threadIdx.x % 32, codes_place(row, i / 32, width / 32), out);
    }
}

// Blocks along y: the row, the narrow queries, and one or two compressions. `rounded` features of the row become E4M3.
KERNEL __launch_bounds__(THREADS, RESIDENT) arrive(
    const u32* rows, const u32* lists,
    // The row that is kept.
    const float* x, float* y, const float* weight, float epsilon, const float* angles, u32 width, u32 turned, u32 pairs, u32 way,
    u32 rounded, u8* pages, u32 ring, u64 kept,
    // Queries.
    const float* query, const float* query_weight, float* query_y, u8* codes, uint2* scales, float4* minima, u32 query_width,
    float query_epsilon,
    // What compressions share, and two of them.
    const double* frequencies, u32 compressed_pairs, u32 interleaved, float magnitude, float compressed_epsilon,
    const float* fresh0, float* inputs0, u8* pages0, const float* ape0, const float* norm0, u32 width0, u32 input_width0, u32 ring0,
    u32 ratio0, u32 overlap0, u32 rounding0, u32 rounded0, float hadamard_factor0, u64 kept0,
    const float* fresh1, float* inputs1, u8* pages1, const float* ape1, const float* norm1, u32 width1, u32 input_width1, u32 ring1,
    u32 ratio1, u32 overlap1, u32 rounding1, u32 rounded1, float hadamard_factor1, u64 kept1) {
    __shared__ float numbers[NUMBERS];
    __shared__ float sizes[WARPS];
    begin_in_turn();
    const Step step = {rows, lists};
    const u32 row = blockIdx.x;
    if (blockIdx.y == 0) {
        const Kept form = {kept};
        keep_row(step, row, x, y, weight, epsilon, angles, width, turned, pairs, way, rounded, pages, ring, form, numbers, sizes);
    } else if (blockIdx.y == 1) {
        const CodesOut out = {codes, scales, minima};
        norm_run(row, query, query_weight, query_y, out, query_width, query_epsilon, numbers, sizes);
    } else {
        const bool is_first = blockIdx.y == 2;
        const Compression all = {is_first ? inputs0 : inputs1, is_first ? fresh0 : fresh1, is_first ? ape0 : ape1,
                                 is_first ? norm0 : norm1, frequencies, is_first ? width0 : width1,
                                 is_first ? input_width0 : input_width1, is_first ? ring0 : ring1, is_first ? ratio0 : ratio1,
                                 is_first ? overlap0 : overlap1, compressed_pairs, interleaved, magnitude, compressed_epsilon,
                                 is_first ? rounding0 : rounding1, is_first ? rounded0 : rounded1,
                                 is_first ? hadamard_factor0 : hadamard_factor1};
        const Kept form = {is_first ? kept0 : kept1};
        compress_row(step, row, all, is_first ? pages0 : pages1, form, numbers, sizes);
    }
}
