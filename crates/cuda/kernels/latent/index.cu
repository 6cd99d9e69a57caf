// Scores of compressed rows for their choice by an indexer; crates/ops/src/numerics.rs. A block is a row of the step and 256 of its
// compressed rows: a product of keys by the queries of 64 heads, whose every sum is one chain along the features, and then a chain
// over heads for each key.
//
// Keys and queries that were rounded to small floats are whole numbers, but for a factor of a power of two: a head's and a key's own. Where
// they are so small that no sum of products needs more than 24 bits, no partial sum is ever rounded, whatever the order, and the matrix
// units give the chain's own bits. A block looks whether that is so; if not, it walks the chains in f32.

#define TILE 64
#define DEPTH 32
#define EACH 4
// Thread t has the chain over heads of key t.
#define KEYS THREADS
#define WARPS (THREADS / 32)
// Blocks that share a processor.
#define RESIDENT 2

static_assert(THREADS == TILE / EACH * (TILE / EACH), "a thread has 4 keys and 4 heads");

// Whether rows can be operands of the matrix units: f16, or codes of E2M1 that become such, in whole pieces, and few enough.
#define HAS_UNITS ((FORMAT == 1 || FORMAT == 4) && WIDTH % 32 == 0 && WIDTH <= 128)
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

// Of the matrix units: queries as whole numbers, padded so that reads spread over the banks, and sums of 16 heads and a warp's keys.
#define PIECES (WIDTH / 32)
#define HEAD_BYTES (WIDTH * 2 + (WIDTH % 64 == 0 ? 64 : 0))
struct Multiplied {
    u8 queries[TILE * HEAD_BYTES];
    float dots[WARPS][16][40];
    // What takes whole numbers back.
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
        for (int i = 0; i < 8; i++) {
            shared.keys.put(part + i, place, key[i]);
            shared.others.put(part + i, place, query[i]);
        }
        __syncthreads();
        const u32 end = WIDTH - depth < DEPTH ? WIDTH - depth : DEPTH;
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
    for (int h = 0; h < EACH; h++)
        *(float4*)&shared.dots[head_at + h][key_at] = make_float4(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    __syncthreads();
    if (t >= first && t < first + TILE) {
#pragma unroll 8
        for (u32 h = 0; h < heads.count; h++) score = next_score(score, shared.dots[h][t - first], heads.weights[h]);
    }
    return score;
}

// Whether something holds for all threads of a block. `flags` has a place a warp.
DEVICE bool all_of_block(bool holds, u32* flags) {
    const u32 votes = __ballot_sync(0xffffffffu, holds);
    if (threadIdx.x % 32 == 0) flags[threadIdx.x / 32] = votes;
    __syncthreads();
    u32 all = 0xffffffffu;
#pragma unroll
    for (int w = 0; w < WARPS; w++) all &= flags[w];
    __syncthreads();
    return all == 0xffffffffu;
}

#if HAS_UNITS
#if FORMAT == 1
// Where a lane has a key's numbers: eight of each 32, which are its parts of two products.
DEVICE uint4 piece_of(const u8* key, u32 piece) { return *(const uint4*)(key + (piece * 4 + threadIdx.x % 4) * 16); }
// Whether they are f16.
DEVICE bool are_halves(const u8*) { return true; }
#else
// Scales of codes that are normal f16: of 0.5 and of 6.
#define SCALE_MIN (127 - 13)
#define SCALE_MAX (127 + 13)

DEVICE u32 codes_of(const u8* key, u32 piece) { return *(const u32*)(key + piece * 16 + threadIdx.x % 4 * 4); }
DEVICE uint4 piece_of(const u8* key, u32 piece) {
    const u32 codes = codes_of(key, piece), scale = key[SCALES_AT + piece];
    // The scale as f16, and what the bits of a code lack as such.
    const u32 half = ((scale < SCALE_MIN ? SCALE_MIN : scale > SCALE_MAX ? SCALE_MAX : scale) - 112) << 10;
    const u32 factor = half << 16 | half, bias = (14 + 15) << 10 | (14 + 15) << 26;
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 byte = codes >> 8 * i & 0xff, two = (byte & 0xf) | (byte & 0xf0) << 12;
        pairs[i] = multiply_halves(multiply_halves((two & 0x70007u) << 9 | (two & 0x80008u) << 12, bias), factor);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
DEVICE bool are_halves(const u8* key) {
    bool are = true;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const u32 scale = key[SCALES_AT + p];
        // Codes of zero are so with any small scale.
        are &= (scale <= SCALE_MAX) & ((scale >= SCALE_MIN) | ((codes_of(key, p) & 0x77777777u) == 0));
    }
    return are;
}
#endif

// Whether a key, of which four lanes have a quarter each, is whole numbers below 2^KEY_BITS, but for a factor.
DEVICE bool is_whole_key(const u8* key) {
    uint4 pieces[PIECES];
    u32 most = 0;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        pieces[p] = piece_of(key, p);
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
        for (int i = 0; i < 4; i++) rest |= (add_halves(add_halves(words[i], magic), magic ^ 0x80008000u) ^ words[i]) & 0x7fff7fffu;
    }
    // Without branches, behind which other keys would wait.
    return are_halves(key) & ((most == 0) | ((exponent > 0) & (exponent + 11 - KEY_BITS < 31) & (rest == 0)));
}

