// Scores of compressed rows for their choice by an indexer; crates/ops/src/numerics.rs. A block is a row of the step and KEYS of its
// compressed rows: a product of keys by the queries of 64 heads, whose every sum is one chain along the features, and then a chain
// over heads for each key. Where blocks have many keys, and where they have few: index.cu, index_few.cu.
//
// Keys and queries that were rounded to small floats are whole numbers, but for a factor of a power of two: a head's and a key's own. Where
// they are so small that no sum of products needs more than 24 bits, no partial sum is ever rounded, whatever the order, and the matrix
// units give the chain's own bits. A block looks whether that is so; if not, it walks the chains in f32.

#define TILE 64
#define DEPTH 32
#define EACH 4
#define WARPS (THREADS / 32)
// Blocks that share a processor.
#define RESIDENT 2

// Threads that walk chains: each has those of 4 keys and 4 heads.
#define WALKERS (TILE / EACH * (TILE / EACH))
static_assert(THREADS >= WALKERS, "there are threads for all chains");

// Whole numbers of queries and of keys stay below 2^QUERY_BITS and 2^KEY_BITS, and so a sum below 2^23.
#define QUERY_BITS 9
#define KEY_BITS 7

// Numbers of a stage, those of a feature together. Where a key, or a head, stands goes by the feature too, so that what is written turned
// spreads over the banks.
struct Stage {
    float numbers[DEPTH][TILE + 4];

    DEVICE_MEMBER void put(u32 feature, u32 at, float value) { numbers[feature][at ^ feature / 8 * 8] = value; }
    DEVICE_MEMBER float4 get(u32 feature, u32 at) const { return *(const float4*)&numbers[feature][at ^ feature / 8 * 8]; }
};

// Of chains that are walked.
struct Walked {
    Stage keys, others;
    float dots[TILE][TILE + 4];
};

// Of the matrix units: queries as whole numbers, padded so that reads spread over the banks, and what takes them back.
#define PIECES (WIDTH / 32)
#define HEAD_BYTES (WIDTH * 2 + (WIDTH % 64 == 0 ? 64 : 0))
struct Whole {
    u8 queries[TILE * HEAD_BYTES];
    float downs[TILE];
};
struct Heads {
    const float* queries;
    // Weights, scaled.
    const float* weights;
    u32 count;
};

