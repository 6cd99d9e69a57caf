// Turns the heads of each row from feature `first_feature` on by its angles (cosines first), or back; numerics.rs, `rotate`. One thread a
// pair.

KERNEL rotate(float* x, const float* angles, u32 rows, u32 heads, u32 head_dim, u32 first_feature, u32 pairs, u32 interleaved,
              u32 inverse) {
    begin_in_turn();
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (u64)rows * heads * pairs) return;
    u32 pair = (u32)(at % pairs);
    u64 head = at / pairs, row = head / heads;
    float cosine = angles[row * 2 * pairs + pair], sine = angles[row * 2 * pairs + pairs + pair];
    sine = inverse ? -sine : sine;
    x += head * head_dim + first_feature;
    float* first = x + (interleaved ? 2 * pair : pair);
    float* second = x + (interleaved ? 2 * pair + 1 : pair + pairs);
    float a = *first, b = *second;
    *first = fma(a, cosine, -(b * sine));
    *second = fma(b, cosine, a * sine);
}
