// Experts of each token, by crates/ops/src/routing.rs: one warp a token. Then the places of each expert, ascending. A few tokens are one
// launch.

#define GROUPS_MAX 64

// Whether `a` goes before `b` whatever their ids: the larger first, NaN before all.
DEVICE bool ahead(float a, float b) { return a > b || (a != a && b == b); }

// Of a warp's candidates (id -1: none), the first; equal ones by the lowest id.
DEVICE int first_of_warp(float value, int id) {
#pragma unroll
    for (int width = 16; width > 0; width /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, value, width);
        int other_id = __shfl_xor_sync(0xffffffffu, id, width);
        bool swap = other_id >= 0 && (id < 0 || ahead(other, value) || (!ahead(value, other) && other_id < id));
        if (swap) { value = other; id = other_id; }
    }
    return id;
}

// The first of those of `count` that are not `taken`; lanes scan by strides.
DEVICE int first_left(const float* values, const u8* taken, u32 count, u32 lane) {
    float best = 0.0f;
    int id = -1;
    for (u32 i = lane; i < count; i += 32)
        if (!taken[i] && (id < 0 || ahead(values[i], best))) { best = values[i]; id = (int)i; }
    return first_of_warp(best, id);
}

// exp(v - highest) / sum, in place: maxima ignore NaN, the sum runs in 16 lanes.
DEVICE void softmax(float* values, u32 count, u32 lane) {
    float highest = __uint_as_float(0xff800000u);
    for (u32 i = lane; i < count; i += 32) highest = values[i] > highest ? values[i] : highest;
#pragma unroll
    for (int width = 16; width > 0; width /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, highest, width);
        highest = other > highest ? other : highest;
    }
    for (u32 i = lane; i < count; i += 32) values[i] = canonical_exp(values[i] - highest);
    __syncwarp();
    float sum = 0.0f;
    if (lane < 16)
        for (u32 i = lane; i < count; i += 16) sum = sum + values[i];
    sum = __shfl_sync(0xffffffffu, add_lanes(sum), 0);
    for (u32 i = lane; i < count; i += 32) values[i] = values[i] / sum;
    __syncwarp();
}

// Leaves `taken` set for experts of groups that are not kept.
DEVICE void keep_groups(const float* choice, u8* taken, u32 experts, u32 count, u32 kept, u32 judged_by, u32 lane) {
    __shared__ float judged_of[FEW][GROUPS_MAX];
    __shared__ u8 out_of[FEW][GROUPS_MAX];
    float* judged = judged_of[threadIdx.x / 32];
    u8* out = out_of[threadIdx.x / 32];
    u32 size = experts / count;
    for (u32 g = lane; g < count; g += 32) {
        float sum = 0.0f;
        int last = -1;
        for (u32 n = 0; n < judged_by; n++) {
            int best = -1;
            for (u32 i = g * size; i < (g + 1) * size; i++) {
                bool after = last < 0 || ahead(choice[last], choice[i]) || (!ahead(choice[i], choice[last]) && (int)i > last);
                if (after && (best < 0 || ahead(choice[i], choice[best]))) best = (int)i;
            }
            last = best;
            sum = sum + choice[best];
        }
        judged[g] = sum;
        out[g] = 0;
    }
    __syncwarp();
    for (u32 n = 0; n < kept; n++) {
        int best = first_left(judged, out, count, lane);
        if (lane == 0) out[best] = 1;
        __syncwarp();
    }
    for (u32 i = lane; i < experts; i += 32) taken[i] = !out[i / size];
    __syncwarp();
}

// max(x, 0) + ln(1 + e^-|x|); math.rs, `softplus`.
DEVICE float softplus(float x) {
    float size = x > -x ? x : -x, larger = x > 0.0f ? x : 0.0f;
    float e = canonical_exp(-size);
    float t = e / (2.0f + e), z = t * t;
    float p = 1.0f / 15.0f;
    p = fma(p, z, 1.0f / 13.0f);
    p = fma(p, z, 1.0f / 11.0f);
    p = fma(p, z, 1.0f / 9.0f);
    p = fma(p, z, 1.0f / 7.0f);
    p = fma(p, z, 1.0f / 5.0f);
    p = fma(p, z, 1.0f / 3.0f);
    p = fma(p, z, 1.0f);
    return larger + (t + t) * p;
}

DEVICE float scored(float logit, u32 score) {
    if (score == 1) return 1.0f / (1.0f + canonical_exp(-logit));
    return score == 3 ? __fsqrt_rn(softplus(logit)) : logit;
}

// How a token is routed; crates/ops/src/routing.rs. score: 0 softmax, 1 sigmoid, 2 softmax of the chosen, 3 root of softplus. Where they
// are `given`, experts are chosen already.
struct Routing {
    const float* bias;
    const float* factors;
    u32 experts, slots, score, groups, kept, judged_by, normalise;
    float sum_min, factor;
    u32 given;

