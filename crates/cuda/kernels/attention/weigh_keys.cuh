// Scores of a page's keys become weights, where keys are the rows of a product and queries its columns: a thread has keys `own` and
// `own + 8` of a warp's sixteen, and two neighbouring columns of each eight.

// The highest of a warp's scores of a column, of which a thread has two.
DEVICE float highest_of_keys(float score, float other) {
    float top = larger(larger(minus_infinity(), score), other);
#pragma unroll
    for (int width = 4; width < 32; width *= 2) top = larger(top, __shfl_xor_sync(0xffffffffu, top, width));
    return top;
}

// Scales a thread's two scores of a column, takes out those of slots that are not seen, and gives the highest of the warp's.
DEVICE float highest_seen(float& score, float& other, float up, u32 own, uint2 slots) {
    score = own >= slots.x && own < slots.y ? score * up : minus_infinity();
    other = own + 8 >= slots.x && own + 8 < slots.y ? other * up : minus_infinity();
    return highest_of_keys(score, other);
}

// The scores of two columns to f16 weights below their bases, as pairs of neighbours, which are added to the columns' totals as they are
// multiplied; `scores` are those of a thread, two of a key.
DEVICE void weigh_pairs(u32 (&halves)[2], const float* scores, const float (&base)[2], float* totals) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        halves[h] = pair_of_halves(exp2_near(scores[h * 2] - base[0]), exp2_near(scores[h * 2 + 1] - base[1]));
        totals[0] = totals[0] + half_to_float(halves[h] & 0xffffu);
        totals[1] = totals[1] + half_to_float(halves[h] >> 16);
    }
}
