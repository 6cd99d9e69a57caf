// What kernels know of a step: where its rows stand, and what they see.

#define PAGE 64
#define ROW_NUMBERS 7

// A word of a step. The host sends a step before its first launch, so it may be read ahead of a launch's turn, but around L1: there may be
// what an earlier launch had read in the same place.
DEVICE u32 word_of_step(const u32* at, bool is_ahead) { return is_ahead ? load_anew(at) : *at; }

// Where a row finds what it sees.
struct RowOfStep {
    const u32* lists;
    u32 position, pages, committed, places, run_start, own_ring;
    bool is_ahead = false;

    // The place where what the row sees at a position is kept; mask.rs, `place`.
    DEVICE_MEMBER u32 place(u32 position) const {
        return position < committed ? position : word_of_step(lists + (places + position - committed), is_ahead);
    }
    // Where the page of a place is listed, of rows that are in no ring.
    DEVICE_MEMBER const u32* listed(u32 place) const { return lists + (pages + place / PAGE); }
    // The page of a place.
    DEVICE_MEMBER u32 page(u32 place, u32 ring) const {
        const u32 index = place / PAGE;
        return ring ? own_ring * ring + index % ring : word_of_step(listed(place), is_ahead);
    }
};

// What is known of a step's rows, one array after another (crates/cuda/src/steps.rs): for each row its position, where its
// sequence's page table begins, how many positions stand where they are counted, where the places of later ones are listed, and the
// rows that can be taken together with it: from, to; and its ring.
struct Step {
    const u32* rows;
    const u32* lists;
    // Whether all is read ahead of the turn.
    bool is_ahead = false;

    DEVICE_MEMBER u32 word(u32 row, u32 index) const { return word_of_step(rows + row * ROW_NUMBERS + index, is_ahead); }
    DEVICE_MEMBER u32 position(u32 row) const { return word(row, 0); }
    DEVICE_MEMBER u32 run_start(u32 row) const { return word(row, 4); }
    DEVICE_MEMBER u32 run_end(u32 row) const { return word(row, 5); }
    // Whether all positions below `end` stand where they are counted.
    DEVICE_MEMBER bool is_plain(u32 row, u32 end) const { return end <= word(row, 2); }
    // All that finds what the row sees, read at once.
    DEVICE_MEMBER RowOfStep of(u32 row) const {
        const u32* own = rows + row * ROW_NUMBERS;
        auto word = [&](u32 index) { return word_of_step(own + index, is_ahead); };
        return {lists, word(0), word(1), word(2), word(3), word(4), word(6), is_ahead};
    }
    // The same, whatever branches come before a number is needed.
    DEVICE_MEMBER RowOfStep all_of(u32 row) const {
        RowOfStep own = of(row);
        asked(own.position);
        asked(own.pages);
        asked(own.committed);
        asked(own.places);
        asked(own.own_ring);
        return own;
    }
    // The same ahead of the turn, for the host sends a step before its first launch; of what is not in a ring.
    DEVICE_MEMBER u32 position_ahead(u32 row) const { return load_anew(rows + row * ROW_NUMBERS); }
    DEVICE_MEMBER RowOfStep ahead(u32 row) const {
        const u32* own = rows + row * ROW_NUMBERS;
        return {lists, load_anew(own), load_anew(own + 1), 0, 0, 0, 0};
    }
    DEVICE_MEMBER u32 place(u32 row, u32 position) const { return of(row).place(position); }
    DEVICE_MEMBER u32 page(u32 row, u32 place, u32 ring) const { return of(row).page(place, ring); }
};

// The positions that a row sees.
struct Seen {
    u32 begin;
    u32 end;

    DEVICE_MEMBER u32 first_page() const { return begin / PAGE; }
    DEVICE_MEMBER u32 pages() const { return (end + PAGE - 1) / PAGE - begin / PAGE; }
    // Of the 64 positions of a page, those that are seen.
    DEVICE_MEMBER u32 from(u32 page) const { return begin > page * PAGE ? begin - page * PAGE : 0; }
    DEVICE_MEMBER u32 to(u32 page) const { return end < page * PAGE + PAGE ? (end > page * PAGE ? end - page * PAGE : 0) : PAGE; }
};

DEVICE Seen seen_by(const Step& step, u32 row, u32 window) {
    const u32 end = step.position(row) + 1;
    return {window && window < end ? end - window : 0, end};
}
