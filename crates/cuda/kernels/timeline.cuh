// When each kernel's turn came, for a profile: one block notes the card's clock, and its kernel's name, behind its wait for earlier work.
// Turns come one after another, and what lies between two of them is what the first took. That of a launch beside another comes soon behind
// it, and has what both take from there on.
//
// Compiled in where TIMELINE, the most turns that are noted, is defined.

#ifdef TIMELINE

// The address of memory of the host's: how many turns there were, then of each the time and the name's first letters. Nowhere at first,
// but not null, for what begins as zeros has no place of its own in a binary.
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

// Waits for earlier work, and notes the turn. What can be read before is: a look at memory is as long as a small kernel.
struct Noted {
    const char* kernel;

    template <class... Turns> DEVICE_MEMBER void operator()(const Turns&... own_turn) const {
        const bool is_noted = threadIdx.x + blockIdx.x + blockIdx.y + blockIdx.z == 0;
        u64* memory = is_noted ? (u64*)timeline : nullptr;
        after_earlier_work(own_turn...);
        if (!is_noted) return;
        const u64 now = clock_nanoseconds(), turn = add_atomically(memory, 1);
        if (turn >= TIMELINE) return;
        volatile u64* own = memory + 1 + 3 * turn;
        own[0] = now;
        own[1] = letters(kernel, 0);
        own[2] = letters(kernel, 8);
    }
};

#define after_earlier_work Noted{__func__}

#endif
