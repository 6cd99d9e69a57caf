// When each block began, had its turn and ended, for a profile: it notes the card's clock, and its kernel's name. Turns of launches come
// one after another, and what lies between two of them is what the first took. That of a launch beside another comes soon behind it, and
// has what both take from there on.
//
// Compiled in where TIMELINE, the most blocks that are noted, is defined; `Noting` is then made at the beginning of each kernel
// (crates/cuda/src/compiler.rs), and goes at each of its ends.

#ifdef TIMELINE

// The address of memory of the host's: how many blocks there were, then of each the numbers that `Noting` writes. Nowhere at first, but not
// null, for what begins as zeros has no place of its own in a binary.
extern "C" {
__device__ u64 timeline = 8;
}

// Eight letters of a name, from number `from` on; known to the compiler.
DEVICE u64 letters(const char* name, int from) {
    u64 word = 0;
    bool is_over = false;
#pragma unroll
    for (int i = 0; i < from + 8; i++) {
        is_over = is_over || name[i] == 0;
        if (!is_over && i >= from) word |= (u64)(u8)name[i] << (8 * (i - from));
    }
    return word;
}

// A block's own notes, by its first thread. What can be read before the turn is: a look at memory is as long as a small kernel.
struct Noting {
    const char* kernel;
    u64* memory;
    u64 begun, turn;

    DEVICE_MEMBER explicit Noting(const char* kernel) : kernel(kernel), memory(nullptr), begun(0), turn(0) {
        if (threadIdx.x > 0) return;
        memory = (u64*)timeline;
        begun = clock_nanoseconds();
    }
    // Waits for earlier work, and notes the turn.
    template <class... Turns> DEVICE_MEMBER void after(const Turns&... own_turn) {
        after_earlier_work(own_turn...);
        if (threadIdx.x == 0 && turn == 0) turn = clock_nanoseconds();
    }
    DEVICE_MEMBER ~Noting() {
        if (threadIdx.x > 0) return;
        const u64 ended = clock_nanoseconds(), place = add_atomically(memory, 1);
        if (place >= TIMELINE) return;
        volatile u64* own = memory + 1 + 6 * place;
        // A kernel that does not wait by itself starts when it is its turn.
        own[0] = begun;
        own[1] = turn ? turn : begun;
        own[2] = ended;
        own[3] = (u64)gridDim.x * gridDim.y * gridDim.z;
        own[4] = letters(kernel, 0);
        own[5] = letters(kernel, 8);
    }
};

#define after_earlier_work noting.after

#endif
