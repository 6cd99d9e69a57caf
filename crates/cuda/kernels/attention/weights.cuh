// Weights of attention where they are not in the canonical order: relative to the highest score so far.
//
// Scores are powers of two: natural ones times log2(e). Weights are 2^14 times what they mean, so that they are f16 with little lost.

#define LOG2_E 1.44269504088896340736f
#define WEIGHT_BITS 14.0f

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); } // NaN never becomes it

// What is subtracted from scores: none are higher; where there is none, anything.
DEVICE float base_of(float highest) { return highest == minus_infinity() ? 0.0f : highest - WEIGHT_BITS; }
// The factor on sums relative to a lower score.
DEVICE float factor_of(float before, float highest) { return before == minus_infinity() ? 0.0f : exp2_near(before - highest); }
