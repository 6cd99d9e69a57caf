// Experts of each token, by crates/ops/src/routing.rs: one warp a token. Then the places of each expert, ascending. A few tokens are one
// launch.

#define GROUPS_MAX 64
// Numbers that a thread asks for before it uses the first.
#define HELD 8

// The sum of `count` numbers in order, from zero on, `stride` apart; more than none. Zero may come last: that only no number but -0 is
// summed makes a difference to.
DEVICE float sum_from_zero(const float* numbers, u32 stride, u32 count) { return 0.0f + sum_in_order(numbers, stride, count); }

// The id of the highest of a warp's `orders`, of equal ones the lowest; it is taken away. Lanes scan by strides.
DEVICE u32 take_first(u32* orders, u32 count, u32 lane) {
    u32 best = 0, id = 0xffffffffu;
#pragma unroll 1
    for (u32 first = lane; first < count; first += 32 * HELD) {
        u32 held[HELD];
#pragma unroll
        for (u32 k = 0; k < HELD; k++) held[k] = first + k * 32 < count ? orders[first + k * 32] : 0;
#pragma unroll
        for (u32 k = 0; k < HELD; k++)
            if (held[k] > best) { best = held[k]; id = first + k * 32; }
    }
    const u32 highest = __reduce_max_sync(0xffffffffu, best);
    id = __reduce_min_sync(0xffffffffu, best == highest ? id : 0xffffffffu);
    // A reduction does not order what lanes read before it.
    __syncwarp();
    if (lane == 0) orders[id] = 0;
    __syncwarp();
    return id;
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
    float sum = lane < 16 && lane < count ? sum_from_zero(values + lane, 16, (count - lane + 15) / 16) : 0.0f;
    sum = __shfl_sync(0xffffffffu, add_lanes(sum), 0);
    __syncwarp();
    for (u32 i = lane; i < count; i += 32) values[i] = values[i] / sum;
    __syncwarp();
}

// Takes away the experts of groups that are not kept.
DEVICE void keep_groups(const float* choice, u32* orders, u32 experts, u32 count, u32 kept, u32 judged_by, u32 lane) {
    __shared__ u32 judged_of[FEW][GROUPS_MAX];
    __shared__ u8 kept_of[FEW][GROUPS_MAX];
    u32* judged = judged_of[threadIdx.x / 32];
    u8* is_kept = kept_of[threadIdx.x / 32];
    u32 size = experts / count;
    for (u32 g = lane; g < count; g += 32) {
        float sum = 0.0f;
        int last = -1;
        for (u32 n = 0; n < judged_by; n++) {
            int best = -1;
            for (u32 i = g * size; i < (g + 1) * size; i++) {
                bool after = last < 0 || orders[i] < orders[last] || (orders[i] == orders[last] && (int)i > last);
                if (after && (best < 0 || orders[i] > orders[best])) best = (int)i;
            }
            last = best;
            sum = sum + choice[best];
        }
        judged[g] = order_of(sum);
        is_kept[g] = 0;
    }
    __syncwarp();
    for (u32 n = 0; n < kept; n++) {
        const u32 best = take_first(judged, count, lane);
        if (lane == 0) is_kept[best] = 1;
    }
    __syncwarp();
    for (u32 i = lane; i < experts; i += 32)
        if (!is_kept[i / size]) orders[i] = 0;
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

    // An expert's logit and bias, where its score and its choice come.
    DEVICE_MEMBER void keep(float logit, float own_bias, u32 expert, float* scores) const {
        scores[expert] = logit;
        scores[experts + expert] = own_bias;
    }
    // Score and choice of an expert that is kept.
    DEVICE_MEMBER void score_one(u32 expert, float* scores) const {
        const float own = scored(scores[expert], score);
        scores[expert] = own;
        if (score != 0) choose_by(own, expert, scores);
    }

    DEVICE_MEMBER void choose_by(float own, u32 expert, float* scores) const {
        const float choice = bias ? own + scores[experts + expert] : own;
        scores[experts + expert] = choice;
        ((u32*)scores)[2 * experts + expert] = order_of(choice);
    }

    // The expert that is given for the slot that a lane has, of the first 32.
    DEVICE_MEMBER u32 given_one(const u32* ids) const { return given && threadIdx.x % 32 < slots ? ids[threadIdx.x % 32] : 0; }

    // Where the experts that are chosen for a token stand in the end.
    DEVICE_MEMBER u32* chosen_of(float* scores) const { return (u32*)(scores + experts); }

    // By a warp: ids and weights of the slots. `scores` has three numbers for each expert: its score, its choice, and the order of that.
    DEVICE_MEMBER void token(u32* ids, float* out, float* scores, u32 own_given) const {
        u32* orders = (u32*)(scores + 2 * experts);
        const u32 lane = threadIdx.x % 32;
        if (score == 0) {
            softmax(scores, experts, lane);
            for (u32 i = lane; i < experts; i += 32) choose_by(scores[i], i, scores);
            __syncwarp();
        }
        if (groups > 0) keep_groups(scores + experts, orders, experts, groups, kept, judged_by, lane);
        // What was chosen, and its scores, take the place of choices, which are done with.
        u32* chosen = chosen_of(scores);
        if (given) {
#pragma unroll 1
            for (u32 s = lane; s < slots; s += 32) chosen[s] = s < 32 ? own_given : ids[s];
        } else {
#pragma unroll 1
            for (u32 s = 0; s < slots; s++) {
                const u32 best = take_first(orders, experts, lane);
                if (lane == 0) chosen[s] = best;
            }
        }
        __syncwarp();
        // Orders are done with too.
        float* weights = (float*)orders;
#pragma unroll 1
        for (u32 s = lane; s < slots; s += 32) weights[s] = scores[chosen[s]];
        __syncwarp();
        if (score == 2) softmax(weights, slots, lane);
        float total = sum_from_zero(weights, 1, slots);
        total = total < sum_min ? sum_min : total;
#pragma unroll 1
        for (u32 s = lane; s < slots; s += 32) {
            float w = normalise ? weights[s] / total : weights[s];
            w = w * factor;
            out[s] = factors ? w * factors[chosen[s]] : w;
            ids[s] = chosen[s];
        }
    }
};

