// A worker runs blocks of a launch, one after another, the threads of a block in turns: each goes on until it waits for others.
//
// Its clock counts the moments at which threads met. What a thread did before a moment is known to all who met there, and nothing
// else orders what two threads do: so a time beside each access tells a race from an order (watch.cpp).
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "fault.h"
#include "fiber.h"
#include "module.h"

namespace emulation {

inline constexpr unsigned threads_max = 1024, lanes = 32;
inline constexpr size_t dynamic_shared_most = 227 << 10;

struct Launch {
    Function* function;
    Index grid, block;
    size_t shared_bytes;
    void** values;
    u32 serial;
};

struct Copy {
    u8* to;
    const u8* from;
    unsigned bytes, group;
};

struct Thread {
    void* stack;
    enum { Ready, Waiting, Gone } state;
    // What it waits for.
    Meeting meeting;
    u32 mask;
    Site site;
    Place place;
    // Copies on their way, and how many groups of them have ended.
    std::vector<Copy> copies;
    unsigned copy_groups;
};

struct Warp {
    // Lanes that have not left, and those that wait.
    u32 live, arrived;
    // What waiting lanes brought, and what all brought when they last met.
    u64 brought[lanes], met[lanes];
    // When the warp last agreed on memory, and when it last met at all.
    u64 agreed, seen;
};

// Who last wrote and read a word of shared memory, when, and which of its four bytes.
struct Access {
    u64 time : 44, bytes : 4, thread : 16;
};
struct Touched {
    Access write, read;
};
// Records of `bytes` bytes of memory.
inline constexpr size_t words_of(size_t bytes) { return (bytes + 3) / 4; }

class Worker {
public:
    explicit Worker(size_t index);

    // Runs a block. False where it fails; `fault` says why.
    bool run(const Launch& launch, u64 block);

    void sync_block(Site site);
    // Waits for the lanes of a mask; those that have left count as there, unless all have to be.
    void meet(Meeting meeting, u32 mask, u64 value, Site site);
    // What each lane brought when the warp of the running thread last met.
    const u64* met() const { return warps[running / lanes].met; }
    [[noreturn]] void fail(Fault fault);

    Thread& thread() { return threads[running]; }
    unsigned thread_index() const { return running; }
    // Whether what a thread did at a time is known to the one that runs. `by_seeing`: it suffices that they met.
    bool knows(unsigned other, u64 time, bool by_seeing) const {
        if (time < block_met || other == running) return true;
        const Warp& warp = warps[running / lanes];
        return other / lanes == running / lanes && time < (by_seeing ? warp.seen : warp.agreed);
    }

    bool is_shared(const void* at) const;
    // Shared memory by 32-bit names: what is of fixed size lies before the rest, and nothing lies at 0.
    u32 shared_address(const void* at) const;

    size_t index;
    bool is_running = false;
    const Launch* launch = nullptr;
    const Instance* instance = nullptr;
    const Kernel* kernel = nullptr;
    u32 block = 0;
    u64 clock = 1;
    Fault fault;
    std::string waiting;
    // Of the block: bytes, and a record for each four.
    u8* dynamic_shared;
    std::vector<Touched> dynamic_touched, fixed_touched;
    uintptr_t stack_low = 0;

private:
    static void begin_thread();
    void start(u64 block);
    void give_way();
    void leave();
    void ready(unsigned thread);
    bool completes(Warp& warp, unsigned first_thread, u32 mask);
    std::string who_waits() const;

    Stacks stacks;
    std::unique_ptr<u8[]> shared_memory;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned count = 0, left = 0, at_barrier = 0, running = 0;
    // Threads that can go on, as a ring.
    unsigned queue[threads_max], queue_first = 0, queue_length = 0;
    void* own_stack = nullptr;
    // When the block last met.
    u64 block_met = 0;
};

// The worker of this thread of the host; none where it runs no block.
extern thread_local Worker* worker __attribute__((tls_model("initial-exec")));

// Products of matrices, from the 32 parts that the lanes brought.
void multiply(const u64 (&parts)[lanes]);

} // namespace emulation
