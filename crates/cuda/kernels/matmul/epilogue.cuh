// What is done to a product's results where they were summed: codes of them (quantize.cu), or of a gate of two matrices' (elementwise.cu),
// by the same operations.
//
// A block of codes has 32 rows of a column. Where a block of the grid has fewer, or another one has what a number is gated with, they are a
// cluster: of gate's blocks, and then as many of up's. They read each other's results from shared memory.

// Where codes of the results go, if they shall; and what is gated, by which gate (gated.cuh), if they are two matrices'.
struct Epilogue {
    CodesOut codes;
    float* gated;
    u32 kind;
    float limit;
};

// Results of a block: `at` is that of row 0 and column 0, rows go by runs of `height`, which lie `run` apart, and are `stride` long.
struct Results {
    const float* at;
    u32 height, run, stride;

    DEVICE_MEMBER const float* of(u32 row, u32 column) const { return at + row / height * run + row % height * stride + column; }
};

// How many blocks of so many rows, a power of two, have whole blocks of codes together: of 16 two.
DEVICE u32 sharing_of(u32 rows) { return rows < 32 ? 2 : 1; }

// The blocks that meet: `rank` is this one's, the first `sharing` of them are the first matrix's, with `rows` rows each.
struct Company {
    u32 rank, sharing, matrices, rows;

    DEVICE_MEMBER Company(u32 rows, bool is_pair) : rank(0), sharing(sharing_of(rows)), matrices(1 + is_pair), rows(rows) {
#if HAS_CLUSTERS
        if (count() > 1) rank = block_of_cluster();
#endif
    }
    DEVICE_MEMBER u32 count() const { return sharing * matrices; }
    // Waits until all their results are there.
    DEVICE_MEMBER void meet() const {
        say();
        wait();
    }
    // The same in two halves, where there are several.
    DEVICE_MEMBER void say() const {
#if HAS_CLUSTERS
        if (count() > 1) arrive_with_shared();
#endif
    }
    DEVICE_MEMBER void wait() const {
#if HAS_CLUSTERS
        if (count() > 1) return cluster_arrived();
#endif
        __syncthreads();
    }
    // A result of a matrix, of row `row` of all of its blocks here.
    DEVICE_MEMBER float result(const Results& results, u32 matrix, u32 row, u32 column) const {
        const u32 block = sharing > 1 ? row / 16 : 0;
        const float* at = results.of(row - block * 16, column);
#if HAS_CLUSTERS
        if (count() > 1) return number_of_block(shared_address(at), matrix * sharing + block);
#endif
        return *at;
    }
};

// Once all have met. `own` is the first row of this block, of `rows` of a slice of a row of results, which has `slices` of them. A warp
// takes a block of codes at a time.
template <int WIDTH>
DEVICE void finish(const Epilogue& epilogue, const Company& company, const Results& results, const Columns& columns, u32 own, u32 rows,
                   u32 slice, u32 slices) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, count = company.count();
    const u32 first = own - (company.rank & (company.sharing - 1)) * company.rows;
    const u32 jobs = company.sharing * company.rows / 32 * WIDTH;
    for (u32 job = warp * count + company.rank; job < jobs; job += warps * count) {
        const u32 row = job / WIDTH * 32, column = job % WIDTH;
        if (first + row >= rows || !columns.has(column)) continue;
        const u32 place = columns.place(column);
        float value = company.result(results, 0, row + lane, column);
        if (epilogue.gated) {
            value = gated(value, company.result(results, 1, row + lane, column), epilogue.kind, epilogue.limit);
            epilogue.gated[(u64)place * rows + first + row + lane] = value;
        }
        const u64 at = codes_place(place, (slice * rows + first + row) / 32, slices * rows / 32);
        put_codes(quantized(value), lane, at, epilogue.codes);
    }
}
