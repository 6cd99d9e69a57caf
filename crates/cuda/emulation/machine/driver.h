// What the entry points of the stand-in driver share: results, and the words that go with them.
#pragma once
#include <string>

#include "../machine.h"

namespace emulation {

// As the CUDA driver API numbers them.
enum Result : int {
    Success = 0,
    InvalidValue = 1,
    OutOfMemory = 2,
    NoDevice = 100,
    InvalidDevice = 101,
    InvalidImage = 200,
    NotFound = 500,
    IllegalAddress = 700,
    OutOfResources = 701,
};

// Keeps the words of a failure, which cuGetErrorString gives for its number; returns the number.
Result failed(Result result, std::string words);

// The first failure of a launch, which every later call returns, as it is with a card.
Result lost();
void lose(std::string words);
// Forgets it.
void recover();

} // namespace emulation

#define ENTRY extern "C" EXPORTED int
