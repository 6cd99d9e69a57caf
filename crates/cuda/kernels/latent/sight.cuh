// The pages of 64 keys that a row goes through: those of its window, at absolute positions, and then the compressed rows that it
// sees, all or a list of them, in runs. numerics.rs, "Latent rows".

struct Sight {
    RowOfStep row;
    const u8* raw;
    const u8* compressed;
    // (top_k) the compressed rows that are seen; none: all that are complete.
    const u32* selected;
    u32 ring, window;
    // Tokens of a compressed row; 0 where there are none.
    u32 ratio;
    u32 top_k;

    DEVICE_MEMBER u32 end() const { return row.position + 1; }
    DEVICE_MEMBER u32 begin() const { return window < end() ? end() - window : 0; }
    DEVICE_MEMBER u32 raw_pages() const { return (end() + PAGE - 1) / PAGE - begin() / PAGE; }
    DEVICE_MEMBER u32 compressed_rows() const {
        const u32 complete = ratio ? end() / ratio : 0;
        return selected && complete > top_k ? top_k : complete;
    }
    DEVICE_MEMBER u32 pages() const { return raw_pages() + (compressed_rows() + PAGE - 1) / PAGE; }

    // The slots of a page that are seen: from, to.
    DEVICE_MEMBER uint2 slots(u32 page) const {
        const u32 raw_count = raw_pages();
        if (page < raw_count) {
            const u32 first = begin() / PAGE * PAGE + page * PAGE, from = begin(), to = end();
            return make_uint2(from > first ? from - first : 0, to < first + PAGE ? to - first : PAGE);
        }
        const u32 left = compressed_rows() - (page - raw_count) * PAGE;
        return make_uint2(0, left < PAGE ? left : PAGE);
    }

    // The key in a slot that is seen.
    DEVICE_MEMBER const u8* key(u32 page, u32 slot) const {
        const u32 raw_count = raw_pages();
        if (page < raw_count) {
            const u32 position = begin() / PAGE * PAGE + page * PAGE + slot;
            return raw + place_of_token(row, position, ring, ROW_BYTES);
        }
        const u32 place = (page - raw_count) * PAGE + slot;
        return compressed + place_of_compressed(row, selected ? selected[place] : place, ratio);
    }
    // The same, or none in other slots.
    DEVICE_MEMBER u64 seen_key(u32 page, u32 slot) const {
        const uint2 seen = slots(page);
        return slot >= seen.x && slot < seen.y ? (u64)key(page, slot) : 0;
    }
};

DEVICE const u32* selected_of(const u32* selected, u32 row, u32 top_k) { return selected ? selected + (u64)row * top_k : 0; }
