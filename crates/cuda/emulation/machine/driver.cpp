// The driver's entry points for the card, its context, streams and events. All work is done when a call returns.
#include "driver.h"

#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "launch.h"
#include "memory.h"
#include "settings.h"
#include "worker.h"

namespace emulation {

static std::mutex losing;
static std::string lost_words;
static std::atomic<bool> is_lost{false};
static thread_local std::string last_words;
static thread_local Result last = Success;

Result failed(Result result, std::string words) {
    last = result;
    last_words = std::move(words);
    return result;
}

Result lost() { return is_lost ? failed(IllegalAddress, lost_words) : Success; }

void lose(std::string words) {
    std::lock_guard lock(losing);
    if (is_lost) return;
    lost_words = std::move(words);
    is_lost = true;
}

void recover() {
    std::lock_guard lock(losing);
    is_lost = false;
}

// Contexts that were opened and not let go of.
static std::atomic<int> contexts{0};

// Whoever leaves memory behind is told, and the process fails.
__attribute__((destructor)) static void at_exit() {
    size_t count = Memory::get().count();
    if (count == 0) return;
    fprintf(stderr, "emulation: %zu allocations of %zu bytes were never let go of\n", count, Memory::get().used_bytes());
    fflush(stderr);
    _Exit(70);
}

} // namespace emulation

using namespace emulation;

ENTRY cuInit(unsigned) {
    if (settings().cards == 0) return failed(NoDevice, "no CUDA-capable device is detected");
    // Modules find the machine's functions among the names of all libraries; the program has opened this one for itself alone.
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&cuInit), &self);
    dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
    return Success;
}

ENTRY cuDriverGetVersion(int* version) {
    *version = 13000;
    return Success;
}

ENTRY cuDeviceGetCount(int* count) {
    *count = settings().cards;
    return Success;
}

ENTRY cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= settings().cards) return failed(InvalidDevice, "invalid device ordinal");
    *device = ordinal;
    return Success;
}

ENTRY cuDeviceGetName(char* name, int length, int) {
    snprintf(name, static_cast<size_t>(length), "emulated card");
    return Success;
}

ENTRY cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = settings().memory;
    return Success;
}

ENTRY cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = settings().memory;
    *free = *total - Memory::get().used_bytes();
    return Success;
}

ENTRY cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 1: *value = threads_max; break;                             // threads of a block
    case 8: *value = 48 << 10; break;                                // shared memory of a block
    case 10: *value = lanes; break;                                  // threads of a warp
    case 16: *value = 4; break;                                      // processors
    case 38: *value = 1 << 20; break;                                // L2 cache
    case 75: *value = settings().major; break;                       // compute capability
    case 76: *value = settings().minor; break;
    case 97: *value = static_cast<int>(dynamic_shared_most); break;  // shared memory of a block, if asked for
    default: return failed(InvalidValue, "the emulated card knows no attribute " + std::to_string(attribute));
    }
    return Success;
}

ENTRY cuDevicePrimaryCtxRetain(void** context, int) {
    contexts++;
    *context = &contexts;
    return Success;
}

ENTRY cuDevicePrimaryCtxRelease_v2(int) { return contexts-- > 0 ? Success : failed(InvalidValue, "no context is held"); }

ENTRY cuDevicePrimaryCtxReset_v2(int) {
    recover();
    return Success;
}

ENTRY cuCtxSetCurrent(void* context) { return context == &contexts ? Success : failed(InvalidValue, "no context"); }

ENTRY cuCtxGetCurrent(void** context) {
    *context = &contexts;
    return Success;
}

ENTRY cuCtxSynchronize() {
    complete_launches();
    return lost();
}

ENTRY cuStreamCreate(void** stream, unsigned) {
    *stream = new char;
    return Success;
}

ENTRY cuStreamDestroy_v2(void* stream) {
    delete static_cast<char*>(stream);
    return Success;
}

ENTRY cuStreamSynchronize(void*) {
    complete_launches();
    return lost();
}

using Moment = std::chrono::steady_clock::time_point;

ENTRY cuEventCreate(void** event, unsigned) {
    *event = new Moment;
    return Success;
}

ENTRY cuEventRecord(void* event, void*) {
    *static_cast<Moment*>(event) = std::chrono::steady_clock::now();
    return lost();
}

ENTRY cuEventSynchronize(void*) { return lost(); }

ENTRY cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    std::chrono::duration<float, std::milli> took = *static_cast<Moment*>(end) - *static_cast<Moment*>(start);
    *milliseconds = took.count();
    return Success;
}

ENTRY cuEventElapsedTime(float* milliseconds, void* start, void* end) { return cuEventElapsedTime_v2(milliseconds, start, end); }

ENTRY cuEventDestroy_v2(void* event) {
    delete static_cast<Moment*>(event);
    return Success;
}

ENTRY cuGetErrorString(int error, const char** words) {
    *words = error == last && !last_words.empty() ? last_words.c_str() : "an error of the emulated card";
    return Success;
}

ENTRY cuGetErrorName(int, const char** name) {
    *name = "CUDA_ERROR";
    return Success;
}
