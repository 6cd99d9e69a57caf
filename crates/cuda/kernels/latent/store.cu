// Rows of a step's tokens into their pages. One block a row.

KERNEL __launch_bounds__(THREADS) store_rows(const float* x, u8* pages, const u32* rows, const u32* lists, u32 ring) {
    after_earlier_work();
    const Step step = {rows, lists};
    const u32 row = blockIdx.x;
    const RowOfStep own = step.all_of(row);
    u8* to = pages + place_of_token(own, own.position, ring, ROW_BYTES);
#if IS_PACKED
    pack_row(to, PACKED_ROW, WIDTH, x + (u64)row * WIDTH);
#else
    for (u32 d = threadIdx.x; d < ROW_BLOCKS * 32; d += THREADS) keep_number(to, d, d < WIDTH ? x[(u64)row * WIDTH + d] : 0.0f);
#endif
}
