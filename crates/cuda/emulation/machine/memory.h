// The card's memory. Each allocation lies in pages of its own, in a range of addresses that is never used twice, so that what
// lies behind an end, or was let go of, is known for what it is. Contents are NaN before somebody writes.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "../machine.h"

namespace emulation {

// The last write of a byte.
struct Written {
    u32 launch = 0;
    u32 block = 0;
    // By the clock of the worker that ran the block.
    u64 time : 48 = 0;
    u64 thread : 16 = 0;
};

struct Allocation {
    uintptr_t begin;
    size_t bytes;
    bool is_free;
    // The last launch that wrote to it: where it is not the one that runs, nobody need look at single bytes.
    std::atomic<u32> launch{0};
    // The one that wrote to it before that.
    std::atomic<u32> launch_before{0};
    // The last launch that read it, and the one before that.
    std::atomic<u32> reader{0}, reader_before{0};
    std::atomic<Written*> written{nullptr};

    Allocation(uintptr_t begin, size_t bytes) : begin(begin), bytes(bytes), is_free(false) {}
    bool holds(uintptr_t at, size_t count) const { return at >= begin && count <= bytes && at - begin <= bytes - count; }
    void note_write(u32 serial) { note(serial, launch, launch_before); }
    void note_read(u32 serial) { note(serial, reader, reader_before); }
    // The last launch before this one that wrote to it, and that read it; none: 0.
    u32 last_writer(u32 serial) const { return other_than(serial, launch, launch_before); }
    u32 last_reader(u32 serial) const { return other_than(serial, reader, reader_before); }
    // The records of all bytes, made when they are first asked for.
    Written* records();

private:
    static void note(u32 serial, std::atomic<u32>& newest, std::atomic<u32>& before) {
        u32 last = newest.load(std::memory_order_relaxed);
        if (last == serial || !newest.compare_exchange_strong(last, serial)) return;
        before = last;
    }
    static u32 other_than(u32 serial, const std::atomic<u32>& newest, const std::atomic<u32>& before) {
        u32 last = newest.load(std::memory_order_relaxed);
        return last == serial ? before.load(std::memory_order_relaxed) : last;
    }
};

class Memory {
public:
    static Memory& get() { return card; }

    // 0 where there is no room.
    uintptr_t take(size_t bytes);
    // False for what is no allocation.
    bool let_go(uintptr_t begin);

    // Whether an address is of the card's range at all.
    bool is_card(uintptr_t at) const { return at - base < range; }
    // The allocation whose pages hold an address, also after it was let go of; none between allocations.
    Allocation* find(uintptr_t at) const { return is_card(at) ? pages[(at - base) / page].load(std::memory_order_relaxed) : nullptr; }
    // Whether the bytes are all of one allocation that is there.
    bool has(uintptr_t at, size_t bytes) const;

    // Allocations that were never let go of.
    size_t count() const { return live; }
    size_t used_bytes() const { return used; }

private:
    static constexpr size_t page = 4096;
    static constexpr size_t range = size_t{1} << 40;

    Memory();
    static Memory card;

    uintptr_t base;
    std::atomic<Allocation*>* pages;
    std::atomic<size_t> next{page}, live{0}, used{0};
};

} // namespace emulation
