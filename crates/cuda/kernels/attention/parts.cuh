// Attention in parts: a row's tokens are cut into spans at fixed positions; what a span gives is a highest score, a sum of weights
// relative to it, and weighed values. merge.cu adds a row's spans in one order. So its bits depend on no other row.
//
// Early spans are short, so that a short sequence keeps many processors busy; later ones are long, for each has its parts to be written
// and read. Where a window lets few tokens be seen, all are short.

// Where spans begin.
struct Cut {
    u32 short_end;

    DEVICE_MEMBER Cut(u32 window) : short_end(window > 0 && window <= SHORT_WINDOW ? 0x80000000u : SHORT_END) {}
    DEVICE_MEMBER u32 span_of(u32 position) const {
        return position < short_end ? position / SHORT_SPAN : short_end / SHORT_SPAN + (position - short_end) / LONG_SPAN;
    }
    DEVICE_MEMBER u32 begin_of(u32 span) const {
        const u32 shorts = short_end / SHORT_SPAN;
        return span < shorts ? span * SHORT_SPAN : short_end + (span - shorts) * LONG_SPAN;
    }
    // The spans that a row's tokens are in.
    DEVICE_MEMBER u32 first(const Seen& seen) const { return span_of(seen.begin); }
    DEVICE_MEMBER u32 count(const Seen& seen) const { return span_of(seen.end - 1) - span_of(seen.begin) + 1; }
};
static_assert(SHORT_END % SHORT_SPAN == 0 && LONG_SPAN <= 32 * PAGE && SHORT_SPAN % (2 * PAGE) == 0, "spans of whole pairs of pages");

// A capped score as a power of two; of what is not seen, what it is.
DEVICE float capped(float score, float cap) {
    return score == minus_infinity() ? score : canonical_soft_cap(score, cap) * LOG2_E;
}
// What a block of a kernel of parts writes: of a query head's row, with one span the result, with more the parts.
struct Output {
    float* parts;  // [rows][heads][stride][HEAD_DIM]
    float2* stats; // [rows][heads][stride] of highest score and sum of weights
    const float* sinks;
    float* y;
    u32 first, heads, stride;

    // `index` counts the row's own spans.
    DEVICE_MEMBER u64 place(u32 row, u32 head, u32 index) const { return ((u64)(row - first) * heads + head) * stride + index; }
    // The factor on a row's sums, of whose one span they are.
    DEVICE_MEMBER float factor(u32 head, float highest, float total) const {
        float before = 1.0f;
        if (sinks) {
            const float sink = sinks[head] * LOG2_E, most = larger(highest, sink);
            before = factor_of(highest, most);
            total = fma(total, before, exp2_near(sink - most + WEIGHT_BITS));
        }
        return total == 0.0f ? 0.0f : before / total;
    }
};
