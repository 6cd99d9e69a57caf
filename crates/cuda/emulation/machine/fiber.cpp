#include "fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#ifndef __x86_64__
#error "the switch of fibers is written for x86-64"
#endif

// By the System V rules these six registers and the stack are all that a call has to keep.
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch, . - emulation_switch
)");

namespace emulation {

Stacks::Stacks(size_t count) : count(count) {
    void* taken = mmap(nullptr, count * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (taken == MAP_FAILED) {
        perror("emulation: stacks");
        abort();
    }
    memory = static_cast<char*>(taken);
    for (size_t i = 0; i < count; i++) mprotect(memory + i * stride, page, PROT_NONE);
}

Stacks::~Stacks() { munmap(memory, count * stride); }

void* Stacks::fresh(size_t index, void (*run)()) const {
    // Six registers, where to go on, and a return address that is never used: at its first instruction a function finds the
    // stack at 8 past a multiple of 16.
    void** top = reinterpret_cast<void**>(low(index) + bytes) - 8;
    for (int i = 0; i < 8; i++) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(run);
    return top;
}

} // namespace emulation
