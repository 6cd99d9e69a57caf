// A module is what the stand-in for the compiler makes: a mark, a length, and a shared library of emulated kernels.
//
// Each worker opens a copy of its own, since a block's shared memory of fixed size is a section of the library.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../binary.h"
#include "../machine.h"

namespace emulation {

// One opened copy.
struct Instance {
    int file;
    void* handle;
    // Its addresses, and those of its shared memory.
    uintptr_t begin, end;
    u8* shared;
    size_t shared_bytes;

    // Null where there is no such kernel.
    const Kernel* kernel(const std::string& name) const;
};

class Module {
public:
    // Throws std::string.
    explicit Module(const void* image);
    ~Module();

    // The copy of a worker, opened when it is first asked for.
    const Instance& instance(size_t worker);

    // Writes a value of the module, in all copies that there are and will be.
    void set(const std::string& name, const void* bytes, size_t count);

private:
    std::string library;
    std::mutex opening;
    std::vector<std::unique_ptr<Instance>> instances;
    // What the host has written, by name.
    std::map<std::string, std::vector<u8>> values;
};

// The host sees a module's value at `at`, memory of the card.
void show_value(uintptr_t at, Module* module, const std::string& name);
void hide_value(uintptr_t at);
// The host has written `bytes` at `at`: if a value is seen there, kernels see it too.
void written_by_host(uintptr_t at, size_t bytes);

// Dynamic shared memory that a launch may have without asking.
inline constexpr size_t shared_unasked = 48 << 10;

// A kernel of a loaded module.
struct Function {
    Module* module;
    std::string name;
    const Kernel* kernel;
    // Dynamic shared memory that a launch may ask for.
    size_t dynamic_shared_max;
};

} // namespace emulation
