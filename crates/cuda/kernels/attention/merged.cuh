// The spans of a tile's rows, which the blocks of a cluster have (spans.cu), as one, by the arithmetic of merge.cu: so no bit tells who
// merged them. Block b of the cluster has the span that is b before the tile's last.
//
// A warp takes 32 features of a column, a lane each, and a lane knows of one span, too.

#define SPANS_MOST 8
#define UNITS (HEAD_DIM / 32)

// Where number `d` of a column's sums lies in a block: spread over the banks.
DEVICE u32 place_of_sum(u32 c, u32 d) { return c * HEAD_DIM + (d ^ (c / 2 % 4 * 8)); }

// SHARERS warps of each block have its weights.
template <u32 SHARERS> struct Merging {
    const Cut& cut;
    const Output& out;
    CodesOut coded;
    // In each block: sums, weights of each warp, and highest scores.
    u32 sums_at, totals_at, tops_at;

    // The sum of weights of a column in a block: of its warps, in order.
    DEVICE_MEMBER float weight_of(u32 c, u32 block) const {
        float4 four[SHARERS / 4];
#pragma unroll
        for (u32 i = 0; i < SHARERS / 4; i++) four[i] = four_of_block(totals_at + (c * SHARERS + i * 4) * 4, block);
        float weight = 0.0f;
#pragma unroll
        for (u32 i = 0; i < SHARERS / 4; i++) weight = weight + four[i].x + four[i].y + four[i].z + four[i].w;
        return weight;
    }

    // Features `unit * 32 ..` of column c. Nothing is asked for that is not used: who says that it has read would not wait for that.
    DEVICE_MEMBER void merge(u32 c, u32 unit, u32 row, u32 head, Seen seen, u32 last) const {
        const u32 lane = threadIdx.x % 32, d = unit * 32 + lane, count = cut.count(seen);
        // The block of the row's first span.
        const u32 from = last - cut.first(seen);
        float values[SPANS_MOST];
#pragma unroll
        for (u32 i = 0; i < SPANS_MOST; i++)
            if (i < count) values[i] = number_of_block(sums_at + place_of_sum(c, d) * 4, from - i);
        float top = minus_infinity(), weight = 0.0f;
        if (lane < count) {
            top = number_of_block(tops_at + c * 4, from - lane);
            weight = weight_of(c, from - lane);
        }
        float result;
        if (count == 1) {
            const float factor = __shfl_sync(0xffffffffu, lane == 0 ? out.factor(head, top, weight) : 0.0f, 0);
            result = values[0] * factor + 0.0f;
        } else {
            const float sink = out.sinks ? out.sinks[head] * LOG2_E : minus_infinity();
            float highest = top;
#pragma unroll
            for (int width = SPANS_MOST / 2; width > 0; width /= 2)
                highest = larger(highest, __shfl_xor_sync(0xffffffffu, highest, width));
            highest = larger(sink, __shfl_sync(0xffffffffu, highest, 0));
            const float own_factor = factor_of(top, highest), own = fma(weight, own_factor, 0.0f);
            float total = out.sinks ? exp2_near(sink - highest + WEIGHT_BITS) : 0.0f, sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < SPANS_MOST; i++) {
                const float factor = __shfl_sync(0xffffffffu, own_factor, i), added = __shfl_sync(0xffffffffu, own, i);
                if (i >= count) continue;
                total = total + added;
                sum = sum + fma(values[i], factor, 0.0f);
            }
            result = sum * (total == 0.0f ? 0.0f : 1.0f / total);
        }
        out.y[((u64)row * out.heads + head) * HEAD_DIM + d] = result;
        if (coded.codes) put_codes(quantized(result), lane, codes_place(row, head * UNITS + unit, out.heads * UNITS), coded);
    }
};