// A quarter of a head's query. Heads that are not there are zeros.
struct QueryPart {
    float numbers[PIECES][8];

    DEVICE_MEMBER void load(const float* queries, u32 count) {
        const u32 head = threadIdx.x / 4, part = threadIdx.x % 4;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            if (head < count) load_query(numbers[p], queries + (u64)head * WIDTH, p * 32 + part * 8);
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (head >= count) numbers[p][i] = 0.0f;
        }
    }
};

// Keeps it as whole numbers; whether it is such.
DEVICE bool keep_query(Multiplied& shared, float (&numbers)[PIECES][8]) {
    const u32 head = threadIdx.x / 4, part = threadIdx.x % 4;
    u32 most = 0;
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < 8; i++) most = max(most, __float_as_uint(numbers[p][i]) & 0x7fffffffu);
    most = max(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = max(most, __shfl_xor_sync(0xffffffffu, most, 2));
    const u32 exponent = most >> 23;
    // Far from the ends, so that no power here, and no product of it, leaves what f32 has.
    const bool is_plain = exponent > 64 && exponent < 190;
    const u32 up_exponent = is_plain ? 2 * 127 + QUERY_BITS - 1 - exponent : 127;
    const float up = __uint_as_float(up_exponent << 23);
    bool is_whole = most == 0 || is_plain;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        u32 pairs[4];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float whole = numbers[p][i] * up;
            // Without branches: all is known already.
            is_whole &= ((whole + MAGIC) - MAGIC == whole) & ((whole != 0.0f) | (numbers[p][i] == 0.0f));
            numbers[p][i] = whole;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) pairs[i] = pair_of_halves(numbers[p][2 * i], numbers[p][2 * i + 1]);
        *(uint4*)&shared.queries[head * HEAD_BYTES + (p * 4 + part) * 16] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    if (part == 0) shared.downs[head] = __uint_as_float((254 - up_exponent) << 23);
    return is_whole;
}

// Goes on with the chains of a warp's 32 keys, a lane a key. A lane has parts of four keys, eight of the warp's apart.
DEVICE float multiply_keys(Multiplied& shared, const u8* const (&own)[4], const Heads& heads, float score) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    float(*dots)[40] = shared.dots[warp];
    uint4 key[4][PIECES];
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int p = 0; p < PIECES; p++) key[n][p] = piece_of(own[n], p);
#pragma unroll 1
    for (u32 first = 0; first < heads.count; first += 16) {
        float sums[4][4] = {};
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const u8* at = shared.queries + (first + g) * HEAD_BYTES + (p * 4 + t) * 16;
            const uint4 one = *(const uint4*)at, other = *(const uint4*)(at + 8 * HEAD_BYTES);
            const u32 low[4] = {one.x, other.x, one.y, other.y}, high[4] = {one.z, other.z, one.w, other.w};
#pragma unroll
            for (int n = 0; n < 4; n++) {
                multiply_numbers(sums[n], low, key[n][p].x, key[n][p].y);
                multiply_numbers(sums[n], high, key[n][p].z, key[n][p].w);
            }
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < 4; n++) {
            *(float2*)&dots[g][n * 8 + t * 2] = make_float2(sums[n][0], sums[n][1]);
            *(float2*)&dots[g + 8][n * 8 + t * 2] = make_float2(sums[n][2], sums[n][3]);
        }
        __syncwarp();
        const u32 count = heads.count < first + 16 ? heads.count : first + 16;
