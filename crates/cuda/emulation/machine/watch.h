// What the machine does with memory in a kernel's name is held to the same as the kernel's own accesses.
#pragma once
#include "fault.h"
#include "worker.h"

namespace emulation {

// Fails the running thread where it may not.
void watch_read(const void* at, unsigned bytes, Site site);
void watch_write(const void* at, unsigned bytes, Site site);
void watch_write_in_block(Block& block, const void* at, unsigned bytes, Site site);

} // namespace emulation
