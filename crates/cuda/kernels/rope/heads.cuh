// Heads of rows on their way between a projection and attention: normed, where there are weights for it, and turned by the angles
// of their row; numerics.rs, `rms_norm` and `rotate`. One warp a head, which leaves it in shared memory too.

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

    // Before its turn: weights come from far.
    DEVICE_MEMBER void begin() const {
        const u32 i = threadIdx.x % 32 * 32;
        if (weight && i < head_dim) prefetch(weight + i);
    }

    DEVICE_MEMBER void compute(float* shared, u64 row, u32 head) const {
        const u32 lane = threadIdx.x % 32;
        const u64 at = (row * heads + head) * head_dim;
#pragma unroll 8
        for (u32 i = lane; i < head_dim; i += 32) shared[i] = x[at + i];
        __syncwarp();
        if (weight) norm(shared, lane);
        if (angles) turn(shared, row, lane);
        if (!weight && !angles) return;
#pragma unroll 1
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

    DEVICE_MEMBER void norm(float* shared, u32 lane) const {
        const float inverse = factor(shared);
#pragma unroll 8
        for (u32 i = lane; i < head_dim; i += 32) shared[i] = (shared[i] * inverse) * weight[i];
        __syncwarp();
    }

    // In shared memory, or where the head lies.
    DEVICE_MEMBER void turn(float* shared, u64 row, u32 lane) const {
        const float* of_row = angles + row * 2 * pairs;
#pragma unroll 1
        for (u32 pair = lane; pair < pairs; pair += 32) {
            const float cosine = of_row[pair], sine = way & 2 ? -of_row[pairs + pair] : of_row[pairs + pair];
            const u32 first = first_feature + (way & 1 ? 2 * pair : pair), second = way & 1 ? first + 1 : first + pairs;
            const float2 pair_turned = turned(shared[first], shared[second], cosine, sine);
            shared[first] = pair_turned.x;
            shared[second] = pair_turned.y;
        }
        __syncwarp();
    }
};
