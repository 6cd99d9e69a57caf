// Attention, the third: values, weighed. numerics.rs makes of each feature one chain over all tokens, so this is a race against the
// latency of one fused multiply-add a token. A block takes FEATURES features, each thread one of them and COLUMNS_EACH columns.
// Beside these work three warps, so that the chains wait for nothing: two bring values and weights into a ring of shared memory by
// copies that go on by themselves, the third turns values into rows of f32 for each feature, four tokens a read.

#define STAGE (STAGE_PAGES * PAGE)
#define COLUMN_THREADS (COLUMNS / COLUMNS_EACH)
#define CONSUMERS (FEATURES * COLUMN_THREADS)
// Threads of a warp go by features, then by columns: reads of both are of few places.
#define WARP_COLUMNS (COLUMN_THREADS < 4 ? COLUMN_THREADS : 4)
#define WARP_FEATURES (32 / WARP_COLUMNS)

#if FORMAT == 0
typedef float Number;
#elif FORMAT == 1
typedef u16 Number;
#else
typedef signed char Number;
#endif

static_assert(THREADS == CONSUMERS + 96 && CONSUMERS % 32 == 0, "threads for all chains, and three warps that serve them");
static_assert(FEATURES % WARP_FEATURES == 0 && FEATURES % 8 == 0 && FEATURES <= 32, "warps share out the features");

// What is brought at a time.
struct Stage {
    Number values[STAGE][FEATURES];
    // Padded, so that columns are in different banks.
    float weights[COLUMNS][STAGE + 4];
    float2 pages[COLUMNS][STAGE_PAGES]; // factor, sum
#if FORMAT == 2
    float scales[STAGE];
#endif
};

// Values of a stage as f32, feature by feature.
struct Turned {
    float values[FEATURES][STAGE + 4];
};

// Where a column's weights begin, and which pages it sees.
struct Column {
    u64 at;
    u32 first_page;
    u32 pages;
};

struct Shared {
    Stage stages[STAGES];
    Turned turned[2];
    Column columns[COLUMNS];
};

static_assert(sizeof(Stage) % 16 == 0 && sizeof(Shared) == SHARED_BYTES && STAGES >= 3, "the ring is as the host reckons it");

// What brings values: the tile's first row stands for all where pages are plain. Positions past `last` stand for it.
struct ValuesBringer {
    const Step& step;
    const u8* pages;
    u32 row;
    u32 last;
    u32 kv_heads;
    u32 ring;
    // Of the stage to be brought next, looked up while this one is on its way.
    u32 ahead[STAGE_PAGES];

    DEVICE_MEMBER void look_up(u32 page) {
#pragma unroll
        for (int p = 0; p < STAGE_PAGES; p++) {
            const u32 position = (page + p) * PAGE;
            ahead[p] = step.page(row, position < last ? position : last, ring);
        }
    }
    // 16 bytes at a time where rows of values are whole 16 bytes.
    DEVICE_MEMBER void copy(Stage& out, u32 token, u32 page, u32 slot) const {
        const u32 feature = blockIdx.y * FEATURES;
        const u8* head = pages + ((u64)page * kv_heads + blockIdx.z) * HEAD_BYTES;
        const u8* in = head + (slot * HEAD_DIM + feature) * sizeof(Number);
        if constexpr (HEAD_DIM % FEATURES == 0 && FEATURES * sizeof(Number) % 16 == 0) {
#pragma unroll
            for (int i = 0; i < FEATURES * sizeof(Number); i += 16) copy_16((u8*)out.values[token] + i, in + i);
        } else {
#pragma unroll
            for (int i = 0; i < FEATURES; i++)
                if (feature + i < HEAD_DIM) out.values[token][i] = ((const Number*)in)[i];
        }
#if FORMAT == 2
        copy_4(&out.scales[token], head + NUMBERS + (slot * BLOCKS + feature / 32) * 4);
#endif
    }
    // Brings the pages from `page` on.
    DEVICE_MEMBER void bring(Stage& out, u32 page) {
        const u32 lane = threadIdx.x % 32, first = page * PAGE;
        if (step.is_plain(row, first + STAGE)) {
#pragma unroll
            for (int t = 0; t < STAGE; t += 32) copy(out, t + lane, ahead[t / PAGE], (t + lane) % PAGE);
        } else {
            for (u32 token = lane; token < STAGE; token += 32) {
                const u32 place = step.place(row, first + token < last ? first + token : last);
                copy(out, token, step.page(row, place, ring), place % PAGE);
            }
        }
        look_up(page + STAGE_PAGES);
    }
};

