#include "module.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace emulation {

Module::Module(const void* image) {
    Header header;
    memcpy(&header, image, sizeof(header));
    if (memcmp(header.mark, module_mark, sizeof(header.mark)) != 0) throw std::string("machine code of a real card");
    library.assign(static_cast<const char*>(image) + sizeof(header), header.bytes);
    instance(0);
}

Module::~Module() {
    for (auto& instance : instances) {
        if (!instance) continue;
        dlclose(instance->handle);
        close(instance->file);
    }
}

// The range of addresses that a library takes.
static void find_range(Instance& instance) {
    link_map* map = nullptr;
    dlinfo(instance.handle, RTLD_DI_LINKMAP, &map);
    instance.begin = map->l_addr;
    instance.end = 0;
    auto widen = [](dl_phdr_info* info, size_t, void* data) {
        auto& instance = *static_cast<Instance*>(data);
        if (info->dlpi_addr != instance.begin) return 0;
        for (int i = 0; i < info->dlpi_phnum; i++) {
            const auto& part = info->dlpi_phdr[i];
            if (part.p_type == PT_LOAD) instance.end = std::max<uintptr_t>(instance.end, info->dlpi_addr + part.p_vaddr + part.p_memsz);
        }
        return 1;
    };
    dl_iterate_phdr(widen, &instance);
}

static std::unique_ptr<Instance> open(const std::string& library) {
    auto instance = std::make_unique<Instance>();
    instance->file = memfd_create("emulated kernels", MFD_CLOEXEC);
    for (size_t at = 0; at < library.size();) {
        ssize_t count = write(instance->file, library.data() + at, library.size() - at);
        if (count <= 0) throw std::string("no room for a module");
        at += static_cast<size_t>(count);
    }
    std::string path = "/proc/self/fd/" + std::to_string(instance->file);
    // Another file each time, so another copy.
    instance->handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!instance->handle) throw std::string(dlerror());
    find_range(*instance);
    auto* shared = static_cast<u8* const*>(dlsym(instance->handle, "emulated_shared"));
    if (!shared) throw std::string("the module tells nothing of its shared memory");
    instance->shared = shared[0];
    instance->shared_bytes = static_cast<size_t>(shared[1] - shared[0]);
    return instance;
}

const Instance& Module::instance(size_t worker) {
    std::lock_guard lock(opening);
    if (instances.size() <= worker) instances.resize(worker + 1);
    if (!instances[worker]) {
        instances[worker] = open(library);
        for (const auto& [name, value] : values) memcpy(dlsym(instances[worker]->handle, name.c_str()), value.data(), value.size());
    }
    return *instances[worker];
}

void Module::set(const std::string& name, const void* bytes, size_t count) {
    std::lock_guard lock(opening);
    const u8* from = static_cast<const u8*>(bytes);
    values[name].assign(from, from + count);
    for (const auto& instance : instances)
        if (instance) memcpy(dlsym(instance->handle, name.c_str()), bytes, count);
}

namespace {

std::mutex seen_changes;
std::map<uintptr_t, std::pair<Module*, std::string>> seen;

} // namespace

void show_value(uintptr_t at, Module* module, const std::string& name) {
    std::lock_guard lock(seen_changes);
    seen[at] = {module, name};
}

void hide_value(uintptr_t at) {
    std::lock_guard lock(seen_changes);
    seen.erase(at);
}

void written_by_host(uintptr_t at, size_t bytes) {
    std::lock_guard lock(seen_changes);
    auto found = seen.find(at);
    if (found != seen.end()) found->second.first->set(found->second.second, reinterpret_cast<const void*>(at), bytes);
}

const Kernel* Instance::kernel(const std::string& name) const {
    return static_cast<const Kernel*>(dlsym(handle, ("emulated_" + name).c_str()));
}

} // namespace emulation
