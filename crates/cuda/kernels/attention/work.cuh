// Spans of tokens as the work of blocks (Hopper).
//
// A block of a tile that has a processor for itself goes on from span to span: its ring fills with the next one's pages while it ends the
// last. All spans of a launch are one list, long ones first, and a ticket is a place in it. A block begins with its own number, and draws
// the next ticket when the last pages of a span are asked for: so none waits for it, and none is drawn long before its turn. Neither the
// order of the list nor who takes what changes a bit: each span's parts have a place of their own.

#define NO_TICKET 0xffffffffu

// A span of a tile's tokens.
struct Span {
    Tile tile;
    u32 kv_head;
    Seen oldest, newest; // what the tile's first row sees, and its last
    u32 index;           // of the spans from position 0 on
    u32 begin, end;      // its tokens that some row sees

    DEVICE_MEMBER bool is_one() const { return begin < end; }
};

// The spans of a launch: `across` of each of `tiles` tiles for each head of keys and values, some of them none. `mates` tiles read the same
// keys and values.
struct SpanList {
    const Step& step;
    u32 first, count, heads, kv_heads, run, window, tiles, mates, across;

    DEVICE_MEMBER u32 tickets() const { return tiles * across * kv_heads; }
    // Span `turn` of a tile, counted from its last.
    DEVICE_MEMBER Span span(u32 place, u32 kv_head, u32 turn) const {
        Span own = {tile_of(step, first, count, heads, kv_heads, kv_head, run, place), kv_head, {0, 0}, {0, 0}, 0, 0, 0};
        if (own.tile.columns == 0) return own;
        own.oldest = seen_by(step, own.tile.row, window);
        own.newest = seen_by(step, own.tile.row_of(own.tile.columns - 1), window);
        const Cut cut(window);
        const u32 last = cut.span_of(own.newest.end - 1);
        if (turn > last - cut.first(own.oldest)) return own;
        own.index = last - turn;
        own.begin = max(own.oldest.begin, cut.begin_of(own.index));
        own.end = min(own.newest.end, cut.begin_of(own.index + 1));
        return own;
    }
    // Spans that may be long come first, each tile's one after another: who takes several of a tile has its queries. Tiles that read the
    // same do so at once.
    DEVICE_MEMBER Span span(u32 ticket) const {
        const u32 shorts = SHORT_END / SHORT_SPAN, late = across > shorts ? across - shorts : 0;
        const u32 late_turns = tiles / mates * kv_heads * late, at = ticket / mates;
        const bool is_late = at < late_turns;
        const u32 own = is_late ? at : at - late_turns, turns = is_late ? late : across - late;
        const u32 unit = own / turns, turn = own % turns + (is_late ? 0 : late);
        return span(unit / kv_heads * mates + ticket % mates, unit % kv_heads, turn);
    }
};

// Tickets on their way from the warp that draws them to the block's others: two places, which are told and heard in turns.
struct Tickets {
    u32* slots;
    u32 told, heard;

    // One thread; `listeners` warps hear each.
    DEVICE_MEMBER void begin(u32 listeners) const {
        for (u32 i = 0; i < 2; i++) {
            barrier_init(told + 8 * i, 1);
            barrier_init(heard + 8 * i, listeners);
        }
    }
    // What comes behind the block's span `turn`. One thread.
    DEVICE_MEMBER void tell(u32 turn, u32 ticket) const {
        barrier_wait(heard + turn % 2 * 8, turn / 2 % 2 ^ 1);
        slots[turn % 2] = ticket;
        barrier_arrive(told + turn % 2 * 8);
    }
    // Lanes that wait here keep none of their warp from what it does before.
    DEVICE_MEMBER u32 hear(u32 turn) const {
        __syncwarp();
        barrier_wait(told + turn % 2 * 8, turn / 2 % 2);
        const u32 ticket = slots[turn % 2];
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(heard + turn % 2 * 8);
        return ticket;
    }
};
