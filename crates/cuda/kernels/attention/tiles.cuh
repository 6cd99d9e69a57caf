// Which queries share a read of keys and values: the columns of a tile are rows of one run (rows of a sequence that follow each
// other) times query heads of a group. COLUMNS of them are taken at once; no bit depends on how many.
//
// A place names a tile of rows of the chunk (rows `first .. first + count` of the step) and a part of the group's heads. Where all runs
// have `run` rows, tiles are counted run by run. Else (0) a place names a row; the first of every few rows of a run makes a tile, and
// places of its other rows have nothing to do.

struct Tile {
    u32 row;     // the first row
    u32 head;    // its first query head
    u32 heads;   // query heads of a row
    u32 columns; // rows times heads; 0: nothing to do

    DEVICE_MEMBER u32 row_of(u32 column) const { return row + column / heads; }
    DEVICE_MEMBER u32 head_of(u32 column) const { return head + column % heads; }
};

DEVICE Tile tile_of(const Step& step, u32 first, u32 count, u32 heads, u32 kv_heads, u32 kv_head, u32 run,
                    u32 place) {
    const u32 group = heads / kv_heads, parts = (group + COLUMNS - 1) / COLUMNS;
    const u32 rows = group < COLUMNS ? COLUMNS / group : 1;
    const u32 index = place / parts, part = place % parts, tiles = (run + rows - 1) / rows;
    const u32 row = first + (run ? index / tiles * run + index % tiles * rows : index);
    const u32 left = group - part * COLUMNS, own = left < COLUMNS ? left : COLUMNS;
    // Behind the last tile.
    if (row >= first + count) return {first + count - 1, kv_head * group, own, 0};
    u32 start = step.run_start(row), end = step.run_end(row);
    start = start > first ? start : first;
    end = end < first + count ? end : first + count;
    Tile tile = {row, kv_head * group + part * COLUMNS, own, 0};
    if ((row - start) % rows == 0) tile.columns = (end - row < rows ? end - row : rows) * tile.heads;
    return tile;
}

// Where a page of a head lies, as a row sees it; a copy of a page's slab goes by `page_at` alone where places are plain.
struct Source {
    const Step& step;
    u32 row, end, kv_heads, kv_head, ring;

    DEVICE_MEMBER u64 page_at(u32 page) const { return ((u64)page * kv_heads + kv_head) * HEAD_BYTES; }
    DEVICE_MEMBER u32 page_of(u32 place) const { return step.page(row, place, ring); }
    DEVICE_MEMBER bool is_plain(u32 page) const { return step.is_plain(row, (page + 1) * PAGE); }
};

// A page that has no place of its own: its tokens are gathered.
#define GATHERED 0xffffffffu
