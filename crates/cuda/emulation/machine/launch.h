// Launches: blocks shared among workers.
#pragma once
#include <string>

#include "worker.h"

namespace emulation {

// Runs all blocks. What went wrong, in words; nothing, if all is well.
std::string run(Launch launch);

// The stream has something else than a launch, or the host has waited for it: all launches before are complete when the next one starts.
void complete_launches();

} // namespace emulation
