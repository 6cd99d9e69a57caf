// Faults in words.
#pragma once
#include <string>

#include "worker.h"

namespace emulation {

// One line: where in the source, which thread, what.
std::string describe(const Worker& worker);

} // namespace emulation
