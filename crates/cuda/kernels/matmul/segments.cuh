// The cut of a depth; numerics.rs, `segment`. `count` is `segment_count(depth)`, 8 at most, so that nothing overflows.
DEVICE void segment_of(u32 depth, u32 count, u32 index, u32& start, u32& end) {
    u32 units = depth / 256;
    start = units * index / count * 256;
    end = index + 1 == count ? depth : units * (index + 1) / count * 256;
}
