// Instructions of Hopper alone (sm_90a): barriers in shared memory, bulk copies into it, products of warpgroups.
//
// Shared memory is named by its 32-bit address. A barrier of shared memory counts arrivals and bytes of a phase; who waits names the
// parity of the phase that it waits for.

DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}
// Makes new barriers known to the copy engine and to the other blocks of the cluster.
DEVICE void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives once, and says how many bytes the phase brings.
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
// Arrives at the barrier of the same place in another block of the cluster.
DEVICE void barrier_arrive_at(u32 barrier, u32 block) {
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there]; }"
                 :: "r"(barrier), "r"(block) : "memory");
}
DEVICE bool barrier_try(u32 barrier, u32 parity) {
    u32 done;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    return done;
}
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    while (!barrier_try(barrier, parity)) {}
}

// Global to shared memory; both addresses and the bytes are multiples of 16.
DEVICE void copy_bulk(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
// What passes once: it leaves the second-level cache first.
DEVICE void copy_bulk_once(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("{ .reg .b64 once; createpolicy.fractional.L2::evict_first.b64 once, 1.0;\n"
                 "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], once; }"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
// The same, to the same place in all blocks of a cluster that `blocks` has a bit for.
DEVICE void copy_bulk_to_all(u32 to, const void* from, u32 bytes, u32 barrier, u32 blocks) {
    u16 mask = (u16)blocks;
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"(mask) : "memory");
}

// What this thread read in shared memory comes before bulk copies there of whom its later arrival lets go on: copies go another way than
// loads, and a barrier alone orders no two ways. It takes no time that was measured.
DEVICE void reads_before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// What this thread wrote to shared memory is seen by later bulk copies.
DEVICE void writes_before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Two codes of E4M3, in the low half, as f16.
DEVICE u32 halves_of_fp8(u32 codes) {
    u32 halves;
    const u16 low = (u16)codes;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(low));
    return halves;
}

DEVICE u32 block_of_cluster() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE void wait_for_cluster() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// The same in two halves: a thread says that it has come, and waits later.
DEVICE void arrive_at_cluster() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
}
// As the first half, where others shall see what the cluster's threads wrote to shared memory, and nothing else: to make all else known
// takes as long as the writes that are on their way.
DEVICE void arrive_with_shared() {
    __syncwarp();
    asm volatile("fence.release.sync_restrict::shared::cta.cluster;\nbarrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
// As the first half, where others need know nothing of this thread's but that it has come this far.
DEVICE void arrive_alone() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
DEVICE void cluster_arrived() {
    __syncwarp();
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// Numbers from the shared memory of a block of the cluster, at the place that `at` names here.
DEVICE float number_of_block(u32 at, u32 block) {
    float v;
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %1, %2; ld.shared::cluster.f32 %0, [there]; }"
                 : "=f"(v) : "r"(at), "r"(block) : "memory");
    return v;
}
DEVICE float2 pair_of_block(u32 at, u32 block) {
    float2 v;
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %2, %3; ld.shared::cluster.v2.f32 {%0,%1}, [there]; }"
                 : "=f"(v.x), "=f"(v.y) : "r"(at), "r"(block));
    return v;
}
DEVICE float4 four_of_block(u32 at, u32 block) {
    float4 v;
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %4, %5; ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [there]; }"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at), "r"(block));
    return v;
}

// Into the same place of shared memory of a block of the cluster; all know of it once they have met.
DEVICE void store_in_block(float* at, u32 block, float value) {
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; st.shared::cluster.f32 [there], %2; }"
                 :: "r"(shared_address(at)), "r"(block), "f"(value) : "memory");
}

template <int REGISTERS> DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(REGISTERS)); }
template <int REGISTERS> DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(REGISTERS)); }

// A barrier of some of the block's threads.
DEVICE void wait_for_threads(u32 name, u32 threads) { asm volatile("bar.sync %0, %1;" :: "r"(name), "r"(threads) : "memory"); }

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most so many committed groups are unfinished.
template <int GROUPS> DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(GROUPS) : "memory"); }
// Sums that were waited for: who reads them does so behind this.
template <int COUNT> DEVICE void products_made(float (&sums)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sums[i]));
}

// An operand in shared memory: rows of 128 bytes (64 numbers along the depth), eights of rows 1024 bytes apart, 16-byte parts swizzled
// by row.
DEVICE u64 operand_of(u32 address) { return (u64)(address >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62; }
// The same in two halves: only the lower one goes from operand to operand.
DEVICE u32 operand_low(u32 address) { return address >> 4 | 1u << 16; }
DEVICE u64 operand_at(u32 low) { return (u64)(1024 >> 4 | 1u << 30) << 32 | low; }
// The same turned: a row is a place along the depth and 64 numbers across it; the next 64 are `stride` bytes on.
DEVICE u64 turned_operand_of(u32 address, u32 stride) {
    return (u64)(address >> 4) | (u64)(stride >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// Stores 8 x 8 matrices of 16-bit numbers turned: lane i names the place of column i % 8 of matrix i / 8; a lane has two neighbours of row
// lane / 4 of each.
DEVICE void store_turned(u32 column, u32 a, u32 b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" :: "r"(column), "r"(a), "r"(b) : "memory");
}
DEVICE void store_turned(u32 column, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
                 :: "r"(column), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
// Stores them as they are.
DEVICE void store_matrices(u32 row, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                 :: "r"(row), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