// logits (tokens, experts); chosen and weights (tokens, slots). A warp a token.
KERNEL route(const float* logits, const float* bias, const float* factors, u32* chosen, float* weights, u32 experts, u32 slots,
             u32 score, u32 groups, u32 kept, u32 judged_by, u32 normalise, float sum_min, float factor, u32 given) {
    after_earlier_work();
    DYNAMIC_SHARED(float, scores);
    const Routing routing = {bias, factors, experts, slots, score, groups, kept, judged_by, normalise, sum_min, factor, given};
    const u64 token = blockIdx.x;
    const u32 own_given = routing.given_one(chosen + token * slots);
#pragma unroll 1
    for (u32 first = threadIdx.x; first < experts; first += 32 * HELD) {
        float held[HELD], biases[HELD];
#pragma unroll
        for (u32 k = 0; k < HELD; k++) {
            const u32 i = first + k * 32;
            held[k] = i < experts ? logits[token * experts + i] : 0.0f;
            biases[k] = bias && i < experts ? bias[i] : 0.0f;
        }
#pragma unroll
        for (u32 k = 0; k < HELD; k++)
            if (first + k * 32 < experts) routing.keep(held[k], biases[k], first + k * 32, scores);
    }
#pragma unroll 1
    for (u32 i = threadIdx.x; i < experts; i += 32) routing.score_one(i, scores);
    __syncwarp();
    routing.token(chosen + token * slots, weights + token * slots, scores, own_given);
}

// The same of a few tokens, by one block, and the places of each expert, as list_places gives them: a thread an expert.
KERNEL __launch_bounds__(THREADS) route_few(const float* logits, const float* bias, const float* factors, u32* chosen, float* weights,
                                            u32 experts, u32 slots, u32 score, u32 groups, u32 kept, u32 judged_by, u32 normalise,
                                            float sum_min, float factor, u32 given, u32* starts, u32* order, u32* columns, u32 tokens,
                                            u32 beside) {
    DYNAMIC_SHARED(float, scores);
    const Turn turn(beside);
    float own_bias = bias && threadIdx.x < experts ? bias[threadIdx.x] : 0.0f;
    asked(own_bias);
    after_earlier_work(turn);
    const Routing routing = {bias, factors, experts, slots, score, groups, kept, judged_by, normalise, sum_min, factor, given};
    const u32 token = threadIdx.x / 32;
    auto scores_of = [&](u32 token) { return scores + token * 3 * experts; };
    const u32 own_given = token < tokens ? routing.given_one(chosen + token * slots) : 0;
#pragma unroll 1
    for (u32 expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        if (bias && expert >= blockDim.x) own_bias = bias[expert];
#pragma unroll 1
        for (u32 first = 0; first < tokens; first += HELD) {
            float held[HELD];
#pragma unroll
            for (u32 k = 0; k < HELD; k++) held[k] = first + k < tokens ? logits[(first + k) * experts + expert] : 0.0f;
#pragma unroll
            for (u32 k = 0; k < HELD; k++)
                if (first + k < tokens) routing.keep(held[k], own_bias, expert, scores_of(first + k));
        }
    }
    __syncthreads();
#pragma unroll 1
    for (u32 i = threadIdx.x; i < tokens * experts; i += blockDim.x) routing.score_one(i % experts, scores_of(i / experts));
    __syncthreads();
    if (token < tokens) routing.token(chosen + token * slots, weights + token * slots, scores_of(token), own_given);
    __syncthreads();
    // The expert of each place, in order, from shared memory; some are read before the first is used.
    auto places = [&](auto&& use) {
#pragma unroll 1
        for (u32 t = 0; t < tokens; t++) {
            const u32* own = routing.chosen_of(scores_of(t));
#pragma unroll 1
            for (u32 from = 0; from < slots; from += HELD) {
                u32 held[HELD];
#pragma unroll
                for (u32 k = 0; k < HELD; k++) held[k] = from + k < slots ? own[from + k] : 0;
#pragma unroll
                for (u32 k = 0; k < HELD; k++)
                    if (from + k < slots) use(t * slots + from + k, held[k]);
            }
        }
    };
#pragma unroll 1
    for (u32 expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        u32 before = 0, own = 0;
        places([&](u32, u32 e) {
            before += e < expert;
            own += e == expert;
        });
        starts[expert] = before;
        if (expert + 1 == experts) starts[experts] = before + own;
        const u32 first_column = (before + 7) / 8 * 8 + 8 * expert;
        u32 done = 0;
        if (own == 0) continue;
        places([&](u32 p, u32 e) {
            if (e != expert) return;
            order[before + done] = p;
            columns[p] = first_column + done;
            done++;
        });
    }
}

// The places of each expert, ascending: order[starts[e] .. starts[e + 1]]. One block an expert, which counts the places of those before.
// `columns` is the way back: which column of the launch a place is, where each expert's begin at a multiple of eight (matmul/prefill.cu).
KERNEL __launch_bounds__(THREADS) list_places(const u32* chosen, u32* starts, u32* order, u32* columns, u32 places) {
    after_earlier_work();
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
