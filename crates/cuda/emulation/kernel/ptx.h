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

EMULATED float exp2_near(float x) { return (float)__builtin_exp2((double)x); }

template <class T> EMULATED T load_once(const T* at) { return *at; }
EMULATED u32 load_once(const u16* at) { return *at; }

// A number that the compiler does not know: here it may.
EMULATED int opaque(int value) { return value; }

template <class T> EMULATED void asked(T&) {}

// The functions of matrix units: all 32 threads bring their registers, and take their sums, which begin at `start`.
EMULATED void multiply(int (&c)[4], const u32 (&a)[4], uint2 b, const int (&start)[4], HERE) {
    const u32 registers[2] = {b.x, b.y};
    for (int i = 0; i < 4; i++) c[i] = start[i];
    const emulation::Multiplication part = {emulation::Multiplication::U8S8Depth32, c, a, registers};
    emulation_multiply(&part, here);
}
EMULATED void multiply_half(int (&c)[4], u32 a0, u32 a1, u32 b, const int (&start)[4], HERE) {
    const u32 registers[2] = {a0, a1};
    for (int i = 0; i < 4; i++) c[i] = start[i];
    const emulation::Multiplication part = {emulation::Multiplication::U8S8Depth16, c, registers, &b};
    emulation_multiply(&part, here);
}
EMULATED void multiply_signed(int (&c)[4], const u32 (&a)[4], uint2 b, const int (&start)[4], HERE) {
    const u32 registers[2] = {b.x, b.y};
    for (int i = 0; i < 4; i++) c[i] = start[i];
    const emulation::Multiplication part = {emulation::Multiplication::S8S8Depth32, c, a, registers};
    emulation_multiply(&part, here);
}
EMULATED void multiply_half_signed(int (&c)[4], u32 a0, u32 a1, u32 b, const int (&start)[4], HERE) {
    const u32 registers[2] = {a0, a1};
    for (int i = 0; i < 4; i++) c[i] = start[i];
    const emulation::Multiplication part = {emulation::Multiplication::S8S8Depth16, c, registers, &b};
    emulation_multiply(&part, here);
}
EMULATED int dot_pair(u32 pair, int factors, int sum) {
    return sum + (short)pair * (signed char)factors + (short)(pair >> 16) * (signed char)(factors >> 8);
}
EMULATED int dot_pair_high(u32 pair, int factors, int sum) { return dot_pair(pair, factors >> 16, sum); }

EMULATED void multiply_numbers(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, HERE) {
    const u32 registers[2] = {b0, b1};
    const emulation::Multiplication part = {emulation::Multiplication::F16Depth16, c, a, registers};
    emulation_multiply(&part, here);
}

// Copies that go on by themselves. The machine makes them as late as it may, so that who does not wait sees NaN.
EMULATED u32 shared_address(const void* at) { return emulation_shared_address(at); }
// Number `column` of row `row` of one of four 8 x 8 matrices whose rows the lanes name.
EMULATED u32 number_of_matrix(const void* named, int matrix, int row, int column, emulation::Site here) {
    const u16* at = (const u16*)__shfl_sync(0xffffffffu, (u64)named, matrix * 8 + row, 32, here);
    return at[column];
}
EMULATED void load_matrices(u32 (&out)[4], const void* row, HERE) {
    const int line = emulated_lane() / 4, pair = emulated_lane() % 4 * 2;
    for (int m = 0; m < 4; m++)
        out[m] = number_of_matrix(row, m, line, pair, here) | number_of_matrix(row, m, line, pair + 1, here) << 16;
}
EMULATED void load_turned(u32 (&out)[4], const void* row, HERE) {
    const int line = emulated_lane() / 4, pair = emulated_lane() % 4 * 2;
    for (int m = 0; m < 4; m++)
        out[m] = number_of_matrix(row, m, pair, line, here) | number_of_matrix(row, m, pair + 1, line, here) << 16;
}
EMULATED void copy_16(void* to, const void* from, HERE) { emulation_copy(to, from, 16, here); }
EMULATED void copy_8(void* to, const void* from, HERE) { emulation_copy(to, from, 8, here); }
EMULATED void copy_4(void* to, const void* from, HERE) { emulation_copy(to, from, 4, here); }
EMULATED void end_of_copies() { emulation_end_of_copies(); }
template <int GROUPS> EMULATED void wait_for_copies() { emulation_wait_for_copies(GROUPS); }

