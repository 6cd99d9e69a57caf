// Which rows of activations the columns of a launch are, and where their results go: dense, grouped and routed alike.
//
// `matrix` is the segment (a group or an expert; 0 where there is one matrix), `tile` the tile of `width` columns.
// - `starts` null: columns are the tokens. Each segment reads its slice of a row, and writes its slice.
// - else: columns are the places `order[starts[matrix] .. starts[matrix + 1]]`; place p reads row p / slots and writes row p.
// - `chosen` alone: of one token; each place has its expert for itself.

struct Columns {
    u32 first;
    u32 count;
    const u32* order;
    u32 slots;
    // What is added to a column where there is no order.
    u32 base;

    // The place of a column of this tile; columns past the end stand for the last one, and are not written.
    DEVICE_MEMBER u32 place(u32 column) const {
        u32 c = first + column < count ? first + column : count - 1;
        return order ? order[c] : base + c;
    }
    DEVICE_MEMBER u32 row(u32 column) const { return place(column) / slots; }
    DEVICE_MEMBER bool has(u32 column) const { return first + column < count; }
};

DEVICE Columns columns_of_tile(u32 matrix, const u32* starts, const u32* order, u32 tokens, u32 slots, u32 width, u32 tile) {
    Columns c = {tile * width, tokens, 0, 1, 0};
    if (starts) {
        u32 start = starts[matrix];
        c.count = starts[matrix + 1] - start;
        c.order = order + start;
        c.slots = slots;
    }
    return c;
}

// The one column of a place that has its expert for itself.
DEVICE Columns column_of_place(u32 place, u32 slots) { return {0, 1, 0, slots, place}; }

// A matrix, none if that is more than there are, and a tile of its columns.
struct Work {
    u32 matrix;
    u32 tile;
};

// The work of blockIdx.z: that matrix, and tile `tile` of its columns. Where experts are more than places, the expert that was `chosen` for
// place `order[blockIdx.z]`: of all its places the first of each tile has a block, so that no block has two tiles, one after the other.
DEVICE Work work_of_block(const u32* starts, const u32* order, const u32* chosen, u32 width, u32 tile) {
    if (!chosen) return {blockIdx.z, tile};
    if (!starts) return {chosen[blockIdx.z], 0};
    const u32 expert = chosen[order[blockIdx.z]], of_expert = blockIdx.z - starts[expert];
    return {of_expert % width == 0 ? expert : 0xffffffffu, of_expert / width};
}
