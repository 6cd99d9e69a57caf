// What a kernel asks of the machine: qualifiers, types, and the instructions that C++ has no name for, as inline PTX.
//
// The first part of every source, and the only one that writes PTX. No header of the toolkit is included, so that the run-time
// compiler alone is enough.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
// A member function that is always inlined.
#define DEVICE_MEMBER __device__ __forceinline__
#define KERNEL extern "C" __global__ void
// Shared memory of as many bytes as the launch gives.
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]

DEVICE float half_to_float(u32 bits) {
    float value;
    u16 low = (u16)bits;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(low));
    return value;
}

DEVICE u16 float_to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// 2^x within a few units of the last place.
DEVICE float exp2_near(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// 1 / x within a unit or so of the last place.
DEVICE float reciprocal_near(float x) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
}

// Weights pass once: they go around L1 and come in whole lines of L2.
DEVICE uint4 load_once(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}
DEVICE uint2 load_once(const uint2* at) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
    return v;
}
DEVICE u32 load_once(const u32* at) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.u32 %0, [%1];" : "=r"(v) : "l"(at));
    return v;
}
DEVICE u32 load_once(const u16* at) {
    u16 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.u16 %0, [%1];" : "=h"(v) : "l"(at));
    return v;
}

// Sums of 32 features on top of `start`: 16 rows of unsigned codes by 8 columns of signed ones.
DEVICE void multiply(int (&c)[4], const u32 (&a)[4], uint2 b, const int (&start)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]));
}
// The same of 32 features, both signed.
DEVICE void multiply_signed(int (&c)[4], const u32 (&a)[4], uint2 b, const int (&start)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]));
}
// The same of 16 features.
DEVICE void multiply_half(int (&c)[4], u32 a0, u32 a1, u32 b, const int (&start)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a0), "r"(a1), "r"(b), "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]));
}
// The same of 16 features, both signed.
DEVICE void multiply_half_signed(int (&c)[4], u32 a0, u32 a1, u32 b, const int (&start)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a0), "r"(a1), "r"(b), "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]));
}
// Sums of 16 features in f32: 16 rows by 8 columns of f16.
DEVICE void multiply_numbers(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Two signed numbers of 16 bits times the two lowest signed bytes of `factors`, and `sum`.
DEVICE int dot_pair(u32 pair, int factors, int sum) {
    int result;
    asm("dp2a.lo.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(pair), "r"(factors), "r"(sum));
    return result;
}
// The same by the two highest.
DEVICE int dot_pair_high(u32 pair, int factors, int sum) {
    int result;
    asm("dp2a.hi.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(pair), "r"(factors), "r"(sum));
    return result;
}
// An address as instructions of shared memory take it.
DEVICE u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }
// Four 8 x 8 matrices of 16-bit numbers in shared memory, rows of 16 bytes, lane i naming row i % 8 of matrix i / 8: as operands, where a
// lane has two neighbours of row lane / 4 of each; or turned, where it has those of column lane / 4.
DEVICE void load_matrices(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(shared_address(row)) : "memory");
}
DEVICE void load_turned(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(shared_address(row)) : "memory");
}
// Starts the way of a line of 128 bytes from memory into the L2 cache.
DEVICE void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" : : "l"(at)); }
// Bits of `ones` where the mask has ones, of `zeros` elsewhere; and some bits alone. The compiler does not look into them: it would
// work out each half of a word by itself.
DEVICE u32 select_bits(u32 mask, u32 ones, u32 zeros) {
    u32 bits;
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(bits) : "r"(mask), "r"(ones), "r"(zeros));
    return bits;
}
DEVICE u32 only_bits(u32 mask, u32 bits) {
    u32 some;
    asm("and.b32 %0, %1, %2;" : "=r"(some) : "r"(mask), "r"(bits));
    return some;
}
// The bytes of `first` and `second` that the four low nibbles of `which` name, 0 to 7. Unlike `__byte_perm` it does not mask them.
DEVICE u32 named_bytes(u32 first, u32 second, u32 which) {
    u32 bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(first), "r"(second), "r"(which));
    return bytes;
}
// A number that the compiler does not know, so that it stays in its register.
DEVICE int opaque(int value) {
    int known;
    asm volatile("mov.b32 %0, %1;" : "=r"(known) : "r"(value));
    return known;
}

