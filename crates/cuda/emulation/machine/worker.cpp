#include "worker.h"

#include <cstring>
#include <map>
#include <sstream>

namespace emulation {

thread_local Worker* worker = nullptr;

static constexpr int poison = 0xff;
// As the widest that a copy of the card's asks for.
static constexpr size_t shared_alignment = 1024;

static constexpr unsigned threads_most = threads_max * cluster_max;

Worker::Worker(size_t index)
    : index(index), stacks(threads_most), threads(threads_most), warps(threads_most / lanes), blocks(cluster_max), queue(threads_most) {}

static Index index_of(u64 number, Index of) {
    return {unsigned(number % of.x), unsigned(number / of.x % of.y), unsigned(number / of.x / of.y)};
}

void Worker::start_block(Block& block, u64 cluster, unsigned rank) {
    if (!block.shared) {
        block.memory.reset(new u8[dynamic_shared_most + shared_alignment]);
        auto at = reinterpret_cast<uintptr_t>(block.memory.get());
        block.shared = reinterpret_cast<u8*>((at + shared_alignment - 1) / shared_alignment * shared_alignment);
        block.touched.resize(words_of(dynamic_shared_most));
    }
    block.number = static_cast<u32>(cluster * launch->cluster + rank);
    block.index = index_of(block.number, launch->grid);
    block.at_barrier = 0;
    block.met = clock;
    block.barriers.clear();
    block.has_orders_of_its_own = block.lets_next_start = false;
    block.waited = block.looked = {};
    memset(block.at_named, 0, sizeof(block.at_named));
    memset(block.shared, poison, launch->shared_bytes);
    for (unsigned w = 0; w * lanes < count; w++) {
        Warp& warp = warps[rank * stride / lanes + w];
        unsigned here = std::min(lanes, count - w * lanes);
        warp.live = here == lanes ? ~0u : (1u << here) - 1;
        warp.arrived = 0;
        warp.agreed = warp.seen = clock;
    }
    for (unsigned i = 0; i < count; i++) {
        Thread& thread = threads[rank * stride + i];
        thread.stack = stacks.fresh(rank * stride + i, begin_thread);
        thread.copies.clear();
        thread.products.clear();
        thread.copy_groups = thread.product_groups = 0;
        thread.has_waited = thread.has_looked = false;
        thread.place = {index_of(i, launch->block), block.index, launch->block, launch->grid};
        ready(rank * stride + i);
    }
}

void Worker::start(u64 cluster) {
    count = launch->block.x * launch->block.y * launch->block.z;
    stride = (count + lanes - 1) / lanes * lanes;
    left = at_cluster = queue_first = queue_length = 0;
    fault = Fault();
    cluster_met = ++clock;
    memset(instance->shared, poison, instance->shared_bytes);
    if (fixed_touched.size() < words_of(instance->shared_bytes)) fixed_touched.resize(words_of(instance->shared_bytes));
    for (unsigned rank = 0; rank < launch->cluster; rank++) start_block(blocks[rank], cluster, rank);
}

bool Worker::run(const Launch& what, u64 cluster) {
    launch = &what;
    instance = &what.function->module->instance(index);
    kernel = instance->kernel(what.function->name);
    worker = this;
    start(cluster);
    is_running = true;
    running = queue[queue_first++];
    queue_length--;
    stack_low = reinterpret_cast<uintptr_t>(stacks.low(running));
    // Back here when all threads have left, none can go on, or one has failed.
    emulation_switch(&own_stack, threads[running].stack);
    is_running = false;
    if (fault.kind == Fault::None && left < count * launch->cluster) {
        fault.kind = Fault::Stuck;
        waiting = who_waits();
    }
    for (unsigned rank = 0; rank < launch->cluster && fault.kind == Fault::None; rank++) {
        // Who waits for this launch waits for those before it too: each has waited for them when it ends.
        if (launch->starts_early && !blocks[rank].waited.is_done) fault.kind = Fault::NeverInTurn;
    }
    return fault.kind == Fault::None;
}

void Worker::begin_thread() {
    worker->kernel->call(worker->launch->values);
    worker->leave();
}

void Worker::ready(unsigned thread) {
    threads[thread].state = Thread::Ready;
    queue[(queue_first + queue_length++) % threads_most] = thread;
}

void Worker::give_way() {
    void** from = &threads[running].stack;
    if (queue_length == 0) {
        emulation_switch(from, own_stack);
        return;
    }
    running = queue[queue_first];
    queue_first = (queue_first + 1) % threads_most;
    queue_length--;
    stack_low = reinterpret_cast<uintptr_t>(stacks.low(running));
    emulation_switch(from, threads[running].stack);
}

void Worker::leave() {
    threads[running].state = Thread::Gone;
    left++;
    unsigned lane = running % lanes, first = running - lane;
    Warp& warp = warps[running / lanes];
    warp.live &= ~(1u << lane);
    // Others may have waited for this one alone.
    for (unsigned l = 0; l < lanes; l++)
        if (warp.arrived >> l & 1 && threads[first + l].mask >> lane & 1 && completes(warp, first, threads[first + l].mask)) break;
    give_way();
    __builtin_unreachable();
}

void Worker::fail(Fault what) {
    what.place = threads[running].place;
    fault = what;
    void* nowhere;
    emulation_switch(&nowhere, own_stack);
    __builtin_unreachable();
}

void Worker::sleep(Meeting meeting, Site site) {
    Thread& thread = threads[running];
    thread.meeting = meeting;
    thread.site = site;
    thread.state = Thread::Waiting;
    give_way();
}

void Worker::wake(Meeting meeting, const Block& block, u32 value) {
    auto rank = static_cast<unsigned>(&block - blocks.data());
    for (unsigned i = rank * stride; i < rank * stride + count; i++) {
        const Thread& thread = threads[i];
        if (thread.state == Thread::Waiting && thread.meeting == meeting && thread.mask == value) ready(i);
    }
}

// Who has left never comes: the others wait for good, and that is told.
void Worker::sync_block(Site site) {
    threads[running].mask = 0;
    if (++block().at_barrier < count) return sleep(Meeting::Block, site);
    block().at_barrier = 0;
    block().met = ++clock;
    wake(Meeting::Block, block(), 0);
}

void Worker::sync_cluster(Site site) {
    threads[running].mask = 0;
    if (++at_cluster < count * launch->cluster) return sleep(Meeting::Cluster, site);
    at_cluster = 0;
    cluster_met = ++clock;
    for (unsigned rank = 0; rank < launch->cluster; rank++) {
        blocks[rank].met = clock;
        wake(Meeting::Cluster, blocks[rank], 0);
    }
}

void Worker::sync_threads(u32 name, u32 wanted, Site site) {
    Block& here = block();
    here.has_orders_of_its_own = true;
    threads[running].mask = name;
    if (++here.at_named[name % 16] < wanted) return sleep(Meeting::Threads, site);
    here.at_named[name % 16] = 0;
    wake(Meeting::Threads, here, name);
}

void Worker::meet(Meeting meeting, u32 mask, u64 value, Site site) {
    Thread& thread = threads[running];
    unsigned lane = running % lanes;
    thread.meeting = meeting;
    thread.mask = mask;
    thread.site = site;
    if (!(mask >> lane & 1)) fail({.kind = Fault::NotNamed, .site = site});
    Warp& warp = warps[running / lanes];
    warp.brought[lane] = value;
    warp.arrived |= 1u << lane;
    thread.state = Thread::Waiting;
    if (!completes(warp, running - lane, mask)) give_way();
}

bool Worker::completes(Warp& warp, unsigned first, u32 mask) {
    unsigned any = first + static_cast<unsigned>(__builtin_ctz(mask & warp.arrived));
    Meeting meeting = threads[any].meeting;
    bool is_of_all = meeting == Meeting::Multiply || meeting == Meeting::Products;
    u32 wanted = is_of_all ? mask : mask & warp.live;
    if (wanted & ~warp.arrived) return false;
    for (unsigned l = 0; l < lanes; l++) {
        const Thread& other = threads[first + l];
        bool is_here = wanted >> l & 1;
        // The matrix instructions want one and the same for all; others may stand on two sides of a branch.
        bool is_same = other.meeting == meeting && other.mask == mask;
        bool is_one = !is_of_all || other.site.line == threads[any].site.line;
        if (is_here && !(is_same && is_one)) {
            waiting = who_waits();
            fail({.kind = Fault::Divergent, .site = other.site});
        }
    }
    if (meeting == Meeting::Multiply) {
        multiply(warp.brought);
    } else if (meeting == Meeting::Products) {
        multiply_add(*this, warp.brought);
    } else {
        for (unsigned l = 0; l < lanes; l++)
            if (mask >> l & 1) warp.met[l] = wanted >> l & 1 ? warp.brought[l] : ~0ull;
    }
    warp.seen = ++clock;
    if (meeting == Meeting::Warp) warp.agreed = clock;
    warp.arrived &= ~mask;
    for (unsigned l = 0; l < lanes; l++) {
        if (!(wanted >> l & 1)) continue;
        threads[first + l].state = Thread::Ready;
        if (first + l != running) ready(first + l);
    }
    return true;
}

void Worker::wait_for_earlier_work() {
    threads[running].has_waited = true;
    if (!block().waited.is_done) block().waited = {true, running, clock};
}

void Worker::read_anew() {
    threads[running].has_looked = true;
    if (!block().looked.is_done) block().looked = {true, running, clock};
}

// The first thread of a block speaks for all of it.
void Worker::let_next_start() {
    if (block().lets_next_start) return;
    block().lets_next_start = true;
    launch->next->is_let = true;
    if (!is_in_turn()) launch->next->is_early = true;
}

void Worker::write_out() { launch->next->is_written_out = true; }

bool Worker::is_shared(const void* at) const { return shared_address(at) != 0; }

static u32 dynamic_from(const Instance& instance) {
    return static_cast<u32>((instance.shared_bytes + shared_alignment - 1) / shared_alignment * shared_alignment + shared_alignment);
}

u32 Worker::shared_address(const void* at) const {
    auto address = reinterpret_cast<uintptr_t>(at);
    uintptr_t fixed = address - reinterpret_cast<uintptr_t>(instance->shared);
    uintptr_t dynamic = address - reinterpret_cast<uintptr_t>(block().shared);
    if (fixed < instance->shared_bytes) return static_cast<u32>(shared_alignment + fixed);
    return dynamic < launch->shared_bytes ? dynamic_from(*instance) + static_cast<u32>(dynamic) : 0;
}

u8* Worker::shared_place(const Block& block, u32 name, u32 bytes, Site site) {
    size_t at = size_t{name} - dynamic_from(*instance);
    if (name < dynamic_from(*instance) || at > launch->shared_bytes || bytes > launch->shared_bytes - at) {
        fail({.kind = Fault::NotShared, .site = site});
    }
    return block.shared + at;
}

Block& Worker::block_of_cluster(u32 rank, Site site) {
    if (rank >= launch->cluster) fail({.kind = Fault::NotShared, .site = site});
    return blocks[rank];
}

bool Worker::has_left(u32 rank) const {
    for (unsigned i = rank * stride; i < rank * stride + count; i++)
        if (threads[i].state == Thread::Gone) return true;
    return false;
}

std::string Worker::who_waits() const {
    static const char* const names[] = {"for the block",      "for the warp",    "in a shuffle or vote",         "in a product of matrices",
                                        "for named threads", "for the cluster", "for a barrier in shared memory", "for products"};
    std::map<std::string, unsigned> groups;
    for (unsigned i = 0; i < stride * launch->cluster; i++) {
        if (i % stride >= count) continue;
        const Thread& thread = threads[i];
        std::ostringstream text;
        if (thread.state == Thread::Gone) {
            text << "left";
        } else if (thread.state == Thread::Waiting) {
            bool is_of_lanes = thread.meeting == Meeting::Warp || thread.meeting == Meeting::Gather || thread.meeting == Meeting::Multiply;
            text << "wait " << names[static_cast<unsigned>(thread.meeting)] << " at " << thread.site.file << ':' << thread.site.line;
            if (is_of_lanes) text << " with mask 0x" << std::hex << thread.mask;
        } else {
            text << "could go on";
        }
        groups[text.str()]++;
    }
    std::ostringstream all;
    const char* between = "";
    for (const auto& [text, threads] : groups) {
        all << between << threads << ' ' << text;
        between = ", ";
    }
    return all.str();
}

} // namespace emulation

