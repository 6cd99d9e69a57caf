// Copies from the card's memory to shared memory that a thread starts, and waits for in groups (cp.async).
//
// From its start until it is waited for, what a copy brings may be there or not. So it is made as late as it may: its target is NaN
// at once, which also finds who still reads there, and gets its bytes when the thread waits.
#include <cstring>

#include "watch.h"
#include "worker.h"

namespace emulation {

static bool is_multiple(const void* at, unsigned bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

static void start(void* to, const void* from, unsigned bytes, Site site) {
    Worker& w = *worker;
    if (!is_multiple(to, bytes) || !is_multiple(from, bytes)) w.fail({.kind = Fault::Misaligned, .site = site});
    if (!w.is_shared(to)) w.fail({.kind = Fault::NotShared, .site = site});
    watch_read(from, bytes, site);
    watch_write(to, bytes, site);
    memset(to, 0xff, bytes);
    Thread& thread = w.thread();
    thread.copies.push_back({static_cast<u8*>(to), static_cast<const u8*>(from), bytes, thread.copy_groups});
}

// Makes the copies of all groups but the last few.
static void finish(unsigned groups_left) {
    Thread& thread = worker->thread();
    size_t kept = 0;
    for (const Copy& copy : thread.copies) {
        if (copy.group + groups_left >= thread.copy_groups) {
            thread.copies[kept++] = copy;
            continue;
        }
        watch_write(copy.to, copy.bytes, {});
        memcpy(copy.to, copy.from, copy.bytes);
    }
    thread.copies.resize(kept);
}

} // namespace emulation

extern "C" void emulation_copy(void* to, const void* from, unsigned bytes, emulation::Site site) {
    emulation::start(to, from, bytes, site);
}

extern "C" void emulation_end_of_copies() { emulation::worker->thread().copy_groups++; }

extern "C" void emulation_wait_for_copies(unsigned groups) { emulation::finish(groups); }
