// The driver's entry points for modules.
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <deque>
#include <mutex>

#include "driver.h"
#include "memory.h"
#include "module.h"
#include "worker.h"

using namespace emulation;

namespace {

struct Loaded {
    Module module;
    std::deque<Function> functions;
    // Values of the module that were asked for, copied to memory of the card.
    std::vector<uintptr_t> globals;
};

} // namespace

ENTRY cuModuleLoadData(void** module, const void* image) {
    if (Result before = lost()) return before;
    try {
        *module = new Loaded{Module(image), {}, {}};
        return Success;
    } catch (const std::string& why) {
        return failed(InvalidImage, why);
    }
}

ENTRY cuModuleUnload(void* module) {
    auto* loaded = static_cast<Loaded*>(module);
    for (uintptr_t global : loaded->globals) {
        hide_value(global);
        Memory::get().let_go(global);
    }
    delete loaded;
    return Success;
}

ENTRY cuModuleGetFunction(void** function, void* module, const char* name) {
    auto* loaded = static_cast<Loaded*>(module);
    const Kernel* kernel = loaded->module.instance(0).kernel(name);
    if (!kernel) return failed(NotFound, std::string("the module has no kernel ") + name);
    loaded->functions.push_back({&loaded->module, name, kernel, shared_unasked});
    *function = &loaded->functions.back();
    return Success;
}

ENTRY cuModuleGetGlobal_v2(uintptr_t* pointer, size_t* bytes, void* module, const char* name) {
    auto* loaded = static_cast<Loaded*>(module);
    void* at = dlsym(loaded->module.instance(0).handle, name);
    Dl_info info;
    ElfW(Sym)* symbol = nullptr;
    if (!at || !dladdr1(at, &info, reinterpret_cast<void**>(&symbol), RTLD_DL_SYMENT) || !symbol) {
        return failed(NotFound, std::string("the module has no value ") + name);
    }
    *bytes = symbol->st_size;
    *pointer = Memory::get().take(*bytes);
    if (!*pointer) return failed(OutOfMemory, "out of memory");
    memcpy(reinterpret_cast<void*>(*pointer), at, *bytes);
    loaded->globals.push_back(*pointer);
    show_value(*pointer, &loaded->module, name);
    return Success;
}

ENTRY cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* bytes) {
    const Kernel* kernel = static_cast<Function*>(function)->kernel;
    if (index >= kernel->parameters) return failed(InvalidValue, "there is no such parameter");
    *offset = kernel->offsets[index];
    *bytes = kernel->sizes[index];
    return Success;
}

ENTRY cuFuncSetAttribute(void* function, int attribute, int value) {
    auto* f = static_cast<Function*>(function);
    size_t fixed = f->module->instance(0).shared_bytes;
    // The most dynamic shared memory; others are hints.
    if (attribute != 8) return Success;
    if (value < 0 || fixed + static_cast<size_t>(value) > dynamic_shared_most) {
        return failed(InvalidValue, "no block has so much shared memory");
    }
    f->dynamic_shared_max = static_cast<size_t>(value);
    return Success;
}

ENTRY cuFuncGetAttribute(int* value, int attribute, void* function) {
    auto* f = static_cast<Function*>(function);
    switch (attribute) {
    case 0: *value = static_cast<int>(f->kernel->threads_max); return Success;
    case 1: *value = static_cast<int>(f->module->instance(0).shared_bytes); return Success;
    default: return failed(InvalidValue, "the emulated card knows no attribute " + std::to_string(attribute) + " of kernels");
    }
}
