// How compressed rows are made; crates/ops/src/numerics.rs. A block has a row of the step, which has work where its token completes a
// compressed row: one thread a feature of that.

// Sine and cosine of an angle, in f64 by plain products and sums; math.rs, `sin_cos`.
DEVICE double polynomial(double z, double a, double b, double c, double d, double e, double f) {
    return ((((a * z + b) * z + c) * z + d) * z + e) * z + f;
}
DEVICE float2 cosine_and_sine(double angle) {
    // Rounds to the nearest whole number, ties to even, below 2^51.
    const double magic = 6755399441055744.0;
    const double n = (angle * 0.63661977236758134308 + magic) - magic;
    const double r = ((angle - n * 1.5707963267341256) - n * 6.077100506303966e-11) - n * 2.0222662487959506e-21;
    const double z = r * r;
    const double sine = r + r * z * polynomial(z, 1.0 / 6227020800.0, -1.0 / 39916800.0, 1.0 / 362880.0, -1.0 / 5040.0, 1.0 / 120.0,
                                               -1.0 / 6.0);
    const double cosine = 1.0 + z * polynomial(z, 1.0 / 479001600.0, -1.0 / 3628800.0, 1.0 / 40320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5);
    const u32 quarter = (u32)((long long)n & 3);
    const double c = quarter & 1 ? (quarter == 1 ? -sine : sine) : (quarter == 0 ? cosine : -cosine);
    const double s = quarter & 1 ? (quarter == 1 ? cosine : -cosine) : (quarter == 0 ? sine : -sine);
    return make_float2((float)c, (float)s);
}

// Tokens whose numbers are asked for at once.
#define TOKENS_HELD 8

// What rows are compressed from, and how.
struct Compression {
    // Rows of (values, scores), `input_width` each: those that are kept, in rings or pages, and those of the step, or none, where all are
    // kept.
    float* inputs;
    const float* fresh;
    // (ratio, input_width)
    const float* ape;
    // (width)
    const float* norm;
    const double* frequencies;
    u32 width, input_width, ring, ratio, overlap, pairs, interleaved;
    float magnitude, epsilon;
    // 0 none, 1 E4M3 of `rounded` features, 2 Hadamard and E2M1.
    u32 rounding, rounded;
    float hadamard_factor;

    DEVICE_MEMBER float* kept(const RowOfStep& own, u32 position) const {
        const u32 place = own.place(position);
        return inputs + ((u64)own.page(place, ring) * PAGE + place % PAGE) * 2 * input_width;
    }
    // Of a token that a row of the step sees.
    DEVICE_MEMBER const float* input(const RowOfStep& own, u32 row, u32 position) const {
        const u32 back = own.position - position;
        if (fresh && back <= row - own.run_start) return fresh + (u64)(row - back) * 2 * input_width;
        return kept(own, position);
    }

    // The mean of a row's tokens, feature `d`. So many as are held at once are on their way together; where these are all, they stay.
    DEVICE_MEMBER float mean(const RowOfStep& own, u32 row, u32 d, u32 first) const {
        const u32 start = overlap && first >= ratio ? first - ratio : first, end = first + ratio;
        const bool are_all = end - start <= TOKENS_HELD;
        float highest = __uint_as_float(0xff800000u), total = 0.0f, sum = 0.0f;
        float scores[TOKENS_HELD], values[TOKENS_HELD];
#pragma unroll 1
        for (u32 turn = 0; turn < 2; turn++) {
#pragma unroll 1
            for (u32 from = start; from < end; from += TOKENS_HELD) {
                if (turn == 0 || !are_all) {
                    float base[TOKENS_HELD];
#pragma unroll
                    for (u32 i = 0; i < TOKENS_HELD; i++) {
                        const bool is_there = from + i < end, is_late = from + i >= first;
                        const u32 column = (overlap && is_late ? width : 0) + d;
                        const float* of_token = is_there ? input(own, row, from + i) : fresh;
                        scores[i] = is_there ? of_token[input_width + column] : 0.0f;
                        values[i] = is_there ? of_token[column] : 0.0f;
                        base[i] = is_there ? ape[(from + i - (is_late ? first : start)) * input_width + column] : 0.0f;
                    }
#pragma unroll
                    for (u32 i = 0; i < TOKENS_HELD; i++) scores[i] = scores[i] + base[i];
                }
#pragma unroll
                for (u32 i = 0; i < TOKENS_HELD; i++) {
                    if (from + i >= end) continue;
                    if (turn == 0) {
                        highest = scores[i] > highest ? scores[i] : highest;
                    } else {
                        const float weight = canonical_exp(scores[i] - highest);
                        total = total + weight;
                        sum = fma(weight, values[i], sum);
                    }
                }
            }
        }
        return sum / total;
    }

    // Number `threadIdx.x` of the row that ends with a row of the step, whose first token is `first`. `numbers` has a place a thread,
    // `sizes` one a warp; `weight` is the thread's of `norm`.
    DEVICE_MEMBER float number(const RowOfStep& own, u32 row, u32 first, float weight, float* numbers, float* sizes) const {
        const u32 t = threadIdx.x;
        numbers[t] = t < width ? mean(own, row, t, first) : 0.0f;
        __syncthreads();
        const float inverse = norm_of_block(numbers, width, epsilon, sizes);
        if (t < width) numbers[t] = (numbers[t] * inverse) * weight;
        __syncthreads();
        if (t < pairs) {
            float2 turn = cosine_and_sine((double)first * frequencies[t]);
            turn = make_float2(turn.x * magnitude, turn.y * magnitude);
            float* features = numbers + width - 2 * pairs;
            float* one = features + (interleaved ? 2 * t : t);
            float* other = features + (interleaved ? 2 * t + 1 : t + pairs);
            const float a = *one, b = *other;
            *one = fma(a, turn.x, -(b * turn.y));
            *other = fma(b, turn.x, a * turn.y);
        }
        __syncthreads();
        const float v = numbers[t];
        if (rounding == 1) return rounded_to_fp8(v, rounded, sizes);
        return rounding == 2 ? turned_to_fp4(v, width, hadamard_factor, numbers) : v;
    }
};
