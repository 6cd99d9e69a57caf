// The pages of 64 keys that a row goes through: those of its window, at absolute positions, and then the compressed rows that it
// sees, all or a list of them, in runs. numerics.rs, "Latent rows".

struct Sight {
    Step step;
    const u8* raw;
    const u8* compressed;
    // (rows, top_k) the compressed rows that are seen; none: all that are complete.
    const u32* selected;
    u32 ring, window;
    // Tokens of a compressed row; 0 where there are none.
    u32 ratio;
    u32 top_k;

    DEVICE_MEMBER u32 end(u32 row) const { return step.position(row) + 1; }
    DEVICE_MEMBER u32 begin(u32 row) const { return window < end(row) ? end(row) - window : 0; }
    DEVICE_MEMBER u32 raw_pages(u32 row) const { return (end(row) + PAGE - 1) / PAGE - begin(row) / PAGE; }
    DEVICE_MEMBER u32 compressed_rows(u32 row) const {
        const u32 complete = ratio ? end(row) / ratio : 0;
        return selected && complete > top_k ? top_k : complete;
    }
    DEVICE_MEMBER u32 pages(u32 row) const { return raw_pages(row) + (compressed_rows(row) + PAGE - 1) / PAGE; }

    // The slots of a page that are seen: from, to.
    DEVICE_MEMBER uint2 slots(u32 row, u32 page) const {
        const u32 raw_count = raw_pages(row);
        if (page < raw_count) {
            const u32 first = begin(row) / PAGE * PAGE + page * PAGE, from = begin(row), to = end(row);
            return make_uint2(from > first ? from - first : 0, to < first + PAGE ? to - first : PAGE);
        }
        const u32 left = compressed_rows(row) - (page - raw_count) * PAGE;
        return make_uint2(0, left < PAGE ? left : PAGE);
    }

    // The key in a slot that is seen.
    DEVICE_MEMBER const u8* key(u32 row, u32 page, u32 slot) const {
        const u32 raw_count = raw_pages(row);
        if (page < raw_count) {
            const u32 position = begin(row) / PAGE * PAGE + page * PAGE + slot;
            return raw + place_of_token(step, row, position, ring, ROW_BYTES);
        }
        const u32 place = (page - raw_count) * PAGE + slot;
        return compressed + place_of_compressed(step, row, selected ? selected[(u64)row * top_k + place] : place, ratio);
    }
};
