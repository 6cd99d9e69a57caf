// CUDA C++ for g++: qualifiers, built-in variables and functions that kernels use. A function that is missing here is an error of
// the compiler; add it with the meaning that the CUDA programming guide gives it.
#pragma once
#include "machine.h"

#define __device__ __attribute__((visibility("default")))
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
// A section of its own: the machine fills it with NaN before each block, and each of its threads has its own copy of the module.
#define __shared__ static __attribute__((section("shared_memory")))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (emulation_thread())
#define blockIdx (emulation_block())
#define blockDim (emulation_block_size())
#define gridDim (emulation_grid())

#define EMULATED static inline __attribute__((always_inline))
// The line that calls.
#define HERE emulation::Site here = {__builtin_FILE(), __builtin_LINE()}

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

EMULATED uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
EMULATED uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
EMULATED float2 make_float2(float x, float y) { return {x, y}; }
EMULATED float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Bits.

EMULATED float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
EMULATED float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
EMULATED unsigned __float_as_uint(float value) { return __builtin_bit_cast(unsigned, value); }
EMULATED int __float_as_int(float value) { return __builtin_bit_cast(int, value); }
EMULATED int __popc(unsigned bits) { return __builtin_popcount(bits); }
EMULATED int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }
EMULATED int __ffs(int bits) { return __builtin_ffs(bits); }

EMULATED unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned byte = (unsigned)(bytes >> ((selector >> (4 * i) & 7) * 8)) & 0xff;
        // The fourth bit of a selector spreads the sign.
        if (selector >> (4 * i) & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << (8 * i);
    }
    return out;
}

// Numbers. Sums are never contracted: modules are compiled without.

EMULATED float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
EMULATED float __fsqrt_rn(float value) { return __builtin_sqrtf(value); }
EMULATED float __fadd_rn(float a, float b) { return a + b; }
EMULATED float __fmul_rn(float a, float b) { return a * b; }
EMULATED float __fdiv_rn(float a, float b) { return a / b; }

// As cvt.s32.f32: what is beyond stays at the end, NaN is 0.
EMULATED int emulated_int(float whole) {
    if (whole != whole) return 0;
    return whole >= 2147483648.0f ? 2147483647 : whole < -2147483648.0f ? -2147483647 - 1 : (int)whole;
}
EMULATED int __float2int_rn(float value) { return emulated_int(__builtin_rintf(value)); }
EMULATED int __float2int_rz(float value) { return emulated_int(__builtin_truncf(value)); }
EMULATED int __float2int_rd(float value) { return emulated_int(__builtin_floorf(value)); }

EMULATED int min(int a, int b) { return a < b ? a : b; }
EMULATED unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
EMULATED int max(int a, int b) { return a > b ? a : b; }
EMULATED unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
// NaN gives way to a number.
EMULATED float fminf(float a, float b) { return a != a || b < a ? b : a; }
EMULATED float fmaxf(float a, float b) { return a != a || b > a ? b : a; }
EMULATED float fabsf(float value) { return __builtin_fabsf(value); }

EMULATED int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += (int)(signed char)(a >> (8 * i)) * (int)(signed char)(b >> (8 * i));
    return sum;
}

// Memory. The machine watches every load and store; caches are nothing to it.

template <class T> EMULATED T __ldg(const T* at) { return *at; }
template <class T> EMULATED T __ldcg(const T* at) { return *at; }
template <class T> EMULATED T __ldcs(const T* at) { return *at; }

// Threads that wait for each other.

EMULATED void __syncthreads(HERE) { emulation_sync_block(here); }
EMULATED void __syncwarp(unsigned mask = 0xffffffffu, HERE) { emulation_sync_warp(mask, here); }

template <class T> EMULATED T emulated_shuffle(unsigned mask, T value, int from, emulation::Site here) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = emulation_shuffle(mask, bits, from, here);
    T out;
    __builtin_memcpy(&out, &bits, sizeof(T));
    return out;
}
EMULATED int emulated_lane() { return (int)(threadIdx.x % 32); }
template <class T> EMULATED T __shfl_sync(unsigned mask, T value, int from, int width = 32, HERE) {
    return emulated_shuffle(mask, value, emulated_lane() / width * width + (from & (width - 1)), here);
}
template <class T> EMULATED T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, HERE) {
    int lane = emulated_lane(), from = lane ^ bits;
    return emulated_shuffle(mask, value, from / width > lane / width ? lane : from, here);
}
template <class T> EMULATED T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, HERE) {
    int lane = emulated_lane(), from = lane + (int)by;
    return emulated_shuffle(mask, value, from / width > lane / width ? lane : from, here);
}
template <class T> EMULATED T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, HERE) {
    int lane = emulated_lane();
    return emulated_shuffle(mask, value, lane % width < (int)by ? lane : lane - (int)by, here);
}
EMULATED unsigned __ballot_sync(unsigned mask, int is_set, HERE) { return emulation_vote(mask, is_set != 0, here); }
// Reductions of a warp; all lanes get the result.
EMULATED unsigned __reduce_max_sync(unsigned mask, unsigned value, HERE) {
    for (int bits = 16; bits > 0; bits /= 2) value = max(value, __shfl_xor_sync(mask, value, bits, 32, here));
    return value;
}
EMULATED unsigned __reduce_min_sync(unsigned mask, unsigned value, HERE) {
    for (int bits = 16; bits > 0; bits /= 2) value = min(value, __shfl_xor_sync(mask, value, bits, 32, here));
    return value;
}
EMULATED unsigned __reduce_add_sync(unsigned mask, unsigned value, HERE) {
    for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(mask, value, bits, 32, here);
    return value;
}
EMULATED int __any_sync(unsigned mask, int is_set, HERE) { return emulation_vote(mask, is_set != 0, here) != 0; }
EMULATED int __all_sync(unsigned mask, int is_set, HERE) { return emulation_vote(mask, is_set == 0, here) == 0; }