// Copies of a stage's weights by one thread of a warp.
#define WEIGHT_COPIES (COLUMNS * STAGE / 128)

// What brings weights: where each copy of this thread comes from.
struct WeightsBringer {
    const float* from[WEIGHT_COPIES];
    u32 first_page[WEIGHT_COPIES];
    u32 end_page[WEIGHT_COPIES];
    const float2* pages;
    u32 pages_first;
    u32 pages_end;

    DEVICE_MEMBER void start(const Column* columns, u32 count, const float* weights, const float2* all_pages) {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < WEIGHT_COPIES; i++) {
            const u32 c = (i * 32 + lane) / (STAGE / 4), token = (i * 32 + lane) % (STAGE / 4) * 4;
            const Column column = columns[c < count ? c : 0];
            // Counted from where page 0 would be.
            from[i] = weights + ((long long)column.at - column.first_page) * PAGE + token;
            // The pages of the stage's first for which this thread's copy is within what the column sees.
            first_page[i] = column.first_page;
            end_page[i] = c < count ? column.first_page + column.pages : 0;
        }
        const u32 c = lane / STAGE_PAGES;
        const Column column = columns[c < count ? c : 0];
        pages = all_pages + ((long long)column.at - column.first_page) + lane % STAGE_PAGES;
        pages_first = column.first_page;
        pages_end = c < count ? column.first_page + column.pages : 0;
    }
    DEVICE_MEMBER void bring(Stage& out, u32 page) const {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < WEIGHT_COPIES; i++) {
            const u32 c = (i * 32 + lane) / (STAGE / 4), token = (i * 32 + lane) % (STAGE / 4) * 4, here = page + token / PAGE;
            if (here >= first_page[i] && here < end_page[i]) copy_16(&out.weights[c][token], from[i] + (u64)page * PAGE);
        }
        const u32 here = page + lane % STAGE_PAGES;
        if (here >= pages_first && here < pages_end) copy_8(&out.pages[lane / STAGE_PAGES][lane % STAGE_PAGES], pages + page);
    }
};

// One warp: each thread a feature, four tokens at a time.
DEVICE void turn(Turned& out, const Stage& stage) {
    const u32 lane = threadIdx.x % 32, feature = lane % FEATURES;
#pragma unroll 8
    for (u32 token = lane / FEATURES * 4; token < STAGE; token += 32 / FEATURES * 4) {
        float four[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
#if FORMAT == 0
            four[i] = stage.values[token + i][feature];
#elif FORMAT == 1
            four[i] = half_to_float(stage.values[token + i][feature]);
#else
            four[i] = stage.scales[token + i] * (float)stage.values[token + i][feature];
#endif
        }
        *(float4*)&out.values[feature][token] = make_float4(four[0], four[1], four[2], four[3]);
    }
}

// The sums of this thread's columns.
struct Sums {
    float sums[COLUMNS_EACH];
    float totals[COLUMNS_EACH];

    DEVICE_MEMBER void begin_page(int c, float2 page) {
        sums[c] = sums[c] * page.x;
        totals[c] = fma(totals[c], page.x, page.y);
    }
    // A page that all columns see whole.
    DEVICE_MEMBER void add_page(const Stage& stage, const float* values, u32 slot, u32 column) {
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; c++) begin_page(c, stage.pages[column + c][slot]);
#pragma unroll
        for (int t = 0; t < PAGE; t += 4) {
            const float4 v = *(const float4*)(values + t);
            float4 w[COLUMNS_EACH];
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) w[c] = *(const float4*)&stage.weights[column + c][slot * PAGE + t];
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) sums[c] = fma(w[c].x, v.x, sums[c]);
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) sums[c] = fma(w[c].y, v.y, sums[c]);
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) sums[c] = fma(w[c].z, v.z, sums[c]);
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) sums[c] = fma(w[c].w, v.w, sums[c]);
        }
    }
    // Of a page, the positions that are seen: others may hold anything.
    DEVICE_MEMBER void add_seen(const Stage& stage, const float* values, u32 slot, u32 column, u32 page,
                                const Seen (&seen)[COLUMNS_EACH]) {
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; c++) {
            if (page < seen[c].first_page() || page * PAGE >= seen[c].end) continue;
            begin_page(c, stage.pages[column + c][slot]);
            for (u32 t = seen[c].from(page); t < seen[c].to(page); t++)
                sums[c] = fma(stage.weights[column + c][slot * PAGE + t], values[t], sums[c]);
        }
    }
};