    // By a warp: logits of all experts, ids and weights of the slots. `scores` has two numbers and a byte for each expert.
    DEVICE_MEMBER void token(const float* in, u32* ids, float* out, float* scores) const {
        float* choice = scores + experts;
        u8* taken = (u8*)(choice + experts);
        const u32 lane = threadIdx.x % 32;
        for (u32 i = lane; i < experts; i += 32) scores[i] = scored(in[i], score);
        __syncwarp();
        if (score == 0) softmax(scores, experts, lane);
        for (u32 i = lane; i < experts; i += 32) {
            choice[i] = bias ? scores[i] + bias[i] : scores[i];
            taken[i] = 0;
        }
        __syncwarp();
        if (groups > 0) keep_groups(choice, taken, experts, groups, kept, judged_by, lane);
        for (u32 s = 0; s < slots; s++) {
            int best = given ? 0 : first_left(choice, taken, experts, lane);
            if (lane == 0) {
                if (given) best = (int)ids[s];
                taken[best] = 1;
                ids[s] = (u32)best;
                out[s] = scores[best];
            }
            __syncwarp();
        }
        if (score == 2) softmax(out, slots, lane);
        if (lane > 0) return;
        float total = 0.0f;
        for (u32 s = 0; s < slots; s++) total = total + out[s];
        total = total < sum_min ? sum_min : total;
        for (u32 s = 0; s < slots; s++) {
            float w = normalise ? out[s] / total : out[s];
            w = w * factor;
            out[s] = factors ? w * factors[ids[s]] : w;
        }
    }
};

// Shared memory of a token: scores, choice (f32), taken (bytes), whole numbers of four bytes.
DEVICE u32 numbers_of_token(u32 experts) { return 2 * experts + (experts + 3) / 4; }

// logits (tokens, experts); chosen and weights (tokens, slots). A warp a token.
KERNEL route(const float* logits, const float* bias, const float* factors, u32* chosen, float* weights, u32 experts, u32 slots,
             u32 score, u32 groups, u32 kept, u32 judged_by, u32 normalise, float sum_min, float factor, u32 given) {
    begin_in_turn();
    DYNAMIC_SHARED(float, scores);
    const Routing routing = {bias, factors, experts, slots, score, groups, kept, judged_by, normalise, sum_min, factor, given};
    const u64 token = blockIdx.x;
    routing.token(logits + token * experts, chosen + token * slots, weights + token * slots, scores);
}

// The same of a few tokens, by one block, and the places of each expert, as list_places gives them: a thread an expert.
KERNEL __launch_bounds__(THREADS) route_few(const float* logits, const float* bias, const float* factors, u32* chosen, float* weights,
                                            u32 experts, u32 slots, u32 score, u32 groups, u32 kept, u32 judged_by, u32 normalise,
                                            float sum_min, float factor, u32 given, u32* starts, u32* order, u32* columns, u32 tokens) {
    begin_in_turn();
    DYNAMIC_SHARED(float, scores);
    const Routing routing = {bias, factors, experts, slots, score, groups, kept, judged_by, normalise, sum_min, factor, given};
    const u32 token = threadIdx.x / 32, places = tokens * slots;
    if (token < tokens)
        routing.token(logits + (u64)token * experts, chosen + token * slots, weights + token * slots,
                      scores + token * numbers_of_token(experts));
    __syncthreads();
    // Scores are done with; a token has more of them than slots.
    u32* placed = (u32*)scores;
    for (u32 p = threadIdx.x; p < places; p += blockDim.x) placed[p] = chosen[p];
    __syncthreads();
    for (u32 expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        u32 before = 0, own = 0;
#pragma unroll 4
        for (u32 p = 0; p < places; p++) {
            const u32 e = placed[p];
            before += e < expert;
            own += e == expert;
        }
        starts[expert] = before;
        if (expert + 1 == experts) starts[experts] = before + own;
        const u32 first_column = (before + 7) / 8 * 8 + 8 * expert;
        u32 done = 0;
        for (u32 p = 0; p < places && done < own; p++) {
            if (placed[p] != expert) continue;
            order[before + done] = p;
            columns[p] = first_column + done;
            done++;
        }
    }
}

// The places of each expert, ascending: order[starts[e] .. starts[e + 1]]. One block an expert, which counts the places of those before.
// `columns` is the way back: which column of the launch a place is, where each expert's begin at a multiple of eight (matmul/prefill.cu).
KERNEL __launch_bounds__(THREADS) list_places(const u32* chosen, u32* starts, u32* order, u32* columns, u32 places) {
    begin_in_turn();
    __shared__ u32 of_warps[2][THREADS / 32];
    const u32 expert = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 before = 0, own = 0;
    for (u32 p = threadIdx.x; p < places; p += THREADS) {
        u32 e = chosen[p];
        before += e < expert;
        own += e == expert;
    }
    before = __reduce_add_sync(0xffffffffu, before);
    own = __reduce_add_sync(0xffffffffu, own);
    if (lane == 0) {
        of_warps[0][warp] = before;
        of_warps[1][warp] = own;
    }
    __syncthreads();
    before = own = 0;
    for (u32 w = 0; w < THREADS / 32; w++) {
        before += of_warps[0][w];
        own += of_warps[1][w];
    }
    if (threadIdx.x == 0) {
        starts[expert] = before;
        if (expert + 1 == gridDim.x) starts[expert + 1] = before + own;
    }
    const u32 first_column = (before + 7) / 8 * 8 + 8 * expert;
    u32 done = 0;
    for (u32 first = 0; first < places && done < own; first += THREADS) {
        u32 p = first + threadIdx.x;
        bool is_own = p < places && chosen[p] == expert;
        u32 votes = __ballot_sync(0xffffffffu, is_own);
        __syncthreads();
        if (lane == 0) of_warps[0][warp] = __popc(votes);
        __syncthreads();
        u32 index = done + __popc(votes & ((1u << lane) - 1));
        for (u32 w = 0; w < THREADS / 32; w++) {
            index += w < warp ? of_warps[0][w] : 0;
            done += of_warps[0][w];
        }
        if (is_own) {
            order[before + index] = p;
            columns[p] = first_column + index;
        }
    }
}
