// Every load and store of a kernel comes by here: modules are compiled with the instrumentation of -fsanitize=thread, whose
// functions these are (the sanitizer's own library is not linked). So each access is held to the memory that the thread has, to its
// width, and to what other threads did to the same bytes.
//
// Seen: races within a block in shared memory; in the card's memory, two threads that write a byte, and reading what another
// thread of the launch wrote. Not seen: writing what another thread of the launch has read, and what only a card's own order breaks.
#include <algorithm>

#include "memory.h"
#include "watch.h"
#include "worker.h"

namespace emulation {

// What asks: an instruction, or a line.
struct Asker {
    const void* code = nullptr;
    Site site{};
};

static Fault found(Fault::Kind kind, uintptr_t at, unsigned bytes, bool writes, Asker asker) {
    Fault fault;
    fault.kind = kind;
    fault.code = asker.code;
    fault.site = asker.site;
    fault.at = reinterpret_cast<const void*>(at);
    fault.bytes = bytes;
    fault.writes = writes;
    return fault;
}

// `offset` counts from the first record.
static inline void touch_shared(Worker& w, Touched* records, uintptr_t offset, uintptr_t at, unsigned bytes, bool writes,
                                Asker asker) {
    for (unsigned done = 0; done < bytes;) {
        unsigned first = (offset + done) % 4, here = std::min(4 - first, bytes - done), mask = ((1u << here) - 1) << first;
        Touched& word = records[(offset + done) / 4];
        const Access* other = nullptr;
        if (word.write.bytes & mask && !w.knows(word.write.thread, word.write.time, false)) {
            other = &word.write;
        } else if (writes && word.read.bytes & mask && !w.knows(word.read.thread, word.read.time, true)) {
            other = &word.read;
        }
        if (other) {
            Fault fault = found(Fault::Race, at + done, bytes, writes, asker);
            fault.other = other->thread;
            w.fail(fault);
        }
        (writes ? word.write : word.read) = {w.clock, mask, w.thread_index()};
        done += here;
    }
}

static void touch_card(Worker& w, Allocation& allocation, uintptr_t at, unsigned bytes, bool writes, Asker asker) {
    u32 serial = w.launch->serial;
    if (w.launch->starts_early && !w.is_in_turn()) {
        // What no kernel ever wrote may be read at any time. Else whoever wrote it is complete when this launch starts, and what its
        // processor read there before is forgotten; and where it is written, whoever read it is complete too.
        const u32 writer = allocation.last_writer(serial), reader = writes ? allocation.last_reader(serial) : 0;
        const bool is_settled = std::max(writer, reader) <= w.launch->complete && (writes || writer == 0 || w.sees_anew());
        if (!is_settled) w.fail(found(Fault::Early, at, bytes, writes, asker));
    }
    if (!writes) allocation.note_read(serial);
    if (!writes && allocation.launch.load(std::memory_order_relaxed) != serial) return;
    Written* records = allocation.records() + (at - allocation.begin);
    for (unsigned i = 0; i < bytes; i++) {
        Written& byte = records[i];
        if (byte.launch == serial && !(byte.block == w.block().number && w.knows(byte.thread, byte.time, false)) &&
            !w.knows_of_cluster(byte.block, byte.time)) {
            Fault fault = found(Fault::Race, at + i, bytes, writes, asker);
            fault.other = byte.thread;
            w.fail(fault);
        }
        if (!writes) continue;
        byte.launch = serial;
        byte.block = w.block().number;
        byte.time = w.clock;
        byte.thread = w.thread_index();
    }
    if (writes) allocation.note_write(serial);
}

static void elsewhere(Worker& w, uintptr_t at, unsigned bytes, bool writes, Asker asker) {
    uintptr_t fixed = at - reinterpret_cast<uintptr_t>(w.instance->shared);
    if (fixed < w.instance->shared_bytes && bytes <= w.instance->shared_bytes - fixed)
        return touch_shared(w, w.fixed_touched.data(), fixed, at, bytes, writes, asker);
    // Constants of the module.
    if (!writes && at >= w.instance->begin && at + bytes <= w.instance->end) return;
    w.fail(found(Fault::Outside, at, bytes, writes, asker));
}

static inline __attribute__((always_inline)) void watch(const void* pointer, unsigned bytes, bool writes, Asker asker) {
    Worker* w = worker;
    if (!w || !w->is_running) return;
    auto at = reinterpret_cast<uintptr_t>(pointer);
    if (at - w->stack_low < Stacks::bytes) return;
    Memory& memory = Memory::get();
    if (memory.is_card(at)) {
        Allocation* allocation = memory.find(at);
        if (!allocation || !allocation->holds(at, bytes)) w->fail(found(Fault::Outside, at, bytes, writes, asker));
        if (allocation->is_free) w->fail(found(Fault::Freed, at, bytes, writes, asker));
        return touch_card(*w, *allocation, at, bytes, writes, asker);
    }
    uintptr_t dynamic = at - reinterpret_cast<uintptr_t>(w->block().shared);
    if (dynamic < dynamic_shared_most) {
        if (dynamic + bytes > w->launch->shared_bytes) w->fail(found(Fault::Outside, at, bytes, writes, asker));
        return touch_shared(*w, w->block().touched.data(), dynamic, at, bytes, writes, asker);
    }
    elsewhere(*w, at, bytes, writes, asker);
}

// A store to the shared memory of another block: only the whole cluster's meetings order it.
void watch_write_in_block(Block& block, const void* pointer, unsigned bytes, Site site) {
    Worker& w = *worker;
    auto at = reinterpret_cast<uintptr_t>(pointer);
    const uintptr_t first = (at - reinterpret_cast<uintptr_t>(block.shared)) / 4;
    for (uintptr_t word = first; word < first + words_of(bytes); word++) {
        Touched& touched = block.touched[word];
        for (const Access& other : {touched.write, touched.read}) {
            if (!other.bytes || other.time < w.cluster_met || other.thread == w.thread_index()) continue;
            Fault fault = found(Fault::Race, at, bytes, true, {nullptr, site});
            fault.other = other.thread;
            w.fail(fault);
        }
        touched.write = {w.clock, 15, w.thread_index()};
    }
}

// Who added to a word of shared memory: others that do are no race, whoever else touches it is.
static constexpr unsigned adders = (1 << 16) - 1;

static void add_in_shared(u32* pointer, u32 more, Site site) {
    Worker& w = *worker;
    auto at = reinterpret_cast<uintptr_t>(pointer);
    const uintptr_t fixed = at - reinterpret_cast<uintptr_t>(w.instance->shared);
    const uintptr_t dynamic = at - reinterpret_cast<uintptr_t>(w.block().shared);
    const bool is_fixed = fixed < w.instance->shared_bytes;
    if (!is_fixed && dynamic >= w.launch->shared_bytes) w.fail({.kind = Fault::NotShared, .site = site});
    if (at % 4 != 0) w.fail({.kind = Fault::Misaligned, .site = site});
    Touched& word = is_fixed ? w.fixed_touched[fixed / 4] : w.block().touched[dynamic / 4];
    for (const Access* other : {&word.write, &word.read}) {
        if (!other->bytes || other->thread == adders || w.knows(other->thread, other->time, other == &word.read)) continue;
        Fault fault = found(Fault::Race, at, 4, true, {nullptr, site});
        fault.other = other->thread;
        w.fail(fault);
    }
    word.write = {w.clock, 15, adders};
    *pointer += more;
}

static u32 load_anew(const u32* at, Site site) {
    Thread& thread = worker->thread();
    const bool had_looked = thread.has_looked;
    thread.has_looked = true;
    watch_read(at, 4, site);
    thread.has_looked = had_looked;
    return *at;
}

void watch_read(const void* at, unsigned bytes, Site site) { watch(at, bytes, false, {nullptr, site}); }
void watch_write(const void* at, unsigned bytes, Site site) { watch(at, bytes, true, {nullptr, site}); }

} // namespace emulation

