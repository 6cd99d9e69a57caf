// What comes of a block's input before its attention, all of it at once, where rows are kept as f16 or packed: the row that is key and
// value, normed, turned, rounded and kept (norm.cu, rope.cu, rounding.cu, store.cu); inputs of compressed rows, kept, and what they
// complete (compress.cuh); and narrow queries, normed, with their codes. These wait for nothing of each other, so a block has one of
// them, of a row.

#define WARPS (THREADS / 32)
// Blocks of a processor: as many as leave registers for all that is on its way.
#define RESIDENT 2

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

// A thread turns a pair, if there is one for it.
DEVICE void turn_pairs(float* features, float cosine, float sine, u32 pairs, u32 way) {
    const u32 pair = threadIdx.x;
    if (pair < pairs) {
        if (way & 2) sine = -sine;
        float *first = features + (way & 1 ? 2 * pair : pair), *second = way & 1 ? first + 1 : first + pairs;
        const float2 both = turned(*first, *second, cosine, sine);
        *first = both.x;
        *second = both.y;
    }
    __syncthreads();
}

// Numbers of a run that a thread has.
#define RUN_NUMBERS (NUMBERS / THREADS)
static_assert(NUMBERS % THREADS == 0, "whole numbers of a thread");

// Numbers t, t + THREADS, … of a run: all are on their way at once.
DEVICE void bring(float (&numbers)[RUN_NUMBERS], const float* run, u32 width) {
#pragma unroll
    for (u32 i = 0; i < RUN_NUMBERS; i++) {
        const u32 at = i * THREADS + threadIdx.x;
        numbers[i] = at < width ? run[at] : 0.0f;
    }
}

// The row that is kept: a thread has a number, and a weight, `scale`.
DEVICE void keep_row(const Step& step, u32 row, const float* x, float* y, float scale, float epsilon, const float* angles,
                     u32 width, u32 first, u32 pairs, u32 way, u32 rounded, u8* pages, u32 ring, const Kept& kept, float* numbers,
                     float* sizes) {
    const u32 t = threadIdx.x;
    const RowOfStep of_step = step.of(row);
    const float own = t < width ? x[(u64)row * width + t] : 0.0f;
    angles += (u64)row * 2 * pairs;
    const float cosine = t < pairs ? angles[t] : 1.0f, sine = t < pairs ? angles[pairs + t] : 0.0f;
    numbers[t] = own;
    __syncthreads();
    // What is known of the row came with its numbers.
    const u32 place = of_step.place(of_step.position);
    const u64 at = (u64)of_step.page(place, ring) * PAGE + place % PAGE;
    numbers[t] = (own * norm_of_block(numbers, width, epsilon, sizes)) * scale;
    __syncthreads();
    turn_pairs(numbers + first, cosine, sine, pairs, way);
    float v = numbers[t];
    if (rounded) v = rounded_to_fp8(v, rounded, sizes);
    if (t < width) y[(u64)row * width + t] = v;
    keep(pages, at, kept, width, v, numbers);
}

// Inputs of compressed rows.
DEVICE void compress_row(const Step& step, u32 row, const Compression& all, u8* pages, const Kept& form, float weight, float* numbers,
                         float* sizes) {
    const RowOfStep own = step.of(row);
    const u32 end = own.position + 1, width = 2 * all.input_width;
    const float* fresh = all.fresh + (u64)row * width;
#pragma unroll 1
    for (u32 first = 0; first < width; first += NUMBERS) {
        float held[RUN_NUMBERS];
        bring(held, fresh + first, width - first);
        float* kept = all.kept(own, end - 1) + first + threadIdx.x;
#pragma unroll
        for (u32 i = 0; i < RUN_NUMBERS; i++)
            if (first + i * THREADS + threadIdx.x < width) kept[i * THREADS] = held[i];
    }
    if (end % all.ratio) return;
    const u32 first = end - all.ratio, slots = all.ratio >= PAGE ? 1 : PAGE / all.ratio;
    const float v = all.number(own, row, first, weight, numbers, sizes);
    keep(pages, (u64)own.page(end - 1, 0) * slots + first / all.ratio % slots, form, all.width, v, numbers);
}

// A run of numbers, by the thread's weights; norm.cu.
DEVICE void norm_run(u32 row, const float* x, const float (&weights)[RUN_NUMBERS], float* y, const CodesOut& out, u32 width, float epsilon,
                     float* numbers, float* sizes) {
    float own[RUN_NUMBERS];
    bring(own, x + (u64)row * width, width);
#pragma unroll
    for (u32 i = 0; i < RUN_NUMBERS; i++)
        if (i * THREADS + threadIdx.x < width) numbers[i * THREADS + threadIdx.x] = own[i];
    __syncthreads();
    const float inverse = norm_of_block(numbers, width, epsilon, sizes);
#pragma unroll
    for (u32 i = 0; i < RUN_NUMBERS; i++) {
        const u32 at = i * THREADS + threadIdx.x;
        if (at >= width) return;
        const float v = (own[i] * inverse) * weights[i];
        y[(u64)row * width + at] = v;
        if (out.codes) put_codes(quantized(v), threadIdx.x % 32, codes_place(row, at / 32, width / 32), out);
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
    let_next_start();
    const Step step = {rows, lists};
    const u32 row = blockIdx.x, work = blockIdx.y;
    // Weights come before the turn.
    float weights[RUN_NUMBERS];
    const float* of_work = work == 0 ? weight : work == 1 ? query_weight : work == 2 ? norm0 : norm1;
    bring(weights, of_work, work == 0 ? width : work == 1 ? query_width : work == 2 ? width0 : width1);
    after_earlier_work();
    if (work == 0) {
        const Kept form = {kept};
        keep_row(step, row, x, y, weights[0], epsilon, angles, width, turned, pairs, way, rounded, pages, ring, form, numbers, sizes);
    } else if (work == 1) {
        const CodesOut out = {codes, scales, minima};
        norm_run(row, query, weights, query_y, out, query_width, query_epsilon, numbers, sizes);
    } else {
        const bool is_first = work == 2;
        const Compression all = {is_first ? inputs0 : inputs1, is_first ? fresh0 : fresh1, is_first ? ape0 : ape1,
                                 is_first ? norm0 : norm1, frequencies, is_first ? width0 : width1,
                                 is_first ? input_width0 : input_width1, is_first ? ring0 : ring1, is_first ? ratio0 : ratio1,
                                 is_first ? overlap0 : overlap1, compressed_pairs, interleaved, magnitude, compressed_epsilon,
                                 is_first ? rounding0 : rounding1, is_first ? rounded0 : rounded1,
                                 is_first ? hadamard_factor0 : hadamard_factor1};
        const Kept form = {is_first ? kept0 : kept1};
        compress_row(step, row, all, is_first ? pages0 : pages1, form, weights[0], numbers, sizes);
    }
}
