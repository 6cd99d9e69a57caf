// How far a thread is in a ring of stages of shared memory, each of which has barriers: the stage, and the parity of the barriers' phase.

template <int COUNT> struct Ring {
    u32 stage = 0;
    u32 parity = 0;
    DEVICE_MEMBER void next() {
        if (++stage == COUNT) {
            stage = 0;
            parity ^= 1;
        }
    }
};
