// Where the columns of a segment begin among those of all: runs of COLUMN_RUN never hold two segments'.
DEVICE u32 first_row(const u32* starts, u32 segment) {
    return starts ? (starts[segment] + COLUMN_RUN - 1) / COLUMN_RUN * COLUMN_RUN + COLUMN_RUN * segment : 0;
}
