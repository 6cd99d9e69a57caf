// Stands in for crates/cuda/kernels/ptx.cuh: the same names, on the emulated machine.
#pragma once
#include "cuda.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE EMULATED
#define DEVICE_MEMBER inline __attribute__((always_inline))
#define KERNEL extern "C" __attribute__((noinline)) void
#define DYNAMIC_SHARED(type, name) type* const name = (type*)emulation_dynamic_shared()

// Conversions are exact, or rounded to the nearest, ties to even, as the instructions are.
EMULATED float half_to_float(u32 bits) {
    u16 low = (u16)bits;
    return (float)__builtin_bit_cast(_Float16, low);
}
EMULATED u16 float_to_half(float value) { return __builtin_bit_cast(u16, (_Float16)value); }

template <class T> EMULATED T load_once(const T* at) { return *at; }
EMULATED u32 load_once(const u16* at) { return *at; }

// The functions of matrix units: all 32 threads bring their registers, and take their sums.
EMULATED void multiply(int (&c)[4], const u32 (&a)[4], uint2 b, HERE) {
    const u32 registers[2] = {b.x, b.y};
    const emulation::Multiplication part = {emulation::Multiplication::U8S8Depth32, c, a, registers};
    emulation_multiply(&part, here);
}
EMULATED void multiply_half(int (&c)[4], u32 a0, u32 a1, u32 b, HERE) {
    const u32 registers[2] = {a0, a1};
    const emulation::Multiplication part = {emulation::Multiplication::U8S8Depth16, c, registers, &b};
    emulation_multiply(&part, here);
}
