// Slabs of keys and values on their way into shared memory, on all cards: a ring of copies that go on by themselves, started by all
// threads.

// Slabs of a head: the last may be narrower.
#define DEPTHS ((HEAD_DIM + 63) / 64)
#define OPERAND_BYTES (PAGE * 128)
#if FORMAT == 1
#define STAGE_BYTES OPERAND_BYTES
#define EXPANDED_BYTES 0
#else
// Codes and two scales of each token; codes become f16 in an operand of their own.
#define STAGE_CODES (PAGE * 64)
#define STAGE_BYTES (STAGE_CODES + PAGE * 8)
#define EXPANDED_BYTES OPERAND_BYTES
#endif

static_assert(HEAD_DIM % 16 == 0 && FORMAT != 0 && STAGES >= 2, "whole operands, of f16, and copies ahead");

// Where a 16-byte part of a row of 128 bytes lies.
DEVICE u32 swizzled(u32 row, u32 part) { return row * 128 + (part ^ (row % 8)) * 16; }
// The slabs of a head's pages in the order in which they are multiplied: of each page those of keys, then those of values.
struct Slabs {
    const Source& from;
    const u8* key_pages;
    const u8* value_pages;
    u8* ring;
    u8* expanded;
    u32 to_page;
    // What is copied next, into which stage, and where its pages are kept: each lane knows one of 32.
    u32 page, slab = 0, stage = 0, known_from, known = 0;
    // What is taken next.
    u32 taken = 0;

    DEVICE_MEMBER void look_up() {
        const u32 own = page + threadIdx.x % 32;
        known_from = page;
        known = own < to_page && from.is_plain(own) ? from.page_of(own * PAGE) : GATHERED;
    }
    // A part of a token's numbers, as it lies in the slot of a head's page.
    DEVICE_MEMBER void copy_numbers(u8* to, const u8* head, u32 token, u32 slot, u32 part) const {
#if FORMAT == 1
        const u32 d = slab % DEPTHS * 64 + part * 8;
        if (d < HEAD_DIM) copy_16(to + swizzled(token, part), head + place_of_number(slot, d));
#else
        const u32 d = slab % DEPTHS * 64 + part * 16;
        if (d >= HEAD_DIM) return;
        copy_16(to + token * 64 + part * 16, head + place_of_number(slot, d));
        if (d % 32 == 0) copy_4(to + STAGE_CODES + token * 8 + part / 2 * 4, head + place_of_scale(slot, d));
#endif
    }
    // Starts the copies of a slab, or of nothing behind the last.
    DEVICE_MEMBER void bring() {
        constexpr u32 parts = FORMAT == 1 ? 8 : 4;
        if (page < to_page) {
            if (page - known_from == 32) look_up();
            const u32 at = __shfl_sync(0xffffffffu, known, page - known_from);
            const u8* pages = slab < DEPTHS ? key_pages : value_pages;
            u8* const to = ring + stage * STAGE_BYTES;
            if (HAS_SLABS && at != GATHERED) {
                // As it lies there.
                const u8* in = pages + from.page_at(at) + slab % DEPTHS * STAGE_BYTES;
#pragma unroll
                for (u32 i = threadIdx.x; i < STAGE_BYTES / 16; i += THREADS) copy_16(to + i * 16, in + i * 16);
            } else {
#pragma unroll 1
                for (u32 index = threadIdx.x; index < PAGE * parts; index += THREADS) {
                    const u32 token = index / parts, position = page * PAGE + token;
                    if (at != GATHERED) {
                        copy_numbers(to, pages + from.page_at(at), token, token, index % parts);
                    } else if (position < from.end) {
                        const u32 place = from.step.place(from.row, position);
                        copy_numbers(to, pages + from.page_at(from.page_of(place)), token, place % PAGE, index % parts);
                    }
                }
            }
            if (++slab == 2 * DEPTHS) {
                slab = 0;
                page++;
            }
            if (++stage == STAGES) stage = 0;
        }
        end_of_copies();
    }
    DEVICE_MEMBER void begin() {
        look_up();
#pragma unroll 1
        for (int i = 0; i + 1 < STAGES; i++) bring();
    }
    // The next slab as an operand, of whose tokens `low .. high` are seen if not all are: values of others become zeros, for they may be
    // anything. All threads have read the one before, and what they wrote until now is seen.
    DEVICE_MEMBER const u8* take(bool is_whole, u32 low, u32 high) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        bring();
        u8* const own = ring + taken * STAGE_BYTES;
        if (++taken == STAGES) taken = 0;
#if FORMAT == 1
        if (!is_whole) {
            for (u32 i = threadIdx.x; i < PAGE * 8; i += THREADS)
                if (i / 8 < low || i / 8 >= high) *(uint4*)(own + i * 16) = make_uint4(0, 0, 0, 0);
            __syncthreads();
        }
        return own;
#else
#pragma unroll
        for (u32 i = threadIdx.x; i < PAGE * 8; i += THREADS) {
            const u32 token = i / 8, part = i % 8;
            const float scale = *(const float*)(own + STAGE_CODES + token * 8 + part / 4 * 4);
            uint4 halves = halves_of_codes(*(const uint2*)(own + token * 64 + part * 8), pair_of_halves(scale, scale));
            if (!is_whole && (token < low || token >= high)) halves = make_uint4(0, 0, 0, 0);
            *(uint4*)(expanded + swizzled(token, part)) = halves;
        }
        __syncthreads();
        return expanded;
#endif
    }
};
