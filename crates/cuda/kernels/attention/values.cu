// Attention, the third: values, weighed. numerics.rs makes of each feature one chain over all tokens, so this is a race against the
// latency of one fused multiply-add a token: a block takes 16 features, each thread a feature and one or two columns, and a
// warp of its own brings values and weights into a ring of shared memory, so that the chains never wait for it.

#define COLUMNS_EACH (COLUMNS > 8 ? COLUMNS / 8 : 1)
#define CONSUMERS (FEATURES * COLUMNS / COLUMNS_EACH)
#define STAGE (STAGE_PAGES * PAGE)
// Tokens whose values and weights are in registers.
#define PIECE 16
#define PIECES (STAGE / PIECE)

#if FORMAT == 0
typedef float Number;
#elif FORMAT == 1
typedef u16 Number;
#else
typedef signed char Number;
#endif

static_assert(THREADS == CONSUMERS + 32, "a thread for each feature and its columns, and a warp that brings");

struct Stage {
    Number values[STAGE][FEATURES];
    // Padded, so that two columns are in different banks.
    float weights[COLUMNS][STAGE + 4];
    float2 pages[COLUMNS][STAGE_PAGES]; // factor, sum
#if FORMAT == 2
    float scales[STAGE];
#endif
};

static_assert(sizeof(Stage) == STAGE_BYTES && STAGES >= 3, "the ring is as the host reckons it");

struct Piece {
    float values[PIECE];
    float weights[COLUMNS_EACH][PIECE];

    DEVICE_MEMBER void load(const Stage& stage, u32 token, u32 feature, u32 column) {
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
#if FORMAT == 0
            values[i] = stage.values[token + i][feature];
#elif FORMAT == 1
            values[i] = half_to_float(stage.values[token + i][feature]);
#else
            values[i] = stage.scales[token + i] * (float)stage.values[token + i][feature];
#endif
        }
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; c++)
#pragma unroll
            for (int i = 0; i < PIECE; i += 4) {
                const float4 w = *(const float4*)&stage.weights[column + c][token + i];
                weights[c][i] = w.x; weights[c][i + 1] = w.y; weights[c][i + 2] = w.z; weights[c][i + 3] = w.w;
            }
    }
};

// Where a column's weights begin, and which pages it sees.
struct Column {
    u64 at;
    u32 first_page;
    u32 pages;
};

// Brings the pages from `page` on: 16 bytes at a time where rows of values are whole 16 bytes. Positions past `last` stand for it.
DEVICE void bring(Stage& out, const Step& step, u32 row, u32 page, u32 last, const Column* columns, u32 count, const u8* value_pages,
                  const float* weights, const float2* pages, u32 kv_heads, u32 ring) {
    const u32 lane = threadIdx.x % 32, feature = blockIdx.y * FEATURES;
#pragma unroll
    for (int t = 0; t < STAGE / 32; t++) {
        const u32 token = t * 32 + lane, position = page * PAGE + token;
        const u32 place = step.place(row, position < last ? position : last);
        const u8* head = value_pages + ((u64)step.page(row, place, ring) * kv_heads + blockIdx.z) * HEAD_BYTES;
        const u8* in = head + ((place % PAGE) * HEAD_DIM + feature) * sizeof(Number);
        if constexpr (HEAD_DIM % FEATURES == 0) {
#pragma unroll
            for (int i = 0; i < FEATURES * sizeof(Number); i += 16) copy_16((u8*)out.values[token] + i, in + i);
        } else {
#pragma unroll
            for (int i = 0; i < FEATURES; i++)
                if (feature + i < HEAD_DIM) out.values[token][i] = ((const Number*)in)[i];
        }
#if FORMAT == 2
        copy_4(&out.scales[token], head + NUMBERS + ((place % PAGE) * BLOCKS + feature / 32) * 4);
#endif
    }
#pragma unroll
    for (int i = 0; i < COLUMNS * STAGE / 4; i += 32) {
        const u32 c = (i + lane) / (STAGE / 4), token = (i + lane) % (STAGE / 4) * 4;
        if (c >= count) break;
        const u32 index = page + token / PAGE - columns[c].first_page;
        if (index < columns[c].pages) copy_16(&out.weights[c][token], weights + (columns[c].at + index) * PAGE + token % PAGE);
    }
    const u32 c = lane / STAGE_PAGES, index = page + lane % STAGE_PAGES - columns[c % COLUMNS].first_page;
    if (c < count && index < columns[c].pages) copy_8(&out.pages[c][lane % STAGE_PAGES], pages + columns[c].at + index);
}

// The sums of this thread's columns.
struct Sums {
    float sums[COLUMNS_EACH];
    float totals[COLUMNS_EACH];

