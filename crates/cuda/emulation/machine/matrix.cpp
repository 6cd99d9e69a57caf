// The matrix instructions, exactly. Where each thread's registers stand in a matrix is in the PTX manual, "Matrix fragments".
#include "worker.h"

namespace emulation {

// m16n8k32 and m16n8k16: codes, unsigned or signed as `Code` says, by signed ones. `g` is the row, or column, of a thread, `t` its
// place along the depth.
template <unsigned depth, class Code> static void multiply_codes(const u64 (&parts)[lanes]) {
    short a[16][depth], b[8][depth];
    for (unsigned lane = 0; lane < lanes; lane++) {
        const auto* part = reinterpret_cast<const Multiplication*>(parts[lane]);
        unsigned g = lane / 4, t = lane % 4;
        for (unsigned r = 0; r < depth / 8; r++)
            for (unsigned i = 0; i < 4; i++) a[g + r % 2 * 8][t * 4 + i + r / 2 * 16] = static_cast<Code>(part->a[r] >> (8 * i));
        for (unsigned r = 0; r < depth / 16; r++)
            for (unsigned i = 0; i < 4; i++) b[g][t * 4 + i + r * 16] = static_cast<signed char>(part->b[r] >> (8 * i));
    }
    for (unsigned lane = 0; lane < lanes; lane++) {
        int* sums = static_cast<int*>(reinterpret_cast<const Multiplication*>(parts[lane])->sums);
        for (unsigned i = 0; i < 4; i++) {
            const short *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
            int sum = 0;
            for (unsigned k = 0; k < depth; k++) sum += row[k] * column[k];
            sums[i] += sum;
        }
    }
}

static float number_of_half(u32 bits) { return static_cast<float>(__builtin_bit_cast(_Float16, static_cast<unsigned short>(bits))); }

// m16n8k16 of f16: exact products, their sum with the number before rounded once.
static void multiply_numbers(const u64 (&parts)[lanes]) {
    float a[16][16], b[8][16];
    for (unsigned lane = 0; lane < lanes; lane++) {
        const auto* part = reinterpret_cast<const Multiplication*>(parts[lane]);
        unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 2; i++) {
            for (unsigned r = 0; r < 4; r++) a[g + r % 2 * 8][t * 2 + i + r / 2 * 8] = number_of_half(part->a[r] >> (16 * i));
            for (unsigned r = 0; r < 2; r++) b[g][t * 2 + i + r * 8] = number_of_half(part->b[r] >> (16 * i));
        }
    }
    for (unsigned lane = 0; lane < lanes; lane++) {
        float* sums = static_cast<float*>(reinterpret_cast<const Multiplication*>(parts[lane])->sums);
        for (unsigned i = 0; i < 4; i++) {
            const float *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
            double sum = sums[i];
            for (unsigned k = 0; k < 16; k++) sum += static_cast<double>(row[k]) * column[k];
            sums[i] = static_cast<float>(sum);
        }
    }
}

void multiply(const u64 (&parts)[lanes]) {
    switch (reinterpret_cast<const Multiplication*>(parts[0])->kind) {
    case Multiplication::U8S8Depth32: return multiply_codes<32, u8>(parts);
    case Multiplication::S8S8Depth32: return multiply_codes<32, signed char>(parts);
    case Multiplication::U8S8Depth16: return multiply_codes<16, u8>(parts);
    case Multiplication::S8S8Depth16: return multiply_codes<16, signed char>(parts);
    case Multiplication::F16Depth16: return multiply_numbers(parts);
    }
}

} // namespace emulation