using emulation::worker;

extern "C" emulation::Index emulation_thread() { return worker->thread().place.thread; }
extern "C" emulation::Index emulation_block() { return worker->thread().place.block; }
extern "C" emulation::Index emulation_block_size() { return worker->launch->block; }
extern "C" emulation::Index emulation_grid() { return worker->launch->grid; }
extern "C" emulation::u8* emulation_dynamic_shared() { return worker->block().shared; }

extern "C" emulation::u32 emulation_shared_address(const void* at) { return worker->shared_address(at); }

extern "C" void emulation_after_earlier_work() { worker->wait_for_earlier_work(); }
extern "C" void emulation_let_next_start() { worker->let_next_start(); }
extern "C" void emulation_read_anew() { worker->read_anew(); }
extern "C" void emulation_write_out() { worker->write_out(); }

extern "C" void emulation_sync_block(emulation::Site site) { worker->sync_block(site); }

extern "C" void emulation_sync_warp(emulation::u32 mask, emulation::Site site) {
    worker->meet(emulation::Meeting::Warp, mask, 0, site);
}

extern "C" emulation::u64 emulation_shuffle(emulation::u32 mask, emulation::u64 value, int from, emulation::Site site) {
    worker->meet(emulation::Meeting::Gather, mask, value, site);
    return mask >> from & 1 ? worker->met()[from] : ~0ull;
}

extern "C" emulation::u32 emulation_vote(emulation::u32 mask, bool is_set, emulation::Site site) {
    worker->meet(emulation::Meeting::Gather, mask, is_set, site);
    emulation::u32 votes = 0;
    for (unsigned lane = 0; lane < emulation::lanes; lane++) votes |= (mask >> lane & 1 && worker->met()[lane] == 1) << lane;
    return votes;
}

extern "C" void emulation_multiply(const emulation::Multiplication* part, emulation::Site site) {
    worker->meet(emulation::Meeting::Multiply, ~0u, reinterpret_cast<emulation::u64>(part), site);
}