    DEVICE_MEMBER void begin_page(const Stage& stage, u32 page, u32 slot, u32 column, const Seen (&seen)[COLUMNS_EACH]) {
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; c++) {
            if (page < seen[c].first_page() || page * PAGE >= seen[c].end) continue;
            const float2 known = stage.pages[column + c][slot];
            sums[c] = sums[c] * known.x;
            totals[c] = fma(totals[c], known.x, known.y);
        }
    }
    DEVICE_MEMBER void add(const Piece& piece) {
#pragma unroll
        for (int i = 0; i < PIECE; i++)
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++) sums[c] = fma(piece.weights[c][i], piece.values[i], sums[c]);
    }
    // Of positions `first ..`, those that are seen: others may hold anything.
    DEVICE_MEMBER void add_seen(const Piece& piece, u32 first, const Seen (&seen)[COLUMNS_EACH]) {
#pragma unroll
        for (int i = 0; i < PIECE; i++)
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; c++)
                if (first + i >= seen[c].begin && first + i < seen[c].end)
                    sums[c] = fma(piece.weights[c][i], piece.values[i], sums[c]);
    }
};

// weights and pages as weights.cu leaves them; y (rows, heads · HEAD_DIM).
KERNEL __launch_bounds__(THREADS) values(const u8* value_pages, const float* weights, const float2* pages, const float* sinks, float* y,
                                         const u32* rows, const u32* lists, u32 first, u32 count, u32 heads, u32 kv_heads, u32 ring,
                                         u32 window, u32 stride) {
    __shared__ __align__(16) Stage slots[STAGES];
    __shared__ Column columns[COLUMNS];
    const Step step = {rows, lists};
    const Tile tile = tile_of(step, first, count, heads, kv_heads);
    if (tile.columns == 0) return;
    for (u32 c = threadIdx.x; c < tile.columns; c += THREADS) {
        const Seen seen = seen_by(step, tile.row_of(c), window);
        const u64 at = (((u64)tile.row_of(c) - first) * heads + tile.head_of(c)) * stride;
        columns[c] = {at, seen.first_page(), seen.pages()};
    }
    // What the tile's rows see together, and what each of them sees.
    const Seen oldest = seen_by(step, tile.row, window), newest = seen_by(step, tile.row_of(tile.columns - 1), window);
    const u32 first_page = oldest.first_page(), end_page = (newest.end + PAGE - 1) / PAGE;
    const u32 stages = (end_page - first_page + STAGE_PAGES - 1) / STAGE_PAGES;
    __syncthreads();

    if (threadIdx.x >= CONSUMERS) {
        for (u32 i = 0; i < stages + STAGES - 1; i++) {
            if (i >= STAGES - 1) {
                // Before barrier n, stages n and n + 1 have come; behind it, the slot of stage n - 1 is free.
                wait_for_copies<STAGES - 3>();
                __syncthreads();
            }
            if (i < stages)
                bring(slots[i % STAGES], step, tile.row, first_page + i * STAGE_PAGES, newest.end - 1, columns, tile.columns,
                      value_pages, weights, pages, kv_heads, ring);
            end_of_copies();
        }
        return;
    }

    const u32 feature = threadIdx.x % FEATURES, column = threadIdx.x / FEATURES * COLUMNS_EACH;
    Seen seen[COLUMNS_EACH];
    Sums now = {};
#pragma unroll
    for (int c = 0; c < COLUMNS_EACH; c++) {
        seen[c] = seen_by(step, tile.row_of(column + c < tile.columns ? column + c : 0), window);
        now.totals[c] = sinks ? 1.0f : 0.0f;
    }
    Piece next;
    for (u32 stage = 0; stage < stages; stage++) {
        __syncthreads();
        const Stage& here = slots[stage % STAGES];
        if (stage == 0) next.load(here, 0, feature, column);
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            const Piece piece = next;
            // Behind the last stage this reads what nobody uses.
            if (p + 1 < PIECES) next.load(here, (p + 1) * PIECE, feature, column);
            else next.load(slots[(stage + 1) % STAGES], 0, feature, column);
            const u32 page = first_page + stage * STAGE_PAGES + p * PIECE / PAGE, position = page * PAGE + p * PIECE % PAGE;
            if (page >= end_page) break;
            if (p * PIECE % PAGE == 0) now.begin_page(here, page, p * PIECE / PAGE, column, seen);
            if (position >= newest.begin && position + PIECE <= oldest.end) now.add(piece);
            else now.add_seen(piece, position, seen);
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS_EACH; c++) {
        const u32 d = blockIdx.y * FEATURES + feature;
        if (column + c >= tile.columns || d >= HEAD_DIM) continue;
        const u64 at = ((u64)tile.row_of(column + c) * heads + tile.head_of(column + c)) * HEAD_DIM + d;
        y[at] = now.totals[c] == 0.0f ? 0.0f : now.sums[c] / now.totals[c];
    }
}
