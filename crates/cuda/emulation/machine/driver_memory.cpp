// The driver's entry points for memory: each copy is held to the allocation that it touches.
#include <cstdio>
#include <cstring>

#include "driver.h"
#include "launch.h"
#include "memory.h"
#include "module.h"
#include "settings.h"

using namespace emulation;

static Result outside(const char* what, uintptr_t at, size_t bytes) {
    return failed(InvalidValue, std::string(what) + " of " + std::to_string(bytes) + " bytes is not within an allocation (" +
                                    (Memory::get().is_card(at) ? "of the card" : "no memory of the card") + ")");
}

ENTRY cuMemAlloc_v2(uintptr_t* pointer, size_t bytes) {
    if (Result before = lost()) return before;
    *pointer = Memory::get().take(bytes);
    return *pointer ? Success : failed(bytes ? OutOfMemory : InvalidValue, bytes ? "out of memory" : "an allocation of no bytes");
}

ENTRY cuMemFree_v2(uintptr_t pointer) {
    if (pointer == 0 || Memory::get().let_go(pointer)) return Success;
    // What is let go of twice ruins a card's state; nobody may overlook it.
    lose("memory is let go of that is not there");
    return lost();
}

// Memory of the host's that the card reads and writes is of the card's range, so that kernels are held to it too.
ENTRY cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    if (settings().has_no_pinned) return failed(OutOfMemory, "the emulated card sees no memory of the host");
    uintptr_t pointer = 0;
    const int result = cuMemAlloc_v2(&pointer, bytes);
    *host = reinterpret_cast<void*>(pointer);
    return result;
}

ENTRY cuMemHostGetDevicePointer_v2(uintptr_t* pointer, void* host, unsigned) {
    *pointer = reinterpret_cast<uintptr_t>(host);
    return Memory::get().has(*pointer, 1) ? Success : failed(InvalidValue, "no memory that the card sees");
}

ENTRY cuMemFreeHost(void* host) { return cuMemFree_v2(reinterpret_cast<uintptr_t>(host)); }

ENTRY cuMemsetD8_v2(uintptr_t at, unsigned char value, size_t bytes) {
    if (Result before = lost()) return before;
    if (!Memory::get().has(at, bytes)) return outside("a fill", at, bytes);
    memset(reinterpret_cast<void*>(at), value, bytes);
    return Success;
}

ENTRY cuMemsetD8Async(uintptr_t at, unsigned char value, size_t bytes, void*) {
    complete_launches();
    return cuMemsetD8_v2(at, value, bytes);
}

ENTRY cuMemcpyHtoD_v2(uintptr_t to, const void* from, size_t bytes) {
    if (Result before = lost()) return before;
    if (!Memory::get().has(to, bytes)) return outside("a copy to the card", to, bytes);
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    written_by_host(to, bytes);
    return Success;
}

static void tell(const char* what, size_t bytes) {
    if (settings().trace) fprintf(stderr, "%s %zu bytes\n", what, bytes);
}

ENTRY cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, void*) {
    tell("send", bytes);
    complete_launches();
    return cuMemcpyHtoD_v2(to, from, bytes);
}

ENTRY cuMemcpyDtoH_v2(void* to, uintptr_t from, size_t bytes) {
    if (Result before = lost()) return before;
    if (!Memory::get().has(from, bytes)) return outside("a copy from the card", from, bytes);
    memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return Success;
}

ENTRY cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, void*) {
    tell("read", bytes);
    complete_launches();
    return cuMemcpyDtoH_v2(to, from, bytes);
}

ENTRY cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void*) {
    if (Result before = lost()) return before;
    if (!Memory::get().has(to, bytes)) return outside("a copy on the card", to, bytes);
    if (!Memory::get().has(from, bytes)) return outside("a copy on the card", from, bytes);
    complete_launches();
    memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
    return Success;
}