EMULATED void copy_16_once(void* to, const void* from, HERE) { emulation_copy(to, from, 16, here); }
EMULATED float reciprocal_near(float x) { return 1.0f / x; }
EMULATED void prefetch(const void*) {}
EMULATED u32 named_bytes(u32 first, u32 second, u32 which) {
    u32 bytes = __byte_perm(first, second, which);
    // The fourth bit of a nibble spreads the byte's sign.
    for (int i = 0; i < 4; i++)
        if (which >> (4 * i + 3) & 1) bytes = (bytes & ~(0xffu << (8 * i))) | (bytes >> (8 * i + 7) & 1 ? 0xffu << (8 * i) : 0);
    return bytes;
}
EMULATED u32 select_bits(u32 mask, u32 ones, u32 zeros) { return (mask & ones) | (~mask & zeros); }
EMULATED u32 only_bits(u32 mask, u32 bits) { return mask & bits; }

// A clock that runs fast, so that nobody waits long.
EMULATED u64 clock_nanoseconds() { return __builtin_ia32_rdtsc() << 12; }

#define HAS_CLUSTERS 1

// Kernels of a stream that start early: the machine holds them to what they may touch before they wait.
EMULATED void let_next_start() { emulation_let_next_start(); }
EMULATED void wait_for_earlier_work() { emulation_after_earlier_work(); }
EMULATED void write_out() { emulation_write_out(); }
EMULATED void after_earlier_work() {
    wait_for_earlier_work();
    let_next_start();
}
EMULATED void read_anew() { emulation_read_anew(); }
EMULATED u32 load_anew(const u32* at, HERE) { return emulation_load_anew(at, here); }
EMULATED void add_in_shared(u32* at, u32 more, HERE) { emulation_add_in_shared(at, more, here); }
EMULATED u64 add_atomically(u64* at, u64 more) { return __atomic_fetch_add(at, more, __ATOMIC_SEQ_CST); }

template <int HALF> EMULATED u32 both_halves(u32 pair) { return (pair >> (16 * HALF) & 0xffffu) * 0x00010001u; }

// Pairs of f16: each half is computed exactly, in f64, which holds a product and a sum of three f16, and is rounded once.
EMULATED u16 rounded_half(double exact) {
    float near = (float)exact;
    // To odd: the last bit says that something was left, so that the second rounding knows.
    if (exact == exact && (double)near != exact) {
        u32 bits = __float_as_uint(near);
        if (__builtin_fabs((double)near) > __builtin_fabs(exact)) bits -= 1;
        near = __uint_as_float(bits | 1);
    }
    return float_to_half(near);
}
EMULATED double half_of(u32 pair, int half) { return half_to_float(pair >> (16 * half)); }
EMULATED u32 pair_of(double low, double high) { return rounded_half(low) | (u32)rounded_half(high) << 16; }
EMULATED u32 add_halves(u32 a, u32 b) { return pair_of(half_of(a, 0) + half_of(b, 0), half_of(a, 1) + half_of(b, 1)); }
EMULATED u32 multiply_halves(u32 a, u32 b) { return pair_of(half_of(a, 0) * half_of(b, 0), half_of(a, 1) * half_of(b, 1)); }
EMULATED u32 fma_halves(u32 a, u32 b, u32 c) {
    return pair_of(half_of(a, 0) * half_of(b, 0) + half_of(c, 0), half_of(a, 1) * half_of(b, 1) + half_of(c, 1));
}
EMULATED u32 larger_halves(u32 a, u32 b) {
    u32 larger = 0;
    for (int half = 0; half < 2; half++) {
        const double one = half_of(a, half), other = half_of(b, half);
        const u32 of_half = one != one || other != other ? 0x7fffu : (one > other ? a : b) >> (16 * half) & 0xffffu;
        larger |= of_half << (16 * half);
    }
    return larger;
}
EMULATED u32 pair_of_halves(float low, float high) { return float_to_half(low) | (u32)float_to_half(high) << 16; }
