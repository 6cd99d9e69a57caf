// The highest of a row's scores, ascending; crates/ops/src/latent.rs, `select_rows`. One block a row.
//
// Scores become whole numbers in the same order. The lowest that is selected is found eight bits at a time: scores that agree with it so
// far are counted by their next digit, in shared memory, and every warp finds the digit for itself, so that a round has one meeting. Once
// all that have a digit are selected nothing is left to be told apart, mostly after two or three rounds. Then each thread knows how many of
// a run of neighbours are selected, and how many before them.

#define WARPS (THREADS / 32)
// Where no thread has more than RUN neighbours, which it asks for at once, it holds them. A multiple of RUN lies between rows of scores.
static_assert(RUN == 4, "neighbours are read as one");
#define FEW (RUN * THREADS)
// Scores that a thread holds of more; where there are more than all threads hold, they are read again and again.
#define HELD 32
// So many of them are left out together where there are fewer.
#define CHUNK 4
// A digit of an order: so many bits, and so many values, of which a lane has neighbours.
#define DIGIT_BITS 8
#define DIGITS 256
#define ROUNDS (32 / DIGIT_BITS)
#define LANE_DIGITS (DIGITS / 32)
static_assert(LANE_DIGITS == 8, "a lane reads its counts as two times four");

// Where a digit is counted: the first four of all lanes, and then the others, so that lanes read theirs side by side.
DEVICE u32 place_of_digit(u32 digit) { return (digit & 4) << 5 | digit >> 3 << 2 | (digit & 3); }

// The lowest order that is selected, as far as it is known, and how many of those that agree with it are wanted.
struct Lowest {
    u32 order, wanted;

    // Goes on by the highest digit such that as many scores as are wanted have it or a higher one. Whether all that have it are wanted.
    DEVICE_MEMBER bool take_digit(const u32* counts, u32 bits) {
        const u32 lane = threadIdx.x % 32;
        const uint4 low = ((const uint4*)counts)[lane], high = ((const uint4*)counts)[32 + lane];
        // Of a digit and those above that the lane has.
        u32 from[LANE_DIGITS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int d = LANE_DIGITS - 2; d >= 0; d--) from[d] += from[d + 1];
        u32 all = from[0];
#pragma unroll
        for (u32 width = 1; width < 32; width *= 2) {
            const u32 other = __shfl_down_sync(0xffffffffu, all, width);
            if (lane + width < 32) all += other;
        }
        const int chosen = 31 - __clz((int)__ballot_sync(0xffffffffu, all >= wanted));
        // In the lane that has the digit: of those above it, and of it and those.
        const u32 above = all - from[0];
        u32 digit = 0, higher = 0, reached = from[0];
#pragma unroll
        for (int d = LANE_DIGITS - 1; d > 0; d--)
            if (above + from[d] < wanted) higher = from[d];
#pragma unroll
        for (int d = 1; d < LANE_DIGITS; d++) {
            if (above + from[d] < wanted) continue;
            digit = d;
            reached = from[d];
        }
        const u32 rest = wanted - above - higher, is_all = reached - higher == rest;
        const u32 found = __shfl_sync(0xffffffffu, digit | is_all << 8, chosen);
        wanted = __shfl_sync(0xffffffffu, rest, chosen);
        order |= (chosen * LANE_DIGITS + (found & 0xff)) << bits;
        return found >> 8;
    }
};

// Of the orders that `each` goes through, those of all threads. `counts` are zero.
template <class Each> DEVICE Lowest lowest_of(u32 (*counts)[DIGITS], u32 top_k, Each&& each) {
    Lowest lowest = {0, top_k};
#pragma unroll 1
    for (u32 round = 0; round < ROUNDS; round++) {
        // All bits above the digit agree; of the first digit there are none.
        const u32 bits = 32 - DIGIT_BITS * (round + 1), above = round ? ~0u << (bits + DIGIT_BITS) : 0;
        each([&](u32 order) {
            if (order && (order & above) == lowest.order) add_in_shared(&counts[round][place_of_digit(order >> bits & (DIGITS - 1))], 1);
        });
        __syncthreads();
        // What is one below is no score's, or of one that is not wanted.
        if (lowest.take_digit(counts[round], bits)) return {lowest.order - 1, 0};
    }
    return lowest;
}

// The sums of both over the threads before this one. `parts` has a place a warp.
DEVICE uint2 sums_before(uint2 value, uint2* parts) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint2 upto = value;
#pragma unroll
    for (u32 width = 1; width < 32; width *= 2) {
        const u32 x = __shfl_up_sync(0xffffffffu, upto.x, width), y = __shfl_up_sync(0xffffffffu, upto.y, width);
        if (lane >= width) upto.x += x, upto.y += y;
    }
    if (lane == 31) parts[warp] = upto;
    __syncthreads();
    uint2 before = make_uint2(upto.x - value.x, upto.y - value.y);
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        const uint2 other = parts[w];
        if (w < warp) before.x += other.x, before.y += other.y;
    }
    return before;
}

