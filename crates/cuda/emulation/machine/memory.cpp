#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "settings.h"

namespace emulation {

// What a driver promises, at least.
static constexpr size_t alignment = 256;
// As f32, f16 and double: NaN.
static constexpr int poison = 0xff;

static std::mutex changes;

static char* reserve(size_t bytes, int protection) {
    void* at = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        perror("emulation: memory of the card");
        abort();
    }
    return static_cast<char*>(at);
}

Memory Memory::card;

Memory::Memory() {
    base = reinterpret_cast<uintptr_t>(reserve(range, PROT_NONE));
    pages = reinterpret_cast<std::atomic<Allocation*>*>(reserve(range / page * sizeof(void*), PROT_READ | PROT_WRITE));
}

uintptr_t Memory::take(size_t bytes) {
    std::lock_guard lock(changes);
    if (bytes == 0 || bytes > settings().memory || used > settings().memory - bytes) return 0;
    // The end lies as near to the next page, which nobody may touch, as alignment allows.
    size_t padded = (bytes + alignment - 1) / alignment * alignment, mapped = (padded + page - 1) / page * page;
    if (mapped > range - 2 * page - next) return 0;
    uintptr_t first = base + next;
    next += mapped + page;
    if (mprotect(reinterpret_cast<void*>(first), mapped, PROT_READ | PROT_WRITE) != 0) return 0;
    memset(reinterpret_cast<void*>(first), poison, mapped);
    auto* allocation = new Allocation(first + mapped - padded, bytes);
    for (size_t i = 0; i <= mapped / page; i++) pages[(first - base) / page + i].store(allocation, std::memory_order_release);
    used += bytes;
    live++;
    return allocation->begin;
}

bool Memory::let_go(uintptr_t begin) {
    std::lock_guard lock(changes);
    Allocation* allocation = find(begin);
    if (!allocation || allocation->begin != begin || allocation->is_free) return false;
    allocation->is_free = true;
    uintptr_t first = begin / page * page, end = (begin + allocation->bytes + page - 1) / page * page;
    // Gives the pages back, and leaves addresses that nobody may touch.
    mmap(reinterpret_cast<void*>(first), end - first, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (Written* written = allocation->written.exchange(nullptr)) munmap(written, allocation->bytes * sizeof(Written));
    used -= allocation->bytes;
    live--;
    return true;
}

bool Memory::has(uintptr_t at, size_t bytes) const {
    Allocation* allocation = find(at);
    return allocation && !allocation->is_free && allocation->holds(at, bytes);
}

Written* Allocation::records() {
    if (Written* known = written.load(std::memory_order_acquire)) return known;
    std::lock_guard lock(changes);
    if (!written.load()) written = reinterpret_cast<Written*>(reserve(bytes * sizeof(Written), PROT_READ | PROT_WRITE));
    return written;
}

} // namespace emulation
