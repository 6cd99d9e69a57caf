// A worker runs blocks of a launch, one after another, the threads of a block in turns: each goes on until it waits for others.
//
// Its clock counts the moments at which threads met. What a thread did before a moment is known to all who met there, and nothing
// else orders what two threads do: so a time beside each access tells a race from an order (watch.cpp).
#pragma once
#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fault.h"
#include "fiber.h"
#include "module.h"

namespace emulation {

inline constexpr unsigned threads_max = 1024, lanes = 32, cluster_max = 8;
inline constexpr size_t dynamic_shared_most = 227 << 10;

// When the launch behind one may start.
struct Start {
    // Whether some block lets it start before it has waited for earlier work itself; and before it has ended, at all.
    std::atomic<bool> is_early{false}, is_let{true};
    // Whether all that was written is in its place when all blocks have ended.
    std::atomic<bool> is_written_out{false};
};

struct Launch {
    Function* function;
    Index grid, block;
    size_t shared_bytes;
    void** values;
    u32 serial;
    // Whether it may start while earlier work still runs, until it waits for that by itself.
    bool starts_early;
    // The last launch that is complete when this one starts, and all before it are.
    u32 complete;
    Start* next;
    // Blocks that run together.
    unsigned cluster;
};

// What a thread of a block did for all of it, and when: others know of it behind a barrier.
struct Deed {
    bool is_done;
    unsigned thread;
    u64 time;
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
    // Copies on their way, and how many groups of them have ended; and products.
    std::vector<Copy> copies;
    unsigned copy_groups;
    std::vector<Product> products;
    unsigned product_groups, product_groups_left;
    // Whether it waited for earlier work, and whether it looked anew at memory.
    bool has_waited, has_looked;
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

// A barrier in shared memory: a phase ends when so many have arrived and all its bytes have come.
struct Barrier {
    unsigned wanted = 0, arrived = 0;
    long long bytes = 0;
    u32 parity = 0;
    // What bulk copies bring when the phase ends.
    std::vector<Copy> copies;
};

// A block of the cluster that runs.
struct Block {
    u32 number;
    Index index;
    // Its dynamic shared memory, and a record for each four bytes.
    std::unique_ptr<u8[]> memory;
    u8* shared = nullptr;
    std::vector<Touched> touched;
    unsigned at_barrier;
    // When it last met.
    u64 met;
    // Threads at each of the barriers that some threads share.
    unsigned at_named[16];
    std::unordered_map<u32, Barrier> barriers;
    // The first of its threads that waited for earlier work, and that looked anew at memory.
    Deed waited, looked;
    bool lets_next_start;
    // Barriers in shared memory order accesses in ways that are not kept: races are not looked for.
    bool has_orders_of_its_own;
};

class Worker {
public:
    explicit Worker(size_t index);

    // Runs the blocks of a cluster. False where one fails; `fault` says why.
    bool run(const Launch& launch, u64 cluster);

    void sync_block(Site site);
    void sync_cluster(Site site);
    void sync_threads(u32 name, u32 threads, Site site);
    // Makes the running thread wait until `wake` is called for it.
    void sleep(Meeting meeting, Site site);
    // Wakes who sleeps for this, in one of the blocks, where it is `value` that they wait with.
    void wake(Meeting meeting, const Block& block, u32 value);
    // Waits for the lanes of a mask; those that have left count as there, unless all have to be.
    void meet(Meeting meeting, u32 mask, u64 value, Site site);
    // What each lane brought when the warp of the running thread last met.
    const u64* met() const { return warps[running / lanes].met; }
    [[noreturn]] void fail(Fault fault);

    Thread& thread() { return threads[running]; }
    unsigned thread_index() const { return running; }
    // Whether what a thread did at a time is known to the one that runs. `by_seeing`: it suffices that they met.
    bool knows(unsigned other, u64 time, bool by_seeing) const {
        const Block& here = block();
        if (time < here.met || other == running || here.has_orders_of_its_own) return true;
        const Warp& warp = warps[running / lanes];
        return other / lanes == running / lanes && time < (by_seeing ? warp.seen : warp.agreed);
    }

    bool knows_of(const Deed& deed) const { return deed.is_done && knows(deed.thread, deed.time, false); }

    // Whether what a thread of the cluster did to the card's memory at a time is known to all of it.
    bool knows_of_cluster(u32 number, u64 time) const {
        return number / launch->cluster == block().number / launch->cluster && time < cluster_met;
    }

    Block& block() { return blocks[running / stride]; }
    const Block& block() const { return blocks[running / stride]; }
    // Whether all that was enqueued before is done, as the running thread knows.
    bool is_in_turn() const {
        if (!launch->starts_early || threads[running].has_waited) return true;
        return knows_of(block().waited);
    }
    // Whether it sees what lies in the card's memory, and not what its processor read there before.
    bool sees_anew() const { return threads[running].has_looked || knows_of(block().looked) || is_in_turn(); }
    void wait_for_earlier_work();
    void let_next_start();
    void read_anew();
    void write_out();
    Block& block_of_cluster(u32 rank, Site site);
    u32 rank() const { return running / stride; }
    // Whether a thread of a block of the cluster has left: then the block may be gone.
    bool has_left(u32 rank) const;

    bool is_shared(const void* at) const;
    // A place of a block's dynamic shared memory by its name; fails where the bytes are not within.
    u8* shared_place(const Block& block, u32 name, u32 bytes, Site site);
    // Shared memory by 32-bit names: what is of fixed size lies before the rest, and nothing lies at 0.
    u32 shared_address(const void* at) const;

    size_t index;
    bool is_running = false;
    const Launch* launch = nullptr;
    const Instance* instance = nullptr;
    const Kernel* kernel = nullptr;
    u64 clock = 1;
    // When the cluster that runs last met.
    u64 cluster_met = 0;
    Fault fault;
    std::string waiting;
    // Of shared memory of fixed size, a record for each four bytes.
    std::vector<Touched> fixed_touched;
    uintptr_t stack_low = 0;

private:
    static void begin_thread();
    void start(u64 cluster);
    void start_block(Block& block, u64 cluster, unsigned rank);
    void give_way();
    void leave();
    void ready(unsigned thread);
    bool completes(Warp& warp, unsigned first_thread, u32 mask);
    std::string who_waits() const;

    Stacks stacks;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<Block> blocks;
    // Threads of a block, and how far those of the next are: whole warps.
    unsigned count = 0, stride = lanes;
    unsigned left = 0, at_cluster = 0, running = 0;
    // Threads that can go on, as a ring.
    std::vector<unsigned> queue;
    unsigned queue_first = 0, queue_length = 0;
    void* own_stack = nullptr;
};

// The worker of this thread of the host; none where it runs no block.
extern thread_local Worker* worker __attribute__((tls_model("initial-exec")));

// Products of matrices, from the 32 parts that the lanes brought.
void multiply(const u64 (&parts)[lanes]);
// The products of a warp's threads, each of which brought itself, as far as they wait for them.
void multiply_add(Worker& worker, const u64 (&threads)[lanes]);

} // namespace emulation
