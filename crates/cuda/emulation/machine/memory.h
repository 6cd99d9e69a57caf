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
    std::atomic<Written*> written{nullptr};

    Allocation(uintptr_t begin, size_t bytes) : begin(begin), bytes(bytes), is_free(false) {}
    bool holds(uintptr_t at, size_t count) const { return at >= begin && count <= bytes && at - begin <= bytes - count; }
    void note_write(u32 serial) {
        u32 last = launch.load(std::memory_order_relaxed);
        if (last == serial || !launch.compare_exchange_strong(last, serial)) return;
        launch_before = last;
    }
    // Whether a launch before this one wrote to it.
    bool has_earlier_work(u32 serial) const {
        u32 last = launch.load(std::memory_order_relaxed);
        return last != 0 && (last != serial || launch_before != 0);
    }
    // The records of all bytes, made when they are first asked for.
    Written* records();
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
