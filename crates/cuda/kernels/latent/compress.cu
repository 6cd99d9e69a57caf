// Compressed rows; crates/ops/src/numerics.rs. One block a row of the step, which has work where its token completes a row: one
// thread a feature of that.

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

// The mean of a row's tokens, feature `d`. inputs: rows of (values, scores), `input_width` each.
DEVICE float mean(const float* inputs, const float* ape, const Step& step, u32 row, u32 d, u32 first, u32 input_width, u32 ring,
                  u32 ratio, u32 overlap) {
    const u32 start = overlap && first >= ratio ? first - ratio : first;
    float highest = __uint_as_float(0xff800000u), total = 0.0f, sum = 0.0f;
#pragma unroll 4
    for (u32 position = start; position < first + ratio; position++) {
        const u32 column = (overlap && position >= first ? WIDTH : 0) + d;
        const float* input = inputs + place_of_token(step, row, position, ring, 2 * input_width);
        const float score = input[input_width + column] + ape[position % ratio * input_width + column];
        highest = score > highest ? score : highest;
    }
#pragma unroll 4
    for (u32 position = start; position < first + ratio; position++) {
        const u32 column = (overlap && position >= first ? WIDTH : 0) + d;
        const float* input = inputs + place_of_token(step, row, position, ring, 2 * input_width);
        const float score = input[input_width + column] + ape[position % ratio * input_width + column];
        const float weight = canonical_exp(score - highest);
        total = total + weight;
        sum = fma(weight, input[column], sum);
    }
    return sum / total;
}

// rounding: 0 none, 1 E4M3 of `rounded` features, 2 Hadamard and E2M1.
KERNEL __launch_bounds__(THREADS) compress(const float* inputs, u8* pages, const float* ape, const float* norm,
    const double* frequencies, const u32* rows,
         const u32* lists, u32 input_width, u32 ring, u32 ratio, u32 overlap, u32 pairs, u32 interleaved, float magnitude,
         float epsilon, u32 rounding, u32 rounded, float hadamard_factor) {
    __shared__ float numbers[THREADS];
    __shared__ float sizes[THREADS / 32];
    __shared__ float inverse;
    begin_in_turn();
    const Step step = {rows, lists};
    const u32 row = blockIdx.x, t = threadIdx.x, end = step.position(row) + 1;
    if (end % ratio) return;
    const u32 first = end - ratio;
    numbers[t] = t < WIDTH ? mean(inputs, ape, step, row, t, first, input_width, ring, ratio, overlap) : 0.0f;
    __syncthreads();
    if (t < 32) {
        float lane = 0.0f;
        if (t < 16)
            for (u32 i = t; i < WIDTH; i += 16) lane = fma(numbers[i], numbers[i], lane);
        const float square = add_lanes(lane) / (float)WIDTH;
        if (t == 0) inverse = 1.0f / __fsqrt_rn(square + epsilon);
    }
    __syncthreads();
    if (t < WIDTH) numbers[t] = (numbers[t] * inverse) * norm[t];
    __syncthreads();
    if (t < pairs) {
        float2 turn = cosine_and_sine((double)first * frequencies[t]);
        turn = make_float2(turn.x * magnitude, turn.y * magnitude);
        float* features = numbers + WIDTH - 2 * pairs;
        float* one = features + (interleaved ? 2 * t : t);
        float* other = features + (interleaved ? 2 * t + 1 : t + pairs);
        const float a = *one, b = *other;
        *one = fma(a, turn.x, -(b * turn.y));
        *other = fma(b, turn.x, a * turn.y);
    }
    __syncthreads();
    float v = numbers[t];
    if (rounding == 1) v = rounded_to_fp8(v, rounded, sizes);
    if (rounding == 2) v = turned_to_fp4(v, WIDTH, hadamard_factor, numbers);
    keep_number(pages + place_of_compressed(step, row, first / ratio, ratio), t, v);
}
