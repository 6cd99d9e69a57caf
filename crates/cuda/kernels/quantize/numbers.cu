// Codes of activations (blocks.cuh) as f16 numbers, in the order of the columns that they become: what matmul/many.cu multiplies.
//
// Numbers lie as halves.cu leaves its own, [slices][depth / 64][runs of columns][16][64]; each unit's scales, and for weights with minima
// scales times sums (or the sums of both halves), of a run of columns as a thread of the product wants them: 4 t + 2 g + e is column
// 8 g + 2 t + e.

static_assert(COLUMN_RUN == 16, "a thread has four columns of a run");

// Four codes' even or odd ones as f16.
DEVICE u32 pair_of_codes(u32 codes, u32 odd) {
    const u32 biased = __byte_perm(codes ^ 0x80808080u, 0x64646464u, odd ? 0x4341 : 0x4240);
    // 1024 + 128 + code, less as much.
    return add_halves(biased, 0xe480e480u);
}

// Eight threads have a column, 16 bytes of each block of 64 features. `out_minima` are (scale * sum) of units, `out_halves` the
// sums of each half of one.
// Columns are rows of codes, or what `order` names for each of `segments`, a row for `places` of them.
KERNEL numbers(const u8* codes, const uint2* scales, const float4* minima, u8* out, float* out_scales, float* out_minima, float* out_halves,
               const u32* starts, const u32* order, u32 columns, u32 segments, u32 row_blocks, u32 slices, u32 depth, u32 runs,
               u32 places) {
    after_earlier_work();
    const u32 column = blockIdx.x * (THREADS / 8) + threadIdx.x / 8, part = threadIdx.x % 8;
    u32 row = column;
    if (starts) {
        // The segment whose columns begin last before this one.
        u32 low = 0, high = segments;
        while (high - low > 1) {
            const u32 middle = (low + high) / 2;
            if (first_row(starts, middle) <= column) low = middle;
            else high = middle;
        }
        const u32 own = column - first_row(starts, low);
        if (column < first_row(starts, low) || own >= starts[low + 1] - starts[low]) return;
        row = order[starts[low] + own] / places;
    } else if (column >= columns) {
        return;
    }
    const u32 blocks = (depth + 63) / 64, unit = part / 4, half = part / 2 % 2, odd = part % 2;
    for (u32 b = blockIdx.y; b < slices * blocks; b += gridDim.y) {
        const u32 block = b / blocks * (depth / 32) + b % blocks * 2 + unit;
        const bool is_there = b % blocks * 2 + unit < depth / 32;
        const u64 at = (row / 8 * (u64)row_blocks + block) * 8 + row % 8;
        u32 pairs[4] = {};
#pragma unroll
        for (int t = 0; t < 4; t++)
            if (is_there) pairs[t] = pair_of_codes(*(const u32*)(codes + at * 32 + t * 8 + half * 4), odd);
        const u64 run = (u64)b * runs + column / COLUMN_RUN;
        const u32 own = column % COLUMN_RUN;
        u8* const to_numbers = out + run * (COLUMN_RUN * 128) + own * 128 + (part ^ (own % 8)) * 16;
        *(uint4*)to_numbers = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        if (part % 4 != 0) continue;
        float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (is_there) four = minima[at];
        const u32 sums = is_there ? scales[at].y : 0;
        const u64 to = run * 2 + unit;
        const u32 place = own % 8 / 2 * 4 + own / 8 * 2 + own % 2;
        out_scales[to * COLUMN_RUN + place] = four.x;
        out_minima[to * COLUMN_RUN + place] = four.y;
        out_halves[to * 2 * COLUMN_RUN + place] = (float)(short)sums;
        out_halves[to * 2 * COLUMN_RUN + COLUMN_RUN + place] = (float)((int)sums >> 16);
    }
}
