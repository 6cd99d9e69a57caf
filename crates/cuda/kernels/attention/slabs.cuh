// Slabs of keys and values on their way into shared memory (Hopper): a ring that some warps fill and warpgroups empty.
//
// A slab is 64 tokens by 64 numbers, as pages.cuh lays them out: a bulk copy brings it as it is. Where the places of a page's tokens do not
// follow each other (drafts that branch), the warp gathers them token by token.

// What is in shared memory: slabs in a ring, and their barriers.
struct SlabRing {
    u32 slabs, full, empty;

    DEVICE_MEMBER u32 slab(u32 index) const { return slabs + index % STAGES * SLAB_BYTES; }
    DEVICE_MEMBER u32 parity(u32 index) const { return index / STAGES % 2; }
    DEVICE_MEMBER u32 full_of(u32 index) const { return full + 8 * (index % STAGES); }
    DEVICE_MEMBER u32 empty_of(u32 index) const { return empty + 8 * (index % STAGES); }
    // One thread; `readers` arrive for each slab that is read.
    DEVICE_MEMBER void begin(u32 readers) const {
        for (u32 s = 0; s < STAGES; s++) {
            barrier_init(full + 8 * s, 1);
            barrier_init(empty + 8 * s, readers);
        }
        barriers_ready();
    }
    DEVICE_MEMBER void wait(u32 index) const { barrier_wait(full_of(index), parity(index)); }
    // A warp has read it.
    DEVICE_MEMBER void give_back(u32 index) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(empty_of(index));
    }
};

// Gathers slabs of pages whose tokens lie apart. One warp.
struct SlabGatherer {
    const Source& from;

    // Token by token; zeros where none is seen.
    DEVICE_MEMBER void gather(u8* out, const u8* pages, u32 page, u32 slab) const {
        const u32 lane = threadIdx.x % 32, parts = FORMAT == 1 ? 8 : 4;
        for (u32 i = lane; i < PAGE * parts; i += 32) {
            const u32 token = i / parts, part = i % parts, position = page * PAGE + token;
            uint4 numbers = make_uint4(0, 0, 0, 0);
            float2 scales = make_float2(0.0f, 0.0f);
            if (position < from.end) {
                const u32 place = from.step.place(from.row, position), slot = place % PAGE;
                const u8* in = pages + from.page_at(from.page_of(place)) + slab * SLAB_BYTES;
#if FORMAT == 1
                numbers = *(const uint4*)(in + slot * 128 + (part ^ (token % 8) ^ (slot % 8)) * 16);
#else
                numbers = *(const uint4*)(in + slot * 64 + part * 16);
                if (part == 0) scales = *(const float2*)(in + SLAB_CODES + slot * 8);
#endif
            }
            *(uint4*)(out + i * 16) = numbers;
#if FORMAT == 2
            if (part == 0) *(float2*)(out + SLAB_CODES + token * 8) = scales;
#endif
        }
    }
};

// Warps that fill a ring, in turns: a place in it is always the same warp's, so that none is a round ahead of another.
#define BRINGERS 4

// One of the warps that fill the ring.
struct SlabBringer {
    const Source& from;
    const SlabRing& ring;
    u8* slabs; // the ring's, as a pointer
    u32 next;
    u32 own;

    // Slab `slab` of a page of the sequence, which lies in page `at` of the cache. Of a cluster's blocks one copies it for all.
    DEVICE_MEMBER void bring(const u8* pages, u32 page, u32 at, u32 slab, u32 rank = 0) {
        const u32 lane = threadIdx.x % 32, index = next++;
        if (index % BRINGERS != own) return;
        if (at != GATHERED) {
            if (lane > 0) return;
            barrier_wait(ring.empty_of(index), ring.parity(index) ^ 1);
            barrier_expect(ring.full_of(index), SLAB_BYTES);
#if CLUSTER > 1
            if (index % CLUSTER != rank) return;
            copy_bulk_to_all(ring.slab(index), pages + from.page_at(at) + slab * SLAB_BYTES, SLAB_BYTES, ring.full_of(index),
                             (1 << CLUSTER) - 1);
            return;
#endif
            copy_bulk_once(ring.slab(index), pages + from.page_at(at) + slab * SLAB_BYTES, SLAB_BYTES, ring.full_of(index));
            return;
        }
        if (lane == 0) barrier_wait(ring.empty_of(index), ring.parity(index) ^ 1);
        __syncwarp();
        SlabGatherer{from}.gather(slabs + index % STAGES * SLAB_BYTES, pages, page, slab);
        writes_before_copies();
        __syncwarp();
        if (lane == 0) barrier_arrive(ring.full_of(index));
    }
};
