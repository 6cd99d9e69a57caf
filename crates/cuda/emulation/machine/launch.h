// Launches: blocks shared among workers.
#pragma once
#include <string>

#include "worker.h"

namespace emulation {

// Runs all blocks. What went wrong, in words; nothing, if all is well.
std::string run(Launch launch);

} // namespace emulation