// Eight numbers of a key from `d` on; zeros where there are none.
DEVICE void load_key(float (&out)[8], const u8* row, u32 d) {
#if FORMAT == 1 && WIDTH % 32 == 0
    const uint4 halves = *(const uint4*)(row + d * 2);
    const u32 words[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = half_to_float(i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu);
#elif FORMAT == 4 && WIDTH % 32 == 0
    const u32 codes = *(const u32*)(row + d / 2);
    const float factor = scale_factor(row[SCALES_AT + d / 32]);
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = fp4_value(codes >> 4 * i) * factor;
#else
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = d + i < WIDTH ? number_of(row, d + i) : 0.0f;
#endif
}

DEVICE void load_query(float (&out)[8], const float* query, u32 d) {
#if WIDTH % 32 == 0
    const float4 low = *(const float4*)(query + d), high = *(const float4*)(query + d + 4);
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
#else
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = d + i < WIDTH ? query[d + i] : 0.0f;
#endif
}

// The keys of a block.
struct Keys {
    RowOfStep row;
    const u8* pages;
    u32 ratio, first, complete;

    // Those beyond the last are the last.
    DEVICE_MEMBER const u8* at(u32 index) const {
        index = first + index < complete ? first + index : complete - 1;
        return pages + place_of_compressed(row, index, ratio);
    }
};

DEVICE float next_score(float score, float dot, float weight) { return fma(dot < 0.0f ? 0.0f : dot, weight, score); }

// Sums of 64 keys from `first` on by all heads, in order, and then the chains of those keys, which threads `first` and up have.
DEVICE float walk(Walked& shared, const Keys& keys, u32 first, const Heads& heads, float score) {
    const u32 t = threadIdx.x, key_at = t % 16 * EACH, head_at = t / 16 * EACH;
    // The others meet them.
    const bool walks = THREADS == WALKERS || t < WALKERS;
    // What a thread brings: 8 features of a key, and of a head.
    const u32 place = t / 4, part = t % 4 * 8;
    const u8* own_key = keys.at(first + place);
    const float* own_query = heads.queries + (u64)(place < heads.count ? place : 0) * WIDTH;
    float sums[EACH][EACH] = {};
    for (u32 depth = 0; depth < WIDTH; depth += DEPTH) {
        float key[8], query[8];
        load_key(key, own_key, depth + part);
        load_query(query, own_query, depth + part);
        __syncthreads();
#pragma unroll
        for (int i = 0; walks && i < 8; i++) {
            shared.keys.put(part + i, place, key[i]);
            shared.others.put(part + i, place, query[i]);
        }
        __syncthreads();
        const u32 left = WIDTH - depth < DEPTH ? WIDTH - depth : DEPTH, end = walks ? left : 0;
#pragma unroll 8
        for (u32 d = 0; d < end; d++) {
            const float4 k = shared.keys.get(d, key_at), q = shared.others.get(d, head_at);
            const float of_heads[EACH] = {q.x, q.y, q.z, q.w};
#pragma unroll
            for (int h = 0; h < EACH; h++) {
                sums[h][0] = fma(of_heads[h], k.x, sums[h][0]);
                sums[h][1] = fma(of_heads[h], k.y, sums[h][1]);
                sums[h][2] = fma(of_heads[h], k.z, sums[h][2]);
                sums[h][3] = fma(of_heads[h], k.w, sums[h][3]);
            }
        }
    }
#pragma unroll
    for (int h = 0; walks && h < EACH; h++)
        *(float4*)&shared.dots[head_at + h][key_at] = make_float4(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    __syncthreads();
    if (t >= first && t < first + TILE) {
#pragma unroll 8
        for (u32 h = 0; h < heads.count; h++) score = next_score(score, shared.dots[h][t - first], heads.weights[h]);
    }
    return score;
}

// Whether something holds for all threads of a block, which meets. `flags` has a place a warp, which nobody takes anew before all meet
// again.
DEVICE bool all_of_block(bool holds, u32* flags) {
    const u32 votes = __ballot_sync(0xffffffffu, holds);
    if (threadIdx.x % 32 == 0) flags[threadIdx.x / 32] = votes;
    __syncthreads();
    u32 all = 0xffffffffu;
#pragma unroll
    for (int w = 0; w < WARPS; w++) all &= flags[w];
    return all == 0xffffffffu;
}

#if UNITS
#if FORMAT == 4
// Scales of codes that are normal f16: of 0.5 and of 6.
#define SCALE_MIN (127 - 13)
#define SCALE_MAX (127 + 13)
#endif

// A lane's quarter of a key: eight numbers of each 32, which are its parts of two products.
struct KeyPart {
#if FORMAT == 1
    uint4 halves[PIECES];

    DEVICE_MEMBER void load(const u8* key) {
#pragma unroll
        for (int p = 0; p < PIECES; p++) halves[p] = *(const uint4*)(key + (p * 4 + threadIdx.x % 4) * 16);
    }
    // As `asked` has it.
    DEVICE_MEMBER void ask() {
#pragma unroll
        for (int p = 0; p < PIECES; p++) asked(halves[p].x);
    }
    DEVICE_MEMBER uint4 piece(u32 p) const { return halves[p]; }
    // Whether they are f16.
    DEVICE_MEMBER bool are_halves() const { return true; }
#else
    u32 codes[PIECES], scales[PIECES];

    DEVICE_MEMBER void load(const u8* key) {
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            codes[p] = *(const u32*)(key + p * 16 + threadIdx.x % 4 * 4);
            scales[p] = key[SCALES_AT + p];
        }
    }
    DEVICE_MEMBER void ask() {
#pragma unroll
        for (int p = 0; p < PIECES; p++) asked(codes[p]), asked(scales[p]);
    }
    DEVICE_MEMBER uint4 piece(u32 p) const {
        const u32 scale = scales[p];
        // The scale as f16, and what the bits of a code lack as such.
        const u32 half = ((scale < SCALE_MIN ? SCALE_MIN : scale > SCALE_MAX ? SCALE_MAX : scale) - 112) << 10;
        const u32 factor = half << 16 | half, bias = (14 + 15) << 10 | (14 + 15) << 26;
        u32 pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 byte = codes[p] >> 8 * i & 0xff, two = (byte & 0xf) | (byte & 0xf0) << 12;
            pairs[i] = multiply_halves(multiply_halves((two & 0x70007u) << 9 | (two & 0x80008u) << 12, bias), factor);
        }
        return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    DEVICE_MEMBER bool are_halves() const {
        bool are = true;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            // Codes of zero are so with any small scale.
            are &= (scales[p] <= SCALE_MAX) & ((scales[p] >= SCALE_MIN) | ((codes[p] & 0x77777777u) == 0));
        }
        return are;
    }
#endif

    // Whether the key, of which four lanes have a quarter each, is whole numbers below 2^KEY_BITS, but for a factor.
    DEVICE_MEMBER bool is_whole() const {
        uint4 pieces[PIECES];
        u32 most = 0;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            pieces[p] = piece(p);
            const u32 words[4] = {pieces[p].x, pieces[p].y, pieces[p].z, pieces[p].w};
#pragma unroll
            for (int i = 0; i < 4; i++) most = larger_halves(most, words[i] & 0x7fff7fffu);
        }
        most = larger_halves(most, most >> 16 | most << 16);
        most = larger_halves(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = larger_halves(most, __shfl_xor_sync(0xffffffffu, most, 2)) & 0x7fffu;
        // A sum with this has no room for what is less than one of the whole numbers.
        const u32 exponent = most >> 10, one = (exponent + 11 - KEY_BITS) << 10 | 0x200u, magic = one << 16 | one;
        u32 rest = 0;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const u32 words[4] = {pieces[p].x, pieces[p].y, pieces[p].z, pieces[p].w};
#pragma unroll
            for (int i = 0; i < 4; i++) rest |= add_halves(add_halves(words[i], magic), magic ^ 0x80008000u) ^ words[i];
        }
        // Without branches, behind which other keys would wait. The sign of zero is lost.
        return are_halves() & ((most == 0) | ((exponent > 0) & (exponent + 11 - KEY_BITS < 31) & ((rest & 0x7fff7fffu) == 0)));
    }
};

