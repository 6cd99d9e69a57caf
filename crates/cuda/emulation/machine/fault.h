// What can go wrong in a launch, as the machine finds it; words are made of it later, for a thread has little room to speak.
#pragma once
#include "../machine.h"

namespace emulation {

struct Fault {
    enum Kind {
        None,
        // Threads wait for others that wait for something else, or have left.
        Stuck,
        // Threads of a warp meet for different things.
        Divergent,
        // A thread takes part in what does not name it.
        NotNamed,
        // No memory of the card, of this block, or of this thread.
        Outside,
        Freed,
        Misaligned,
        // A copy to what is no shared memory.
        NotShared,
        // Memory that earlier work may still use, before a wait for that.
        Early,
        // A launch that starts early and ends without a wait for earlier work.
        NeverInTurn,
        // Another thread wrote, or read, the same byte, and nothing orders the two.
        Race,
    } kind = None;
    Place place{};
    // The access: where the code is, or the source's line if it is known.
    const void* code = nullptr;
    Site site{};
    const void* at = nullptr;
    unsigned bytes = 0;
    bool writes = false;
    // The other thread of a race.
    unsigned other = 0;
};

} // namespace emulation