// Leaves the places of those that are selected, of this thread's run of neighbours, which `of_run` goes through.
template <class OfRun> DEVICE void leave(u32* out, const Lowest& lowest, uint2* parts, OfRun&& of_run) {
    uint2 own = make_uint2(0, 0);
    of_run([&](u32, u32 order) {
        own.x += order > lowest.order;
        own.y += order == lowest.order;
    });
    // Of those that are equal to the lowest, the first ones: as many as are still wanted.
    const uint2 before = sums_before(own, parts);
    u32 equal_before = before.y, at = before.x + (equal_before < lowest.wanted ? equal_before : lowest.wanted);
    of_run([&](u32 i, u32 order) {
        const bool is_selected = order > lowest.order || (order == lowest.order && equal_before < lowest.wanted);
        equal_before += order == lowest.order;
        if (is_selected) out[at++] = i;
    });
}

// Of so many scores that a thread holds its run.
DEVICE void select_few(const float* score, u32 complete, u32 top_k, u32* out, u32 (*counts)[DIGITS], uint2* parts) {
    const u32 begin = threadIdx.x * RUN;
    float4 run = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (begin < complete) run = *(const float4*)(score + begin);
    const float scores[RUN] = {run.x, run.y, run.z, run.w};
    u32 orders[RUN];
#pragma unroll
    for (u32 k = 0; k < RUN; k++) orders[k] = begin + k < complete ? order_of(scores[k]) : 0;
    const Lowest lowest = lowest_of(counts, top_k, [&](auto&& use) {
#pragma unroll
        for (u32 k = 0; k < RUN; k++) use(orders[k]);
    });
    leave(out, lowest, parts, [&](auto&& use) {
#pragma unroll
        for (u32 k = 0; k < RUN; k++)
            if (orders[k]) use(begin + k, orders[k]);
    });
}

DEVICE void select_many(const float* score, u32 complete, u32 top_k, u32* out, u32 (*counts)[DIGITS], uint2* parts) {
    const u32 t = threadIdx.x;
    const bool is_held = complete <= HELD * THREADS;
    const u32 each = (complete + THREADS - 1) / THREADS;
    const u32 begin = t * each < complete ? t * each : complete, end = begin + each < complete ? begin + each : complete;
    u32 held[HELD] = {};
    if (is_held) {
        // All is asked for before the first is looked at.
        float brought[HELD] = {};
#pragma unroll
        for (u32 first = 0; first < HELD; first += CHUNK) {
            if (first * THREADS >= complete) continue;
#pragma unroll
            for (u32 i = first; i < first + CHUNK; i++) brought[i] = t + i * THREADS < complete ? score[t + i * THREADS] : 0.0f;
        }
#pragma unroll
        for (u32 first = 0; first < HELD; first += CHUNK) {
            if (first * THREADS >= complete) continue;
#pragma unroll
            for (u32 i = first; i < first + CHUNK; i++) held[i] = t + i * THREADS < complete ? order_of(brought[i]) : 0;
        }
    }
    const Lowest lowest = lowest_of(counts, top_k, [&](auto&& use) {
        if (is_held) {
#pragma unroll
            for (u32 first = 0; first < HELD; first += CHUNK) {
                if (first * THREADS >= complete) continue;
#pragma unroll
                for (u32 i = first; i < first + CHUNK; i++) use(held[i]);
            }
        } else {
#pragma unroll 1
            for (u32 from = t; from < complete; from += CHUNK * THREADS) {
                float brought[CHUNK];
#pragma unroll
                for (u32 i = 0; i < CHUNK; i++) brought[i] = from + i * THREADS < complete ? score[from + i * THREADS] : 0.0f;
#pragma unroll
                for (u32 i = 0; i < CHUNK; i++) use(from + i * THREADS < complete ? order_of(brought[i]) : 0);
            }
        }
    });
    leave(out, lowest, parts, [&](auto&& use) {
#pragma unroll 1
        for (u32 from = begin; from < end; from += RUN) {
            float run[RUN];
#pragma unroll
            for (u32 k = 0; k < RUN; k++) run[k] = from + k < end ? score[from + k] : 0.0f;
#pragma unroll
            for (u32 k = 0; k < RUN; k++)
                if (from + k < end) use(from + k, order_of(run[k]));
        }
    });
}

// scores [row of the chunk][stride] as `index_scores` leaves them; selected (rows, top_k).
KERNEL __launch_bounds__(THREADS) select(const float* scores, u32* selected, const u32* rows, const u32* lists, u32 first, u32 ratio,
                                         u32 top_k, u32 stride) {
    __shared__ __align__(16) u32 counts[ROUNDS][DIGITS];
    __shared__ uint2 parts[WARPS];
    const u32 row = first + blockIdx.x, t = threadIdx.x, complete = (Step{rows, lists}.position_ahead(row) + 1) / ratio;
#pragma unroll
    for (u32 i = 0; i < ROUNDS * DIGITS; i += THREADS) (&counts[0][0])[i + t] = 0;
    __syncthreads();
    after_earlier_work();
    u32* out = selected + (u64)row * top_k;
    if (complete <= top_k) {
#pragma unroll 1
        for (u32 i = t; i < complete; i += THREADS) out[i] = i;
        return;
    }
    const float* score = scores + (u64)blockIdx.x * stride;
    if (complete <= FEW) select_few(score, complete, top_k, out, counts, parts);
    else select_many(score, complete, top_k, out, counts, parts);
}
