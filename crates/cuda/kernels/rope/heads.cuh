// Heads of rows on their way between a projection and attention: normed, where there are weights for it, and turned by the angles
// of their row; numerics.rs, `rms_norm` and `rotate`. One warp a head, which leaves it in shared memory too.

// Numbers of a head that a lane asks for at once: one behind the other, each would wait for the one before it.
#define HELD_NUMBERS 16

// Numbers lane, lane + 32, … of a run from `first` on.
struct HeldNumbers {
    float of[HELD_NUMBERS];

    DEVICE_MEMBER void load(const float* run, u32 first, u32 end) {
#pragma unroll
        for (u32 i = 0; i < HELD_NUMBERS; i++) {
            const u32 at = first + i * 32 + threadIdx.x % 32;
            of[i] = at < end ? run[at] : 0.0f;
        }
    }
};

struct Heads {
    // (rows, heads * head_dim); y may be x.
    const float* x;
    float* y;
    // (head_dim), or null.
    const float* weight;
    float epsilon;
    // (rows, 2 * pairs), a row's cosines first, or null.
    const float* angles;
    u32 heads;
    u32 head_dim;
    // The features that turn begin here.
    u32 first_feature;
    u32 pairs;
    // Bits: 1 neighbours pair, 2 turn back.
    u32 way;

    // Before its turn: weights come from far, and the first of them stay.
    DEVICE_MEMBER HeldNumbers begin() const {
        HeldNumbers weights;
        weights.load(weight, 0, weight ? head_dim : 0);
        return weights;
    }

    // What `compute` begins with: first numbers of a head, and the angle of the lane's first pair.
    struct Brought {
        HeldNumbers numbers;
        float cosine, sine;
    };
    DEVICE_MEMBER Brought bring(u64 row, u32 head) const {
        const u32 pair = threadIdx.x % 32;
        const float* of_row = angles + row * 2 * pairs;
        const bool turns = angles && pair < pairs;
        Brought all;
        all.numbers.load(x + (row * heads + head) * head_dim, 0, head_dim);
        all.cosine = turns ? of_row[pair] : 1.0f;
        all.sine = turns ? of_row[pairs + pair] : 0.0f;
        return all;
    }

    DEVICE_MEMBER void compute(float* shared, const HeldNumbers& weights, const Brought& brought, u64 row, u32 head) const {
        const u32 lane = threadIdx.x % 32;
        const u64 at = (row * heads + head) * head_dim;
        HeldNumbers numbers = brought.numbers;
#pragma unroll 1
        for (u32 first = 0; first < head_dim; first += 32 * HELD_NUMBERS) {
            if (first > 0) numbers.load(x + at, first, head_dim);
#pragma unroll
            for (u32 i = 0; i < HELD_NUMBERS; i++)
                if (first + i * 32 + lane < head_dim) shared[first + i * 32 + lane] = numbers.of[i];
        }
        __syncwarp();
        if (weight) norm(shared, brought.numbers, weights);
        if (angles) turn(shared, row, brought.cosine, brought.sine);
        if (!weight && !angles) return;
#pragma unroll 4
        for (u32 i = lane; i < head_dim; i += 32) y[at + i] = shared[i];
    }

    // Codes of what `compute` has left, as quantize.cu gives them; heads are whole blocks.
    DEVICE_MEMBER void code(const float* shared, u64 row, u32 head, const CodesOut& out) const {
        const u32 lane = threadIdx.x % 32, blocks = head_dim / 32;
#pragma unroll 4
        for (u32 b = 0; b < blocks; b++)
            put_codes(quantized(shared[b * 32 + lane]), lane, codes_place(row, head * blocks + b, heads * blocks), out);
    }

    // The factor of the norm of a head in shared memory, in all lanes.
    DEVICE_MEMBER float factor(const float* shared) const {
        float sum = 0.0f;
#pragma unroll 1
        for (u32 first = 0; first < head_dim; first += PART_DEPTH) {
            const float part = squares_of_part(shared + first, min(head_dim - first, (u32)PART_DEPTH));
            sum = first == 0 ? part : sum + part;
        }
        return 1.0f / __fsqrt_rn(sum / (float)head_dim + epsilon);
    }

    // `numbers` and `weights` are the first that a lane has; others are in shared memory and far.
    DEVICE_MEMBER void norm(float* shared, HeldNumbers numbers, HeldNumbers weights) const {
        const float inverse = factor(shared);
#pragma unroll 1
        for (u32 first = 0; first < head_dim; first += 32 * HELD_NUMBERS) {
            if (first > 0) numbers.load(shared, first, head_dim), weights.load(weight, first, head_dim);
#pragma unroll
            for (u32 i = 0; i < HELD_NUMBERS; i++) {
                const u32 at = first + i * 32 + threadIdx.x % 32;
                if (at < head_dim) shared[at] = (numbers.of[i] * inverse) * weights.of[i];
            }
        }
        __syncwarp();
    }

    // In shared memory, or where the head lies; the angle is that of the lane's first pair.
    DEVICE_MEMBER void turn(float* shared, u64 row, float cosine, float sine) const {
        const u32 lane = threadIdx.x % 32;
        const float* of_row = angles + row * 2 * pairs;
#pragma unroll 1
        for (u32 pair = lane; pair < pairs; pair += 32) {
            if (pair != lane) cosine = of_row[pair], sine = of_row[pairs + pair];
            if (way & 2) sine = -sine;
            const u32 first = first_feature + (way & 1 ? 2 * pair : pair), second = way & 1 ? first + 1 : first + pairs;
            const float2 pair_turned = turned(shared[first], shared[second], cosine, sine);
            shared[first] = pair_turned.x;
            shared[second] = pair_turned.y;
        }
        __syncwarp();
    }
};
