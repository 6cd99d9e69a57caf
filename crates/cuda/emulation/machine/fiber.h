// Fibers: each thread of a block has a stack of its own, and gives way to another where it waits.
#pragma once
#include <cstddef>

namespace emulation {

// Saves the registers that a call keeps on this stack, whose end is left in `from`, and goes on with the stack `to`.
extern "C" void emulation_switch(void** from, void* to);

// Stacks of the threads of a block, with a page between that nobody may touch.
class Stacks {
public:
    static constexpr size_t bytes = 128 << 10;

    explicit Stacks(size_t count);
    ~Stacks();
    Stacks(const Stacks&) = delete;

    // The lowest byte of a stack.
    char* low(size_t index) const { return memory + index * stride + page; }
    // A stack on which `run` is called at the first switch to it. `run` never returns.
    void* fresh(size_t index, void (*run)()) const;

private:
    static constexpr size_t page = 4096, stride = bytes + page;
    size_t count;
    char* memory;
};

} // namespace emulation