// Keeps a load where it stands, ahead of branches: the compiler would move it to where its number is needed, behind other waits.
DEVICE void asked(u32& number) { asm volatile("" : "+r"(number)); }
DEVICE void asked(float& number) { asm volatile("" : "+f"(number)); }

// Copies from global to shared memory that go on by themselves; both places are multiples of the size. They end in groups, whose
// ends alone are ordered with other reads and writes.
DEVICE void copy_16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(shared_address(to)), "l"(from));
}
// What passes once, in whole lines of L2.
DEVICE void copy_16_once(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" : : "r"(shared_address(to)), "l"(from));
}
DEVICE void copy_8(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" : : "r"(shared_address(to)), "l"(from));
}
DEVICE void copy_4(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" : : "r"(shared_address(to)), "l"(from));
}
DEVICE void end_of_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits until at most so many groups of this thread are on their way.
template <int GROUPS> DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" : : "n"(GROUPS) : "memory"); }

// A pair of f16 that both are the low one of a pair, or the high one. Instructions on pairs take such an operand as it lies, if the
// compiler can see that it is one: it does not in `__byte_perm`.
template <int HALF> DEVICE u32 both_halves(u32 pair) {
    u32 both;
    if constexpr (HALF == 0) asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {low, low}; }" : "=r"(both) : "r"(pair));
    else asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {high, high}; }" : "=r"(both) : "r"(pair));
    return both;
}

// Pairs of f16, each half by itself; one rounding each.
DEVICE u32 add_halves(u32 a, u32 b) {
    u32 sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}
DEVICE u32 multiply_halves(u32 a, u32 b) {
    u32 product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}
DEVICE u32 fma_halves(u32 a, u32 b, u32 c) {
    u32 sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}
// The larger of each; NaN stays.
DEVICE u32 larger_halves(u32 a, u32 b) {
    u32 larger;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
DEVICE u32 pair_of_halves(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// The card's clock.
DEVICE u64 clock_nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

// Whether blocks can be in clusters: the instructions of hopper/ptx.cuh.
#define HAS_CLUSTERS (__CUDA_ARCH__ >= 900)

// A kernel may be started while the one before it in the stream still runs: once all blocks of that have had their turn, or have ended.
// `after_earlier_work` waits for all that was enqueued before, which is the kernel's turn, and lets the next one start. Until then a kernel
// touches nothing but weights.
//
// The next could be let start at once, and was. But the one behind that then was, too, and so on, and what had been launched several turns
// ahead found its code gone from the processor's cache of instructions when its turn came: `latent_decode` took 16 us, which are 5 where it
// is started as late as here. What a launch needs is a few microseconds, and so is a turn. But kernels behind which mostly products come,
// whose weights are to be on their way, let them start as their first line.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// The wait alone: the next one starts when all blocks have ended. What they have written by `write_out` lies in L2 then.
DEVICE void wait_for_earlier_work() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}
DEVICE void write_out() { asm volatile("fence.acq_rel.gpu;" : : : "memory"); }
DEVICE void after_earlier_work() {
    wait_for_earlier_work();
    let_next_start();
}
// What this thread reads from here on is what lies in L2 by now, or later.
DEVICE void read_anew() { asm volatile("fence.acq_rel.gpu;" : : : "memory"); }
// A word as it lies in L2, whatever the processor has read there before: what the host sent for a step can be read so ahead of the turn.
DEVICE u32 load_anew(const u32* at) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at));
    return v;
}
// Adds to a word of shared memory, in any order with others that do.
DEVICE void add_in_shared(u32* at, u32 more) {
    asm volatile("red.shared.add.u32 [%0], %1;" : : "r"(shared_address(at)), "r"(more) : "memory");
}
// Adds to a number of the card's memory; what it was.
DEVICE u64 add_atomically(u64* at, u64 more) {
    u64 before;
    asm volatile("atom.global.add.u64 %0, [%1], %2;" : "=l"(before) : "l"(at), "l"(more) : "memory");
    return before;
}
