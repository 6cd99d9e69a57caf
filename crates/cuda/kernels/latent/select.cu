// The highest of a row's scores, ascending; crates/ops/src/latent.rs, `select_rows`. One block a row.
//
// Scores become whole numbers in the same order. The lowest that is selected is found four bits at a time: all threads count how many
// scores that agree with it so far go on with each of the sixteen digits. Then each thread knows how many of a run of neighbours are
// selected, and how many before them.

#define WARPS (THREADS / 32)
// Scores that a thread holds; where there are more than all threads hold, they are read again and again.
#define HELD 32
// So many of them are left out together where there are fewer.
#define CHUNK 4
// Neighbours that a thread asks for at once, and holds where there are no more for it.
#define RUN 4
// A digit of an order: so many bits, and so many values. Digits of a thread's scores are counted in bytes, those of a warp in halves.
#define DIGIT_BITS 4
#define DIGITS 16
static_assert(HELD < 256 && HELD * 32 < 65536, "counts fit");

// How many of a thread's orders have each digit: byte d % 8 of word d / 8.
struct Counts {
    u64 words[2];

    DEVICE_MEMBER void add(u32 digit) {
        const u64 one = 1ull << digit % 8 * 8;
        words[0] += digit < 8 ? one : 0;
        words[1] += digit < 8 ? 0 : one;
    }

    // Sums over the warp, one a lane, of digit `lane`, for the first sixteen lanes.
    DEVICE_MEMBER u32 of_warp(u32 lane) const {
        u32 own = 0;
#pragma unroll
        for (u32 pair = 0; pair < DIGITS / 2; pair++) {
            const u32 bytes = (u32)(words[pair / 4] >> pair % 4 * 16);
            const u32 halves = __reduce_add_sync(0xffffffffu, (bytes & 0xff) | (bytes & 0xff00) << 8);
            if (lane / 2 == pair) own = lane % 2 ? halves >> 16 : halves & 0xffff;
        }
        return own;
    }
};

// The highest digit such that as many scores as are wanted have it or a higher one, in all threads; `wanted` becomes how many of those
// with this very digit. `own` is the count of digit `lane` in this warp, and `parts` has room for all warps.
DEVICE u32 digit_of(u32 own, u32& wanted, u32 (*parts)[DIGITS]) {
    const u32 lane = threadIdx.x % 32;
    if (lane < DIGITS) parts[threadIdx.x / 32][lane] = own;
    __syncthreads();
    u32 count = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) count += parts[w][lane % DIGITS];
    // Of this digit and all above.
    u32 from = count;
#pragma unroll
    for (u32 width = 1; width < DIGITS; width *= 2) {
        const u32 other = __shfl_down_sync(0xffffffffu, from, width, DIGITS);
        if (lane % DIGITS + width < DIGITS) from += other;
    }
    const u32 digit = 31 - __clz((int)(__ballot_sync(0xffffffffu, from >= wanted) & 0xffff));
    wanted -= __shfl_sync(0xffffffffu, from - count, (int)digit);
    return digit;
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

// scores [row of the chunk][stride] as `index_scores` leaves them; selected (rows, top_k).
KERNEL __launch_bounds__(THREADS) select(const float* scores, u32* selected, const u32* rows, const u32* lists, u32 first, u32 ratio,
                                         u32 top_k, u32 stride) {
    // Two in turn, so that one meeting a digit is enough.
    __shared__ u32 parts[2][WARPS][DIGITS];
    __shared__ uint2 sums[WARPS];
    after_earlier_work();
    const Step step = {rows, lists};
    const u32 row = first + blockIdx.x, complete = (step.position(row) + 1) / ratio, t = threadIdx.x;
    u32* out = selected + (u64)row * top_k;
    if (complete <= top_k) {
        for (u32 i = t; i < complete; i += THREADS) out[i] = i;
        return;
    }
    const float* score = scores + (u64)blockIdx.x * stride;
    const bool is_held = complete <= HELD * THREADS;
    const u32 each = (complete + THREADS - 1) / THREADS;
    const u32 begin = t * each < complete ? t * each : complete, end = begin + each < complete ? begin + each : complete;
    // All is asked for before the first is looked at.
    float run[RUN];
    auto bring_run = [&](u32 from) {
#pragma unroll
        for (u32 k = 0; k < RUN; k++) run[k] = from + k < end ? score[from + k] : 0.0f;
    };
    bring_run(begin);
    u32 held[HELD] = {};
    if (is_held) {
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
    u32 lowest = 0, wanted = top_k;
    for (int bits = 32 - DIGIT_BITS; bits >= 0; bits -= DIGIT_BITS) {
        // All bits above the digit agree; of the first digit there are none.
        const u32 above = bits + DIGIT_BITS < 32 ? ~0u << (bits + DIGIT_BITS) : 0;
        Counts counts = {};
        u32 own = 0;
        auto count = [&](u32 order) {
            if (order && (order & above) == lowest) counts.add(order >> bits & (DIGITS - 1));
        };
        if (is_held) {
#pragma unroll
            for (u32 first = 0; first < HELD; first += CHUNK) {
                if (first * THREADS >= complete) continue;
#pragma unroll
                for (u32 i = first; i < first + CHUNK; i++) count(held[i]);
            }
            own = counts.of_warp(t % 32);
        } else {
            // No more at a time than a byte counts.
            for (u32 from = 0; from < complete; from += HELD * THREADS) {
                counts = {};
#pragma unroll 4
                for (u32 i = from + t; i < complete && i < from + HELD * THREADS; i += THREADS) count(order_of(score[i]));
                own += counts.of_warp(t % 32);
            }
        }
        lowest |= digit_of(own, wanted, parts[bits / DIGIT_BITS % 2]) << bits;
    }
    auto of_run = [&](auto&& use) {
#pragma unroll 1
        for (u32 from = begin; from < end; from += RUN) {
            if (each > RUN) bring_run(from);
#pragma unroll
            for (u32 k = 0; k < RUN; k++)
                if (from + k < end) use(from + k, order_of(run[k]));
        }
    };
    uint2 own = make_uint2(0, 0);
    of_run([&](u32, u32 order) {
        own.x += order > lowest;
        own.y += order == lowest;
    });
    // Of those that are equal to the lowest, the first ones: as many as are still wanted.
    const uint2 before = sums_before(own, sums);
    u32 equal_before = before.y, at = before.x + (equal_before < wanted ? equal_before : wanted);
    of_run([&](u32 i, u32 order) {
        const bool is_selected = order > lowest || (order == lowest && equal_before < wanted);
        equal_before += order == lowest;
        if (is_selected) out[at++] = i;
    });
}
