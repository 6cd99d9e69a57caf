// What the card is like, and where it fails, by the variable EMULATED_CARD:
// `cards=1,capability=8.0,memory=8589934592,fail=codes,trace=all,pinned=none`.
#pragma once
#include <cstddef>
#include <string>

namespace emulation {

struct Settings {
    int cards = 1;
    int major = 8, minor = 0;
    size_t memory = size_t{8} << 30;
    // Launches of this kernel fail.
    std::string fail;
    // Each launch is told, and each copy between host and card; and where they are `only` told, none runs.
    bool trace = false, idle = false;
    // It does not see memory of the host.
    bool has_no_pinned = false;
    // Threads that run blocks; 0: one a core.
    unsigned workers = 0;
};

const Settings& settings();

} // namespace emulation
