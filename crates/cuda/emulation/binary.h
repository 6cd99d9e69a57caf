// How a module lies in memory: between the compiler's stand-in, which makes it, and the driver's, which loads it.
#pragma once

namespace emulation {

struct Header {
    char mark[8];
    unsigned long long bytes;
};

inline constexpr char module_mark[9] = "EMULATED";

} // namespace emulation
