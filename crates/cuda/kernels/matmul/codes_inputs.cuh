// Activations of codes.cu: what a step of weights is multiplied by.
//
// A matrix that a step of a model waits for has few steps, and each would wait for the L2 cache anew if it asked there for its activations.
// So they come as weights do, by copies that go on by themselves, stage by stage behind the weights of a ring; weights come ahead of the
// kernel's turn, activations from it on. Where blocks have no room for them they are read from memory: before the weights of a step are
// waited for, or as they are taken where there are several tiles of columns, and sums enough to take meanwhile.

// Columns of a row tile among the eight of an instruction.
#define FOLD_COLUMNS (8 / FOLD)
// Units that are taken in one go: of whole chunks, four or more.
#define STEP_CHUNKS (UNITS >= 4 ? 1 : 4 / UNITS)
#define STEP_UNITS (STEP_CHUNKS * UNITS)

// What scaling takes beside a sum: the scale and sums of codes; the scale and what minima are weighed by.
#define TAKES_SUMS (OFFSET > 0 || !HAS_MIN || IS_FOLDED)
#define TAKES_WEIGHED (HAS_MIN && !IS_FOLDED)
// A stage has codes of all units and columns, then what scaling takes of them, in the order in which they lie in memory: where pieces of a
// line went apart, copies of eight columns took so long that the first step came 2 us late.
#define SUMS_AT (STEP_UNITS * FOLD_COLUMNS * 32)
#define WEIGHED_AT (SUMS_AT + TAKES_SUMS * STEP_UNITS * FOLD_COLUMNS * 8)

static_assert(!IS_STAGED || (COLUMN_TILES == 1 && WEIGHED_AT + TAKES_WEIGHED * STEP_UNITS * FOLD_COLUMNS * 8 == INPUT_BYTES),
              "the ring is as the host reckons it");
static_assert(!TAKES_WEIGHED || SUB == 32, "minima are of blocks");

// What the sums of this thread's two columns need of a block of activations, beside its codes.
struct ColumnScales {
    float dx[2];
    // With minima: the scale times the sum of all codes.
    float weighed[2];
    // Sums of both halves' codes, in 16 bits each, where scales are folded.
    u32 halves[2];
    // Sums of codes, for each sub-block of the unit.
    int sums[2][SUBS_PER_UNIT];

    // Scale and weighed sum; scale and sums.
    DEVICE_MEMBER void put_weighed(int i, uint2 v) {
        dx[i] = __uint_as_float(v.x);
        weighed[i] = __uint_as_float(v.y);
    }
    DEVICE_MEMBER void put_sums(int i, uint2 v) {
        dx[i] = __uint_as_float(v.x);
        halves[i] = v.y;
        const int first = (int)(short)v.y, second = (int)v.y >> 16;
        sums[i][0] = SUB == 32 ? first + second : first;
        if (SUB == 16) sums[i][SUBS_PER_UNIT - 1] = second;
    }
};

// The activations of a launch, as quantize.cu leaves them.
struct Activations {
    const u8* codes;
    const uint2* scales;
    const float4* minima;
};

#if IS_STAGED

// This lane's part of bringing the first `count` columns of a tile, and of reading them: the columns of which it brings codes and scales,
// and the first blocks of both; and where those lie in a stage that it reads, by which a column past the end is the last one.
struct Inputs {
    Activations x;
    u32 count, code_column, code_block, scale_column, scale_block, operand_at, results_at[2];

    template <class FirstBlock> DEVICE_MEMBER Inputs(const Activations& x, u32 columns, FirstBlock first_block) : x(x) {
        const u32 lane = threadIdx.x % 32;
        count = columns < FOLD_COLUMNS ? columns : FOLD_COLUMNS;
        // Two lanes have a block of codes, which L2 gives as one.
        code_column = lane / 2 % FOLD_COLUMNS, scale_column = lane % FOLD_COLUMNS;
        code_block = first_block(code_column), scale_block = first_block(scale_column);
        const auto place = [&](u32 of) { return of < count ? of : count - 1; };
        operand_at = place(lane / 4 % FOLD_COLUMNS) * 32 + lane % 4 * 8;
#pragma unroll
        for (u32 i = 0; i < 2; i++) results_at[i] = place((lane % 4 * 2 + i) % FOLD_COLUMNS) * 8;
    }

    // Starts copies of `chunks` chunks from chunk `at` on.
    DEVICE_MEMBER void bring(u8* stage, u32 at, u32 chunks) const {
        const u32 lane = threadIdx.x % 32, units = chunks * UNITS;
        u8* const codes = stage + code_column * 32 + lane % 2 * 16;
        const u8* const from = x.codes + (u64)(code_block + at * UNITS * 8) * 32 + lane % 2 * 16;
#pragma unroll
        for (u32 i = 0; i < STEP_UNITS; i += 16 / FOLD_COLUMNS) {
            const u32 unit = i + lane / (2 * FOLD_COLUMNS);
            if (unit < STEP_UNITS && unit < units && code_column < count) copy_16(codes + unit * FOLD_COLUMNS * 32, from + unit * 8 * 32);
        }
        const u32 first = scale_block + at * UNITS * 8;
#pragma unroll
        for (u32 i = 0; i < STEP_UNITS; i += 32 / FOLD_COLUMNS) {
            const u32 unit = i + lane / FOLD_COLUMNS;
            if (unit >= STEP_UNITS || unit >= units || scale_column >= count) continue;
            u8* const scales = stage + (unit * FOLD_COLUMNS + scale_column) * 8;
            if (TAKES_SUMS) copy_8(scales + SUMS_AT, x.scales + (first + unit * 8));
            if (TAKES_WEIGHED) copy_8(scales + WEIGHED_AT, x.minima + (first + unit * 8));
        }
    }

};