extern "C" emulation::u32 emulation_load_anew(const emulation::u32* at, emulation::Site site) { return emulation::load_anew(at, site); }
extern "C" void emulation_add_in_shared(emulation::u32* at, emulation::u32 more, emulation::Site site) {
    emulation::add_in_shared(at, more, site);
}

#define ACCESS(name, bytes, writes)                                                                             \
    extern "C" EXPORTED void __tsan_##name(const void* at) { emulation::watch(at, bytes, writes, {__builtin_return_address(0)}); }
ACCESS(read1, 1, false)
ACCESS(read2, 2, false)
ACCESS(read4, 4, false)
ACCESS(read8, 8, false)
ACCESS(read16, 16, false)
ACCESS(write1, 1, true)
ACCESS(write2, 2, true)
ACCESS(write4, 4, true)
ACCESS(write8, 8, true)
ACCESS(write16, 16, true)

extern "C" EXPORTED void __tsan_read_range(const void* at, unsigned long bytes) {
    emulation::watch(at, static_cast<unsigned>(bytes), false, {__builtin_return_address(0)});
}
extern "C" EXPORTED void __tsan_write_range(const void* at, unsigned long bytes) {
    emulation::watch(at, static_cast<unsigned>(bytes), true, {__builtin_return_address(0)});
}
extern "C" EXPORTED void __tsan_init() {}
// Blocks may run on several workers. Atomic accesses race with none of their kind, so they are watched as reads.
extern "C" EXPORTED unsigned long __tsan_atomic64_fetch_add(unsigned long* at, unsigned long more, int) {
    emulation::watch(at, sizeof(*at), false, {__builtin_return_address(0)});
    return __atomic_fetch_add(at, more, __ATOMIC_SEQ_CST);
}

// What -fsanitize=alignment calls where an address is not a multiple of its type's alignment.
extern "C" EXPORTED void __ubsan_handle_type_mismatch_v1(void*, void* pointer) {
    using namespace emulation;
    if (!worker || !worker->is_running) return;
    worker->fail(found(Fault::Misaligned, reinterpret_cast<uintptr_t>(pointer), 0, false, {__builtin_return_address(0)}));
}
