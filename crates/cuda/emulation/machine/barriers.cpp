// Hopper's barriers in shared memory, and the bulk copies that they count.
//
// What a copy brings may be there from its start on, or only when its phase ends. So its target is NaN until then.
#include <cstring>

#include "watch.h"
#include "worker.h"

namespace emulation {

static constexpr unsigned bulk_alignment = 16;

static Barrier& barrier_of(Worker& w, Block& block, u32 name, Site site) {
    auto found = block.barriers.find(name);
    // One that nobody has made is no barrier.
    if (found == block.barriers.end()) w.fail({.kind = Fault::NotShared, .site = site});
    return found->second;
}

static void end_phase_if_done(Worker& w, Block& block, u32 name, Barrier& barrier) {
    if (barrier.arrived < barrier.wanted || barrier.bytes != 0) return;
    for (const Copy& copy : barrier.copies) memcpy(copy.to, copy.from, copy.bytes);
    barrier.copies.clear();
    barrier.arrived = 0;
    barrier.parity ^= 1;
    w.wake(Meeting::Barrier, block, name);
}

static void copy_bulk(u32 to, const void* from, u32 bytes, u32 name, u32 blocks, Site site) {
    Worker& w = *worker;
    bool is_aligned = to % bulk_alignment == 0 && bytes % bulk_alignment == 0 && reinterpret_cast<uintptr_t>(from) % bulk_alignment == 0;
    if (!is_aligned) w.fail({.kind = Fault::Misaligned, .site = site});
    watch_read(from, bytes, site);
    for (u32 rank = 0; blocks >> rank; rank++) {
        if (!(blocks >> rank & 1)) continue;
        Block& block = w.block_of_cluster(rank, site);
        u8* place = w.shared_place(block, to, bytes, site);
        memset(place, 0xff, bytes);
        Barrier& barrier = barrier_of(w, block, name, site);
        barrier.copies.push_back({place, static_cast<const u8*>(from), bytes, 0});
        barrier.bytes -= bytes;
        end_phase_if_done(w, block, name, barrier);
    }
}

} // namespace emulation

using namespace emulation;

extern "C" u32 emulation_block_of_cluster() { return worker->rank(); }

extern "C" void emulation_sync_cluster(Site site) { worker->sync_cluster(site); }

extern "C" void emulation_sync_threads(u32 name, u32 threads, Site site) { worker->sync_threads(name, threads, site); }

extern "C" void emulation_barrier_init(u32 name, u32 arrivals, Site site) {
    worker->shared_place(worker->block(), name, sizeof(u64), site);
    worker->block().barriers[name] = {};
    worker->block().barriers[name].wanted = arrivals;
    worker->block().has_orders_of_its_own = true;
}

extern "C" void emulation_barrier_arrive(u32 name, u32 rank, u32 bytes, Site site) {
    Block& block = worker->block_of_cluster(rank, site);
    Barrier& barrier = barrier_of(*worker, block, name, site);
    barrier.bytes += bytes;
    barrier.arrived++;
    end_phase_if_done(*worker, block, name, barrier);
}

extern "C" void emulation_barrier_wait(u32 name, u32 parity, Site site) {
    Barrier& barrier = barrier_of(*worker, worker->block(), name, site);
    worker->thread().mask = name;
    while (barrier.parity == parity) worker->sleep(Meeting::Barrier, site);
}

extern "C" void emulation_copy_bulk(u32 to, const void* from, u32 bytes, u32 name, u32 blocks, Site site) {
    copy_bulk(to, from, bytes, name, blocks, site);
}

extern "C" void emulation_store(u32 to, const void* from, unsigned bytes, Site site) {
    u8* place = worker->shared_place(worker->block(), to, bytes, site);
    watch_write(place, bytes, site);
    memcpy(place, from, bytes);
}

extern "C" void emulation_load_from_block(void* to, u32 from, unsigned bytes, u32 rank, Site site) {
    Worker& w = *worker;
    if (from % bytes != 0) w.fail({.kind = Fault::Misaligned, .site = site});
    Block& block = w.block_of_cluster(rank, site);
    if (w.has_left(rank)) w.fail({.kind = Fault::NotShared, .site = site});
    memcpy(to, w.shared_place(block, from, bytes, site), bytes);
}

extern "C" void emulation_store_in_block(u32 to, u32 rank, const void* from, unsigned bytes, Site site) {
    Block& block = worker->block_of_cluster(rank, site);
    u8* place = worker->shared_place(block, to, bytes, site);
    watch_write_in_block(block, place, bytes, site);
    memcpy(place, from, bytes);
}