// Lanes that share a head's query, and what each has of it: eight numbers of some of the pieces. Heads that are not there are the last, and
// nobody asks for their sums.
#define HEAD_LANES (THREADS / TILE)
#define PIECE_STEP (HEAD_LANES / 4)
#define OWN_PIECES ((PIECES + PIECE_STEP - 1) / PIECE_STEP)
static_assert(HEAD_LANES == 4 || HEAD_LANES == 8, "lanes of a head are neighbours in a warp");

struct QueryPart {
    float numbers[OWN_PIECES][8];

    DEVICE_MEMBER static u32 head() { return threadIdx.x / HEAD_LANES; }
    DEVICE_MEMBER static u32 part() { return threadIdx.x % 4; }
    // Of so many pieces the last may be none.
    DEVICE_MEMBER static u32 piece(u32 i) { return threadIdx.x % HEAD_LANES / 4 + i * PIECE_STEP; }

    DEVICE_MEMBER void load(const float* queries, u32 count) {
        const float* own = queries + (u64)(head() < count ? head() : count - 1) * WIDTH + part() * 8;
#pragma unroll
        for (int i = 0; i < OWN_PIECES; i++) load_query(numbers[i], own, (piece(i) < PIECES ? piece(i) : PIECES - 1) * 32);
    }
    // As `asked` has it.
    DEVICE_MEMBER void ask() {
#pragma unroll
        for (int i = 0; i < OWN_PIECES; i++)
#pragma unroll
            for (int n = 0; n < 8; n++) asked(numbers[i][n]);
    }

    // Keeps it as whole numbers; whether it is such.
    DEVICE_MEMBER bool keep(Whole& shared) {
        u32 most = 0;
#pragma unroll
        for (int i = 0; i < OWN_PIECES; i++)
#pragma unroll
            for (int n = 0; n < 8; n++) most = max(most, __float_as_uint(numbers[i][n]) & 0x7fffffffu);
#pragma unroll
        for (int lane = 1; lane < HEAD_LANES; lane *= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, lane));
        const u32 exponent = most >> 23;
        // Far from the ends, so that no power here, and no product of it, leaves what f32 has.
        const bool is_plain = exponent > 64 && exponent < 190;
        const u32 up_exponent = is_plain ? 2 * 127 + QUERY_BITS - 1 - exponent : 127;
        const float up = __uint_as_float(up_exponent << 23);
        // A sum with this has no room for what is less than one of the whole numbers.
        const float magic = __uint_as_float((2 * 127 + 23 - up_exponent) << 23 | 0x400000u);
        bool is_whole = most == 0 || is_plain;
#pragma unroll
        for (int i = 0; i < OWN_PIECES; i++) {
            u32 pairs[4];
#pragma unroll
            for (int n = 0; n < 8; n++) {
                // Without branches: all is known already. NaN is no largest number, and not equal.
                is_whole &= (numbers[i][n] + magic) - magic == numbers[i][n];
                numbers[i][n] = numbers[i][n] * up;
            }
#pragma unroll
            for (int n = 0; n < 4; n++) pairs[n] = pair_of_halves(numbers[i][2 * n], numbers[i][2 * n + 1]);
            u8* at = &shared.queries[head() * HEAD_BYTES + (piece(i) * 4 + part()) * 16];
            if (piece(i) < PIECES) *(uint4*)at = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
        if (threadIdx.x % HEAD_LANES == 0) shared.downs[head()] = __uint_as_float((254 - up_exponent) << 23);
        return is_whole;
    }
};
#endif