// weights and pages as weights.cu leaves them; y (rows, heads · HEAD_DIM).
KERNEL __launch_bounds__(THREADS) values(const u8* value_pages, const float* weights, const float2* pages, const float* sinks, float* y,
                                         const u32* rows, const u32* lists, u32 first, u32 count, u32 heads, u32 kv_heads, u32 ring,
                                         u32 window, u32 stride) {
    begin_in_turn();
    DYNAMIC_SHARED(uint4, dynamic);
    Shared& shared = *(Shared*)dynamic;
    const Step step = {rows, lists};
    const Tile tile = tile_of(step, first, count, heads, kv_heads);
    if (tile.columns == 0) return;
    for (u32 c = threadIdx.x; c < tile.columns; c += THREADS) {
        const Seen seen = seen_by(step, tile.row_of(c), window);
        const u64 at = (((u64)tile.row_of(c) - first) * heads + tile.head_of(c)) * stride;
        shared.columns[c] = {at, seen.first_page(), seen.pages()};
    }
    // What the tile's rows see together, and what each of them sees.
    const Seen oldest = seen_by(step, tile.row, window), newest = seen_by(step, tile.row_of(tile.columns - 1), window);
    const u32 first_page = oldest.first_page(), end_page = (newest.end + PAGE - 1) / PAGE;
    const u32 stages = (end_page - first_page + STAGE_PAGES - 1) / STAGE_PAGES;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    __syncthreads();

    // Before barrier i, stages up to i have come. Behind it, stage i is turned, stage i - 1 is summed up, and the place of stage i - 2
    // is free.
    auto serve = [&](auto& bringer) {
#pragma unroll 1
        for (u32 i = 0; i < stages + STAGES - 1; i++) {
            if (i >= STAGES - 2) {
                wait_for_copies<STAGES - 3>();
                __syncthreads();
            }
            if (i < stages) bringer.bring(shared.stages[i % STAGES], first_page + i * STAGE_PAGES);
            end_of_copies();
        }
    };
    if (warp == CONSUMERS / 32) {
        ValuesBringer bringer = {step, value_pages, tile.row, newest.end - 1, kv_heads, ring};
        bringer.look_up(first_page);
        serve(bringer);
        return;
    }
    if (warp == CONSUMERS / 32 + 1) {
        WeightsBringer bringer;
        bringer.start(shared.columns, tile.columns, weights, pages);
        serve(bringer);
        return;
    }
    if (warp > CONSUMERS / 32 + 1) {
#pragma unroll 1
        for (u32 i = 0; i <= stages; i++) {
            __syncthreads();
            if (i < stages) turn(shared.turned[i % 2], shared.stages[i % STAGES]);
        }
        return;
    }

    const u32 feature = warp % (FEATURES / WARP_FEATURES) * WARP_FEATURES + lane % WARP_FEATURES;
    const u32 column = (warp / (FEATURES / WARP_FEATURES) * WARP_COLUMNS + lane / WARP_FEATURES) * COLUMNS_EACH;
    Seen seen[COLUMNS_EACH];
    Sums sums = {};
#pragma unroll
    for (int c = 0; c < COLUMNS_EACH; c++) {
        seen[c] = seen_by(step, tile.row_of(column + c < tile.columns ? column + c : 0), window);
        sums.totals[c] = sinks ? 1.0f : 0.0f;
    }
    __syncthreads();
#pragma unroll 1
    for (u32 i = 0; i < stages; i++) {
        __syncthreads();
        const Stage& stage = shared.stages[i % STAGES];
        const float* values = shared.turned[i % 2].values[feature];
        const u32 page = first_page + i * STAGE_PAGES;
        if (page * PAGE >= newest.begin && (page + STAGE_PAGES) * PAGE <= oldest.end) {
#pragma unroll
            for (int p = 0; p < STAGE_PAGES; p++) sums.add_page(stage, values + p * PAGE, p, column);
        } else {
#pragma unroll 1
            for (int p = 0; p < STAGE_PAGES; p++) sums.add_seen(stage, values + p * PAGE, p, column, page + p, seen);
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS_EACH; c++) {
        const u32 d = blockIdx.y * FEATURES + feature;
        if (column + c >= tile.columns || d >= HEAD_DIM) continue;
        const u64 at = ((u64)tile.row_of(column + c) * heads + tile.head_of(column + c)) * HEAD_DIM + d;
        y[at] = sums.totals[c] == 0.0f ? 0.0f : sums.sums[c] / sums.totals[c];
    }
}
