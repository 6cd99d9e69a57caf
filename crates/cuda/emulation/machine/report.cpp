#include "report.h"

#include <unistd.h>

#include <cstdio>
#include <sstream>

#include "memory.h"

namespace emulation {

static std::ostream& operator<<(std::ostream& out, const Index& i) { return out << '(' << i.x << ", " << i.y << ", " << i.z << ')'; }

// The line of a kernel's source that holds an instruction; the outermost of those that were inlined there would be the kernel's,
// the innermost may be a header of the emulation: the first that is neither is told.
static std::string line_of(const Instance& instance, const void* code) {
    std::ostringstream command;
    command << "addr2line -i -e /proc/" << getpid() << "/fd/" << instance.file << " 0x" << std::hex
            << reinterpret_cast<uintptr_t>(code) - instance.begin - 1 << " 2>/dev/null";
    std::string found = "a line unknown";
    FILE* lines = popen(command.str().c_str(), "r");
    if (!lines) return found;
    char line[1024];
    while (fgets(line, sizeof(line), lines)) {
        std::string text(line);
        text = text.substr(0, text.find_first_of(" \n"));
        // A file's name comes with folders that it never lay in.
        text.erase(0, text.rfind("./") == std::string::npos ? 0 : text.rfind("./") + 2);
        bool is_source = text.find(".cu:") != std::string::npos || text.find(".cuh:") != std::string::npos;
        if (!is_source) continue;
        found = text;
        break;
    }
    pclose(lines);
    return found;
}

// What lies at an address.
static std::string place_of(const Worker& worker, uintptr_t at) {
    std::ostringstream text;
    if (Allocation* allocation = Memory::get().find(at)) {
        auto offset = static_cast<long long>(at) - static_cast<long long>(allocation->begin);
        text << "at byte " << offset << " of " << (allocation->is_free ? "freed " : "") << "memory of " << allocation->bytes << " bytes";
        return text.str();
    }
    uintptr_t dynamic = at - reinterpret_cast<uintptr_t>(worker.block().shared);
    if (dynamic < dynamic_shared_most) {
        text << "at byte " << dynamic << " of " << worker.launch->shared_bytes << " of shared memory";
    } else if (at - reinterpret_cast<uintptr_t>(worker.instance->shared) < worker.instance->shared_bytes) {
        text << "in shared memory of fixed size";
    } else if (at < 4096) {
        text << "at a null pointer";
    } else {
        text << "at an address that is no memory of the thread's";
    }
    return text.str();
}

static void describe_access(std::ostream& out, const Worker& worker, const Fault& fault) {
    auto at = reinterpret_cast<uintptr_t>(fault.at);
    out << (fault.writes ? "writes " : "reads ") << fault.bytes << " bytes " << place_of(worker, at);
    if (fault.kind == Fault::Race) {
        out << ", which thread " << fault.other << (fault.writes ? " touched" : " wrote") << " in the same launch with no barrier between";
    }
}

std::string describe(const Worker& worker) {
    const Fault& fault = worker.fault;
    std::ostringstream out;
    if (fault.code) {
        out << line_of(*worker.instance, fault.code) << ": ";
    } else if (fault.site.file) {
        out << fault.site.file << ':' << fault.site.line << ": ";
    }
    out << worker.launch->function->name << ": ";
    if (fault.kind == Fault::Stuck) {
        out << "the threads of a block wait for ever: " << worker.waiting;
        return out.str();
    }
    if (fault.kind == Fault::NeverInTurn) {
        out << "starts before earlier work is done, and ends without a wait for that";
        return out.str();
    }
    out << "thread " << fault.place.thread << " of block " << fault.place.block << ' ';
    switch (fault.kind) {
    case Fault::Divergent: out << "meets others that want something else: " << worker.waiting; break;
    case Fault::NotNamed: out << "is not in the mask that it waits with"; break;
    case Fault::Early:
        describe_access(out, worker, fault);
        out << ", which earlier work may still use, before it waits for that";
        break;
    case Fault::NotShared: out << "names what is not shared memory"; break;
    case Fault::Misaligned: out << "uses an address that is not a multiple of the access's width"; break;
    default: describe_access(out, worker, fault);
    }
    return out.str();
}

} // namespace emulation
