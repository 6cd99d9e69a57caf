// Stands in for NVRTC: compiles a kernel's source with g++ for the emulated machine. The part `ptx.cuh` gives way to kernel/ptx.h,
// and behind the source each kernel that it holds is described.
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "../binary.h"

extern char** environ;

namespace {

enum Result : int { Success = 0, InvalidInput = 3, CompilationFailed = 6, InternalError = 11 };

struct Program {
    std::string source, name, log, binary;
};

// Where this library lies; beside it are the headers for kernels.
std::filesystem::path folder() {
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&folder), &self);
    return std::filesystem::absolute(self.dli_fname).parent_path();
}

std::string read(const std::filesystem::path& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

// Parts of a source that the machine brings of its own.
constexpr const char* replaced[] = {"ptx.cuh", "hopper/ptx.cuh", "hopper/wgmma.cuh"};

std::string without(std::string source, const std::string& part) {
    const std::string mark = "#line 1 \"" + part + "\"\n";
    size_t begin = source.find(mark);
    if (begin == std::string::npos) return source;
    size_t end = source.find("#line 1 \"", begin + mark.size());
    return source.erase(begin, end == std::string::npos ? end : end - begin);
}

// A kernel's head: between the word and the name stand its cluster, which may be left out by a condition, and its bounds.
const std::regex& head_of_kernel() {
    static const std::regex head(R"((?:^|\n)KERNEL\s+(?:#if[^\n]*\s+)?(?:__cluster_dims__\(([^,)]*)[^)]*\)\s+)?(?:#endif\s+)?)"
                                 R"((?:__launch_bounds__\(([^)]*)\)\s+)?(\w+)\s*\()");
    return head;
}

std::string emulated(const std::string& source) {
    std::string text = source;
    for (const char* part : replaced) text = without(text, part);
    text = "#include \"ptx.h\"\n#include \"hopper.h\"\n" + text + "#include \"export.h\"\n";
    std::string exports;
    for (std::sregex_iterator found(text.begin(), text.end(), head_of_kernel()), end; found != end; ++found) {
        std::string cluster = (*found)[1].matched ? (*found)[1].str() : "1";
        exports += "EMULATED_KERNEL(" + (*found)[3].str() + ", " + cluster + ", " + (*found)[2].str() + ")\n";
    }
    return text + exports;
}

// A folder of one compilation, removed with all that is in it.
struct Scratch {
    std::filesystem::path path;
    Scratch() {
        std::string name = (std::filesystem::temp_directory_path() / "emulated-XXXXXX").string();
        if (mkdtemp(name.data())) path = name;
    }
    ~Scratch() {
        std::error_code ignored;
        if (!path.empty()) std::filesystem::remove_all(path, ignored);
    }
};

// What both machines share of arithmetic: fused operations where they are written, and only there.
std::vector<std::string> flags() {
    // The sanitizers give calls for each access, machine/watch.cpp; their libraries are left out.
    std::istringstream fixed("g++ -std=c++20 -O1 -g1 -gdwarf-4 -w -fPIC -shared -nostdlib -ffp-contract=off -fno-strict-aliasing "
                             "-fno-exceptions -fno-rtti -fvisibility=hidden -fno-gnu-unique "
                             "-fsanitize=thread --param=tsan-instrument-func-entry-exit=0 -fsanitize=alignment");
    std::vector<std::string> all{std::istream_iterator<std::string>(fixed), {}};
    if (__builtin_cpu_supports("fma")) all.insert(all.end(), {"-mfma", "-mf16c"});
    return all;
}

int run(const std::vector<std::string>& words, const std::filesystem::path& scratch) {
    std::vector<char*> arguments;
    for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, (scratch / "log").c_str(), O_WRONLY | O_CREAT, 0600);
    pid_t child;
    int status = -1;
    if (posix_spawnp(&child, "g++", &actions, nullptr, arguments.data(), environ) == 0) waitpid(child, &status, 0);
    posix_spawn_file_actions_destroy(&actions);
    return status;
}

// A name for all that goes in (FNV-1a): what was compiled before, by any process, is taken from beside this library.
std::filesystem::path kept(const std::string& text, const std::vector<std::string>& words) {
    unsigned long long hash = 0xcbf29ce484222325;
    auto take = [&](const std::string& part) {
        for (unsigned char byte : part + '\0') hash = (hash ^ byte) * 0x100000001b3;
    };
    take(text);
    for (const auto& word : words) take(word);
    std::ostringstream name;
    name << std::hex << hash << ".so";
    return folder() / "modules" / name.str();
}

// Copies beside and renames, so that a reader sees all of it or nothing.
void keep(const std::filesystem::path& library, const std::filesystem::path& to) {
    std::error_code failed;
    std::filesystem::create_directories(to.parent_path(), failed);
    std::filesystem::path part = to;
    part += "." + std::to_string(getpid()) + library.parent_path().filename().string();
    if (std::filesystem::copy_file(library, part, failed)) std::filesystem::rename(part, to, failed);
}

std::string packed(const std::string& code) {
    emulation::Header header{{}, code.size()};
    memcpy(header.mark, emulation::module_mark, sizeof(header.mark));
    return std::string(reinterpret_cast<const char*>(&header), sizeof(header)) + code;
}

Result compile(Program& program, int count, const char* const* options) {
    std::string text = emulated(program.source);
    std::vector<std::string> words = flags();
    for (int i = 0; i < count; i++) {
        // Constants are for any compiler; the rest speaks of cards.
        if (strncmp(options[i], "-D", 2) == 0) words.push_back(options[i]);
    }
    std::filesystem::path known = kept(text, words);
    if (std::filesystem::exists(known)) {
        program.binary = packed(read(known));
        return Success;
    }
    Scratch scratch;
    std::filesystem::path source = scratch.path / "kernel.cpp", library = scratch.path / "kernel.so";
    std::ofstream(source) << text;
    std::string headers = folder() / "include";
    // Lines are named as in the source, without a folder.
    std::string nowhere = "-fdebug-prefix-map=" + std::filesystem::current_path().string() + "=.";
    words.insert(words.end(), {"-I" + headers, "-I" + headers + "/kernel", nowhere});
    words.insert(words.end(), {"-o", library.string(), source.string()});
    int status = run(words, scratch.path);
    program.log = read(scratch.path / "log");
    std::string code = read(library);
    if (status != 0 || code.empty()) {
        if (program.log.empty()) program.log = "g++ cannot be run";
        return CompilationFailed;
    }
    program.binary = packed(code);
    keep(library, known);
    return Success;
}

} // namespace

#define ENTRY extern "C" __attribute__((visibility("default"))) int

// No real compiler's version, and another for other headers: caches of kernels go by it.
ENTRY nvrtcVersion(int* major, int* minor) {
    *major = 0;
    *minor = EMULATION_VERSION;
    return Success;
}

ENTRY nvrtcCreateProgram(Program** program, const char* source, const char* name, int headers, const char* const*, const char* const*) {
    if (headers != 0) return InvalidInput;
    *program = new Program{source, name, {}, {}};
    return Success;
}

ENTRY nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    try {
        return compile(*program, count, options);
    } catch (const std::exception& error) {
        program->log = error.what();
        return InternalError;
    }
}

ENTRY nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    *bytes = program->log.size() + 1;
    return Success;
}

ENTRY nvrtcGetProgramLog(Program* program, char* log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return Success;
}

ENTRY nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    *bytes = program->binary.size();
    return Success;
}

ENTRY nvrtcGetCUBIN(Program* program, char* binary) {
    memcpy(binary, program->binary.data(), program->binary.size());
    return Success;
}

ENTRY nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return Success;
}
