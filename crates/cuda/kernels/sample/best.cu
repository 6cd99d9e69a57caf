// The likeliest tokens of rows of logits; crates/ops/src/ranking.rs. A block takes ENTRIES of a row and leaves the first `count` of them,
// as keys that are in the order of candidates: the greatest is the first. Launches follow until a block has all that is left of a row.

// A key has the logit's order above and the id below, the lowest id the greatest.
DEVICE u64 key_of(float logit, u32 id) {
    u32 bits = logit == 0.0f ? 0u : __float_as_uint(logit);
    u32 place = bits >> 31 ? ~bits : bits | 0x80000000u;
    // No number of a sound model.
    if (!(logit < __uint_as_float(0x7f800000u))) place = 0xffffffffu;
    return (u64)place << 32 | (u32)~id;
}

// Less than all keys: no token.
#define NO_KEY 0ull

// Puts all keys into falling order: a bitonic sort, a pair a thread. Pairs of a warp that are less than 32 apart are its own.
DEVICE void sort(u64* keys) {
    static_assert(ENTRIES == 2 * THREADS, "a pair a thread");
    __syncthreads();
    for (u32 run = 2; run <= ENTRIES; run *= 2) {
        for (u32 stride = run / 2; stride > 0; stride /= 2) {
            const u32 low = threadIdx.x / stride * 2 * stride + threadIdx.x % stride, high = low + stride;
            const u64 a = keys[low], b = keys[high];
            // Runs fall and rise by turns, so that two of them together rise and fall; the last falls.
            if ((a < b) == ((low & run) == 0)) {
                keys[low] = b;
                keys[high] = a;
            }
            if (stride > 32 || (stride == 1 && run > 32)) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
    __syncthreads();
}

// Leaves the greatest key in the first place.
DEVICE void take_greatest(u64* keys) {
    for (u32 left = ENTRIES / 2; left > 0; left /= 2) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < left; i += THREADS) {
            const u64 a = keys[i], b = keys[i + left];
            if (a < b) keys[i] = b;
        }
    }
    __syncthreads();
}

// The first launch takes logits (rows, vocabulary); others what the one before left, (rows, width). The last writes ids and logits by
// turns, others keys: (rows, blocks, count).
KERNEL __launch_bounds__(THREADS) best(const float* logits, const u64* before, u64* keys_out, u32* out, u32 vocabulary,
                                       u32 width, u32 count) {
    __shared__ u64 keys[ENTRIES];
    after_earlier_work();
    const u32 first = blockIdx.x * ENTRIES, row = blockIdx.y;
    const float* of_row = logits + (u64)row * vocabulary;
    for (u32 i = threadIdx.x; i < ENTRIES; i += THREADS) {
        const u32 at = first + i;
        u64 key = NO_KEY;
        if (at < width) key = before ? before[(u64)row * width + at] : key_of(of_row[at], at);
        keys[i] = key;
    }
    if (count == 1) {
        take_greatest(keys);
    } else {
        sort(keys);
    }
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        const u64 at = ((u64)row * gridDim.x + blockIdx.x) * count + i;
        if (keys_out) {
            keys_out[at] = keys[i];
        } else {
            const u32 id = ~(u32)keys[i];
            out[2 * at] = id;
            out[2 * at + 1] = __float_as_uint(of_row[id]);
        }
    }
}