// Those of a step, or from unit `first` of it on: they lie in a stage once that is waited for.
template <int CHUNKS> struct StepInputs {
    const Inputs& inputs;
    const u8* stage;
    u32 first;

    DEVICE_MEMBER StepInputs(const Inputs& inputs, u32, const u8* stage, u32 first) : inputs(inputs), stage(stage), first(first) {}

    DEVICE_MEMBER uint2 operand(int, int unit) const {
        return *(const uint2*)(stage + inputs.operand_at + (first + unit) * FOLD_COLUMNS * 32);
    }
    DEVICE_MEMBER ColumnScales columns(int, int unit) const {
        ColumnScales columns;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u8* scales = stage + inputs.results_at[i] + (first + unit) * FOLD_COLUMNS * 8;
            if (TAKES_WEIGHED) columns.put_weighed(i, *(const uint2*)(scales + WEIGHED_AT));
            if (TAKES_SUMS) columns.put_sums(i, *(const uint2*)(scales + SUMS_AT));
        }
        return columns;
    }
};

#else

// Where the blocks begin that this lane reads: of each run of eight columns that of the operand, and those of its two results. Fewer than
// 2^32 blocks; the blocks of eight rows lie together (quantize/blocks.cuh).
struct Inputs {
    Activations x;
    u32 operands[COLUMN_TILES], results[COLUMN_TILES][2];

    template <class FirstBlock> DEVICE_MEMBER Inputs(const Activations& x, u32, FirstBlock first_block) : x(x) {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++) {
            operands[c] = first_block(c * FOLD_COLUMNS + lane / 4 % FOLD_COLUMNS);
#pragma unroll
            for (u32 i = 0; i < 2; i++) results[c][i] = first_block(c * FOLD_COLUMNS + (lane % 4 * 2 + i) % FOLD_COLUMNS);
        }
    }
    DEVICE_MEMBER void bring(u8*, u32, u32) const {}
};

// Those of CHUNKS chunks from chunk `at` on. Of few columns they are read at once, before the weights are waited for.
template <int CHUNKS> struct StepInputs {
    static constexpr bool IS_AHEAD = COLUMN_TILES == 1 && (ROW_TILES == FOLD || CHUNKS * UNITS < 8);
    // Registers are few: scales come ahead where sums of codes do not stand beside them, or a step is short.
    static constexpr int SCALE_NUMBERS = 1 + (HAS_MIN || (OFFSET > 0 && TABLE == 0) ? SUMS_PER_UNIT : 0);
    static constexpr bool ARE_SCALES_AHEAD = IS_AHEAD && CHUNKS * UNITS * SCALE_NUMBERS <= 8;
    const u8* codes[COLUMN_TILES];
    const uint2* scales[COLUMN_TILES][2];
    const float4* minima[COLUMN_TILES][2];
    uint2 ahead[CHUNKS * UNITS];
    ColumnScales scales_ahead[CHUNKS * UNITS];

    // Blocks are found by constants from where the first one is.
    DEVICE_MEMBER StepInputs(const Inputs& inputs, u32 at, const u8*, u32) {
        const u32 first = at * UNITS * 8;
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++) {
            codes[c] = inputs.x.codes + (u64)(inputs.operands[c] + first) * 32 + threadIdx.x % 4 * 8;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                scales[c][i] = inputs.x.scales + (inputs.results[c][i] + first);
                minima[c][i] = inputs.x.minima + (inputs.results[c][i] + first);
            }
        }
#pragma unroll
        for (int unit = 0; unit < CHUNKS * UNITS; unit++) {
            if (IS_AHEAD) ahead[unit] = read(0, unit);
            if (ARE_SCALES_AHEAD) scales_ahead[unit] = read_scales(0, unit);
        }
    }
    DEVICE_MEMBER uint2 operand(int c, int unit) const { return IS_AHEAD ? ahead[unit] : read(c, unit); }
    DEVICE_MEMBER ColumnScales columns(int c, int unit) const {
        return ARE_SCALES_AHEAD ? scales_ahead[unit] : read_scales(c, unit);
    }

private:
    DEVICE_MEMBER uint2 read(int c, int unit) const { return __ldg((const uint2*)(codes[c] + unit * 8 * 32)); }
    DEVICE_MEMBER ColumnScales read_scales(int c, int unit) const {
        ColumnScales columns;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (TAKES_WEIGHED) columns.put_weighed(i, __ldg((const uint2*)(minima[c][i] + unit * 8)));
            if (TAKES_SUMS) columns.put_sums(i, __ldg(scales[c][i] + unit * 8));
        }
        return columns;
    }
};

#endif
