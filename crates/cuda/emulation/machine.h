// What a compiled kernel asks of the emulated machine, and what it tells of itself. Both sides include this; no header of the
// system is, for kernels have names of their own.
#pragma once

namespace emulation {

using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

struct Index {
    unsigned x, y, z;
};

// Where a thread stands in its launch.
struct Place {
    Index thread, block, block_size, grid;
};

// A line of a kernel's source.
struct Site {
    const char* file;
    int line;
};

// Why threads wait for each other.
enum class Meeting : unsigned { Block, Warp, Gather, Multiply, Threads, Cluster, Barrier, Products };

// What a thread brings to a product of matrices. Sums are as many as the instruction leaves in a thread.
struct Multiplication {
    enum Kind : unsigned { U8S8Depth32, U8S8Depth16, S8S8Depth32, S8S8Depth16, F16Depth16 } kind;
    void* sums;
    const u32* a;
    const u32* b;
};

// Sums of 16 rows, of this thread's warp, by `columns` columns, that go on by themselves (wgmma). The first operand is in registers, or
// where there are none in shared memory; turned or not. `group` is the machine's.
struct Product {
    float* sums;
    u32 columns;
    const u32* a;
    u64 a_shared;
    u64 b;
    bool a_is_turned, b_is_turned;
    // Sums do not go on from what was there.
    bool is_first;
    u32 group;
};

// A kernel, as a module describes it; `cluster` blocks of it run together.
struct Kernel {
    unsigned cluster;
    unsigned threads_max;
    unsigned parameters;
    const unsigned* sizes;
    const unsigned* offsets;
    void (*call)(void** values);
};

} // namespace emulation

#define EXPORTED __attribute__((visibility("default")))

extern "C" {
#pragma GCC visibility push(default)
// Of the thread that runs.
emulation::Index emulation_thread();
emulation::Index emulation_block();
emulation::Index emulation_block_size();
emulation::Index emulation_grid();
emulation::u8* emulation_dynamic_shared();

void emulation_sync_block(emulation::Site site);
void emulation_sync_warp(emulation::u32 mask, emulation::Site site);
// The value that lane `from` brings, once all lanes of the mask are there; bits of NaN where it is none of them, or has left.
emulation::u64 emulation_shuffle(emulation::u32 mask, emulation::u64 value, int from, emulation::Site site);
// The lanes of the mask that bring anything but 0.
emulation::u32 emulation_vote(emulation::u32 mask, bool is_set, emulation::Site site);
void emulation_multiply(const emulation::Multiplication* part, emulation::Site site);
// Copies to shared memory, in groups; they are made when the thread waits for them.
void emulation_copy(void* to, const void* from, unsigned bytes, emulation::Site site);
void emulation_end_of_copies();
void emulation_wait_for_copies(unsigned groups);
// The 32-bit name of a place in shared memory.
emulation::u32 emulation_shared_address(const void* at);

// Waits for all that was enqueued before; lets the next launch start; looks anew at what lies in the card's memory.
void emulation_after_earlier_work();
void emulation_let_next_start();
void emulation_read_anew();
void emulation_write_out();
// Reads a word around what the processor has read before.
emulation::u32 emulation_load_anew(const emulation::u32* at, emulation::Site site);
// Adds to a word of shared memory, in any order with others that do.
void emulation_add_in_shared(emulation::u32* at, emulation::u32 more, emulation::Site site);

// Hopper: barriers in shared memory by their 32-bit names, bulk copies that a barrier counts, products that go on by themselves.
emulation::u32 emulation_block_of_cluster();
void emulation_sync_cluster(emulation::Site site);
void emulation_sync_threads(emulation::u32 name, emulation::u32 threads, emulation::Site site);
void emulation_barrier_init(emulation::u32 barrier, emulation::u32 arrivals, emulation::Site site);
// Arrives, at the barrier of a block of the cluster, and says how many bytes the phase brings there.
void emulation_barrier_arrive(emulation::u32 barrier, emulation::u32 block, emulation::u32 bytes, emulation::Site site);
void emulation_barrier_wait(emulation::u32 barrier, emulation::u32 parity, emulation::Site site);
// To the same place in all blocks of a cluster that `blocks` has a bit for.
void emulation_copy_bulk(emulation::u32 to, const void* from, emulation::u32 bytes, emulation::u32 barrier, emulation::u32 blocks,
                         emulation::Site site);
void emulation_multiply_add(const emulation::Product* product);
// Bytes to a place in shared memory by its name.
void emulation_store(emulation::u32 to, const void* from, unsigned bytes, emulation::Site site);
// Bytes from the same place in the shared memory of a block of the cluster that has not left.
void emulation_load_from_block(void* to, emulation::u32 from, unsigned bytes, emulation::u32 block, emulation::Site site);
// The same in a block of the cluster.
void emulation_store_in_block(emulation::u32 to, emulation::u32 block, const void* from, unsigned bytes, emulation::Site site);
void emulation_products_commit();
void emulation_products_wait(emulation::u32 groups, emulation::Site site);
#pragma GCC visibility pop
}
