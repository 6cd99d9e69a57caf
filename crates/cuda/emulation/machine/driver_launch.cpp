// The driver's entry points for launches, one by one and as graphs of what was captured from a stream.
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "driver.h"
#include "launch.h"
#include "settings.h"

using namespace emulation;

namespace {

constexpr unsigned grid_most = 65535;

// The driver's own forms of a launch and its attributes.
struct LaunchAttribute {
    unsigned id;
    char padding[4];
    union {
        char bytes[64];
        int number;
        unsigned dimensions[3];
    };
};
struct LaunchConfig {
    unsigned grid[3], block[3], shared;
    void* stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};
constexpr unsigned cluster_dimension = 4, programmatic_serialization = 6;

// A launch with its parameters.
struct Call {
    Launch launch;
    std::vector<std::vector<u8>> values;

    explicit Call(const Launch& what) : launch(what) {
        const Kernel& kernel = *what.function->kernel;
        for (unsigned i = 0; i < kernel.parameters; i++) {
            auto* from = static_cast<const u8*>(what.values[i]);
            values.emplace_back(from, from + kernel.sizes[i]);
        }
    }
};

using Graph = std::vector<Call>;

// Where launches of a stream go instead of the card, for each that is captured. Others' threads have streams of their own.
std::map<void*, Graph> captured;
std::mutex capturing;

// Whether a card would take it.
Result check(const Launch& launch) {
    Function& f = *launch.function;
    const auto& [grid, block] = std::pair(launch.grid, launch.block);
    unsigned long long threads = 1ull * block.x * block.y * block.z;
    bool is_grid = grid.x && grid.y && grid.z && grid.x <= 0x7fffffffu && grid.y <= grid_most && grid.z <= grid_most;
    if (!is_grid) return failed(InvalidValue, f.name + ": no such grid");
    if (threads == 0 || threads > f.kernel->threads_max) return failed(OutOfResources, f.name + ": more threads than its bounds");
    size_t fixed = f.module->instance(0).shared_bytes, shared = launch.shared_bytes;
    bool is_unasked = f.dynamic_shared_max == shared_unasked && shared + fixed > shared_unasked;
    if (shared > f.dynamic_shared_max || is_unasked) return failed(InvalidValue, f.name + ": more shared memory than was asked for");
    unsigned cluster = launch.cluster;
    bool is_cluster = cluster <= cluster_max && grid.x % cluster == 0 && (cluster == 1 || fixed == 0);
    return is_cluster ? Success : failed(InvalidValue, f.name + ": no such cluster");
}

// What goes wrong in a kernel is told by the next call.
void run_now(const Launch& launch) {
    if (settings().fail == launch.function->name) return lose("an illegal memory access was encountered");
    if (settings().trace) {
        fprintf(stderr, "launch %s %u,%u,%u of %u\n", launch.function->name.c_str(), launch.grid.x, launch.grid.y, launch.grid.z,
                launch.block.x);
    }
    if (settings().idle) return;
    std::string failure = run(launch);
    if (!failure.empty()) lose(failure);
}

// Whether a launch has gone into the graph that is made of its stream.
bool is_captured(const Launch& launch, void* stream) {
    std::lock_guard lock(capturing);
    auto found = captured.find(stream);
    if (found == captured.end()) return false;
    found->second.emplace_back(launch);
    return true;
}

Result take(const Launch& launch, void* stream) {
    if (Result before = lost()) return before;
    if (Result wrong = check(launch)) return wrong;
    if (!is_captured(launch, stream)) run_now(launch);
    return Success;
}

} // namespace

ENTRY cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                     void* stream, void** values, void**) {
    auto* f = static_cast<Function*>(function);
    return take({f, {gx, gy, gz}, {bx, by, bz}, shared, values, 0, false, 0, nullptr, f->kernel->cluster}, stream);
}

ENTRY cuLaunchKernelEx(const LaunchConfig* config, void* function, void** values, void**) {
    const auto &g = config->grid, &b = config->block;
    auto* f = static_cast<Function*>(function);
    Launch launch = {f, {g[0], g[1], g[2]}, {b[0], b[1], b[2]}, config->shared, values, 0, false, 0, nullptr, f->kernel->cluster};
    for (unsigned i = 0; i < config->attribute_count; i++) {
        const LaunchAttribute& attribute = config->attributes[i];
        if (attribute.id == programmatic_serialization) {
            launch.starts_early = attribute.number != 0;
        } else if (attribute.id == cluster_dimension) {
            const auto& size = attribute.dimensions;
            bool is_line = size[0] >= 1 && size[1] == 1 && size[2] == 1;
            if (!is_line || f->kernel->cluster > 1) return failed(InvalidValue, f->name + ": a cluster is a row of blocks, asked for once");
            launch.cluster = size[0];
        } else {
            return failed(InvalidValue, "the emulated card knows no attribute " + std::to_string(attribute.id) + " of launches");
        }
    }
    return take(launch, config->stream);
}

ENTRY cuStreamBeginCapture_v2(void* stream, int) {
    std::lock_guard lock(capturing);
    return captured.try_emplace(stream).second ? Success : failed(InvalidValue, "the stream is captured already");
}

ENTRY cuStreamEndCapture(void* stream, void** graph) {
    std::lock_guard lock(capturing);
    auto found = captured.find(stream);
    *graph = nullptr;
    if (found == captured.end()) return failed(InvalidValue, "the stream is not captured");
    *graph = new Graph(std::move(found->second));
    captured.erase(found);
    return Success;
}

ENTRY cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new Graph(*static_cast<Graph*>(graph));
    return Success;
}

ENTRY cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return Success;
}

ENTRY cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }

ENTRY cuGraphLaunch(void* executable, void*) {
    if (Result before = lost()) return before;
    for (Call& call : *static_cast<Graph*>(executable)) {
        std::vector<void*> values;
        for (auto& value : call.values) values.push_back(value.data());
        call.launch.values = values.data();
        run_now(call.launch);
    }
    return Success;
}