#pragma unroll 8
        for (u32 h = first; h < count; h++) score = next_score(score, dots[h - first][lane] * shared.downs[h], heads.weights[h]);
    }
    return score;
}
#endif

// scores [row of the chunk][stride]: of the compressed rows that a row sees, where these are more than are selected.
KERNEL __launch_bounds__(THREADS, RESIDENT) index_scores(const float* queries, const float* head_weights, const u8* pages, float* scores,
                                                         const u32* rows, const u32* lists, u32 first, u32 heads, u32 ratio, u32 top_k,
                                                         u32 stride, float scale) {
#if HAS_UNITS
    __shared__ __align__(16) u8 shared[sizeof(Walked) > sizeof(Multiplied) ? sizeof(Walked) : sizeof(Multiplied)];
#else
    __shared__ __align__(16) u8 shared[sizeof(Walked)];
#endif
    __shared__ float weights[TILE];
    __shared__ u32 flags[WARPS];
    after_earlier_work();
    const u32 row = first + blockIdx.y;
    // What needs no lookup is asked for before it is known whether there is work; keys are looked up once queries have left their
    // registers.
    const float* const own_queries = queries + (u64)row * heads * WIDTH;
    const float* const own_weights = head_weights + (u64)row * heads;
    auto count_of = [&](u32 from) { return from >= heads ? 0 : heads - from < TILE ? heads - from : TILE; };
    float weight = threadIdx.x < count_of(0) ? own_weights[threadIdx.x] : 0.0f;
    asked(weight);
#if HAS_UNITS
    QueryPart query;
    query.load(own_queries, count_of(0));
#pragma unroll
    for (int p = 0; p < PIECES; p++)
#pragma unroll
        for (int i = 0; i < 8; i++) asked(query.numbers[p][i]);
#endif
    const RowOfStep own_row = Step{rows, lists}.all_of(row);
    const u32 complete = (own_row.position + 1) / ratio, first_key = blockIdx.x * KEYS, t = threadIdx.x;
    if (complete <= top_k || first_key >= complete) return;
    const Keys keys = {own_row, pages, ratio, first_key, complete};
#if HAS_UNITS
    const u8* own[4];
    bool are_whole = true;
#endif
    float score = 0.0f;
#pragma unroll 1
    for (u32 from = 0; from < heads; from += TILE) {
        const u32 count = count_of(from);
        const Heads some = {own_queries + (u64)from * WIDTH, weights, count};
        __syncthreads();
        if (t < count) weights[t] = weight * scale;
#if HAS_UNITS
        const bool is_whole = keep_query(*(Multiplied*)shared, query.numbers);
        if (from == 0) {
#pragma unroll
            for (u32 n = 0; n < 4; n++) own[n] = keys.at(t / 32 * 32 + n * 8 + t % 32 / 4);
#pragma unroll
            for (u32 n = 0; n < 4; n++) are_whole &= is_whole_key(own[n]);
        }
        const bool is_walked = !all_of_block(is_whole && are_whole, flags);
        if (!is_walked) score = multiply_keys(*(Multiplied*)shared, own, some, score);
#else
        const bool is_walked = true;
#endif
        for (u32 of_tile = 0; is_walked && of_tile < KEYS && first_key + of_tile < complete; of_tile += TILE)
            score = walk(*(Walked*)shared, keys, of_tile, some, score);
        const u32 next = from + TILE, more = count_of(next);
        weight = t < more ? own_weights[next + t] : 0.0f;
#if HAS_UNITS
        query.load(own_queries + (u64)next * WIDTH, more);
#endif
    }
    if (first_key + t < complete) scores[(u64)blockIdx.y * stride + first_key + t] = score;
}
