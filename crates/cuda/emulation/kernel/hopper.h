// Stands in for the instructions of crates/cuda/kernels/hopper: the same names, on the emulated machine.
#pragma once
#include "ptx.h"

EMULATED void barrier_init(u32 barrier, u32 arrivals, HERE) { emulation_barrier_init(barrier, arrivals, here); }
EMULATED void barriers_ready() {}
EMULATED void barrier_expect(u32 barrier, u32 bytes, HERE) {
    emulation_barrier_arrive(barrier, emulation_block_of_cluster(), bytes, here);
}
EMULATED void barrier_arrive(u32 barrier, HERE) { emulation_barrier_arrive(barrier, emulation_block_of_cluster(), 0, here); }
EMULATED void barrier_arrive_at(u32 barrier, u32 block, HERE) { emulation_barrier_arrive(barrier, block, 0, here); }
EMULATED void barrier_wait(u32 barrier, u32 parity, HERE) { emulation_barrier_wait(barrier, parity, here); }

EMULATED void copy_bulk(u32 to, const void* from, u32 bytes, u32 barrier, HERE) {
    emulation_copy_bulk(to, from, bytes, barrier, 1u << emulation_block_of_cluster(), here);
}
EMULATED void copy_bulk_once(u32 to, const void* from, u32 bytes, u32 barrier, HERE) {
    emulation_copy_bulk(to, from, bytes, barrier, 1u << emulation_block_of_cluster(), here);
}
EMULATED void copy_bulk_to_all(u32 to, const void* from, u32 bytes, u32 barrier, u32 blocks, HERE) {
    emulation_copy_bulk(to, from, bytes, barrier, blocks, here);
}
EMULATED void reads_before_copies() {}
EMULATED void writes_before_copies() {}

// All but the largest size, which is no number, are f16 too.
EMULATED u32 half_of_fp8(u32 code) {
    const u32 size = code & 0x7f, sign = (code & 0x80) << 8;
    return size == 0x7f ? 0x7fffu : (u32)float_to_half(half_to_float(size << 7) * 256.0f) | sign;
}
EMULATED u32 halves_of_fp8(u32 codes) { return half_of_fp8(codes & 0xff) | half_of_fp8(codes >> 8 & 0xff) << 16; }

EMULATED u32 block_of_cluster() { return emulation_block_of_cluster(); }
EMULATED void wait_for_cluster(HERE) { emulation_sync_cluster(here); }
// Who arrives waits where it would.
EMULATED void arrive_at_cluster() {}
EMULATED void arrive_with_shared() {}
EMULATED void arrive_alone() {}
EMULATED void cluster_arrived(HERE) { emulation_sync_cluster(here); }
EMULATED void store_in_block(float* at, u32 block, float value, HERE) {
    emulation_store_in_block(emulation_shared_address(at), block, &value, sizeof(value), here);
}
EMULATED void wait_for_threads(u32 name, u32 threads, HERE) { emulation_sync_threads(name, threads, here); }

EMULATED float number_of_block(u32 at, u32 block, HERE) {
    float v;
    emulation_load_from_block(&v, at, sizeof(v), block, here);
    return v;
}
EMULATED float2 pair_of_block(u32 at, u32 block, HERE) {
    float2 v;
    emulation_load_from_block(&v, at, sizeof(v), block, here);
    return v;
}
EMULATED float4 four_of_block(u32 at, u32 block, HERE) {
    float4 v;
    emulation_load_from_block(&v, at, sizeof(v), block, here);
    return v;
}

// A thread of the machine has all the registers that it wants.
template <int REGISTERS> EMULATED void give_registers() {}
template <int REGISTERS> EMULATED void take_registers() {}

// Products are made when they are waited for: until then their operands must stay as they are.
EMULATED void products_begin() {}
EMULATED void products_commit() { emulation_products_commit(); }
template <int GROUPS> EMULATED void products_wait(HERE) { emulation_products_wait(GROUPS, here); }
template <int COUNT> EMULATED void products_made(float (&)[COUNT]) {}
EMULATED u64 operand_of(u32 address) { return (u64)(address >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62; }
EMULATED u32 operand_low(u32 address) { return address >> 4 | 1u << 16; }
EMULATED u64 operand_at(u32 low) { return (u64)(1024 >> 4 | 1u << 30) << 32 | low; }
EMULATED u64 turned_operand_of(u32 address, u32 stride) {
    return (u64)(address >> 4) | (u64)(stride >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
template <int COLUMNS_HERE> EMULATED void multiply_add(float* sums, const u32 (&a)[4], u64 b) {
    const emulation::Product product = {sums, COLUMNS_HERE, a, 0, b, false, false, false, 0};
    emulation_multiply_add(&product);
}
template <int COLUMNS_HERE> EMULATED void multiply_first(float* sums, const u32 (&a)[4], u64 b) {
    const emulation::Product product = {sums, COLUMNS_HERE, a, 0, b, false, false, true, 0};
    emulation_multiply_add(&product);
}
template <int COLUMNS_HERE> EMULATED void multiply_by_turned(float* sums, const u32 (&a)[4], u64 b) {
    const emulation::Product product = {sums, COLUMNS_HERE, a, 0, b, false, true, false, 0};
    emulation_multiply_add(&product);
}
template <int COLUMNS_HERE> EMULATED void multiply_shared(float* sums, u64 a, u64 b) {
    const emulation::Product product = {sums, COLUMNS_HERE, nullptr, a, b, false, false, false, 0};
    emulation_multiply_add(&product);
}
template <int COLUMNS_HERE> EMULATED void multiply_turned(float* sums, u64 a, u64 b) {
    const emulation::Product product = {sums, COLUMNS_HERE, nullptr, a, b, true, false, false, 0};
    emulation_multiply_add(&product);
}

// Matrices that are stored: lane i names where row, or column, i % 8 of matrix i / 8 goes.
EMULATED void store_each(u32 named, const u32* registers, int count, bool is_turned, emulation::Site here) {
    const int lane = emulated_lane();
    for (int m = 0; m < count; m++) {
        u16 numbers[8];
        for (int i = 0; i < 8; i++) {
            const int row = is_turned ? i : lane % 8, column = is_turned ? lane % 8 : i;
            numbers[i] = (u16)(__shfl_sync(0xffffffffu, registers[m], row * 4 + column / 2, 32, here) >> (column % 2 * 16));
        }
        if (lane / 8 == m) emulation_store(named, numbers, sizeof(numbers), here);
    }
}
EMULATED void store_turned(u32 column, u32 a, u32 b, HERE) {
    const u32 registers[] = {a, b};
    store_each(column, registers, 2, true, here);
}
EMULATED void store_turned(u32 column, u32 a, u32 b, u32 c, u32 d, HERE) {
    const u32 registers[] = {a, b, c, d};
    store_each(column, registers, 4, true, here);
}
EMULATED void store_matrices(u32 row, u32 a, u32 b, u32 c, u32 d, HERE) {
    const u32 registers[] = {a, b, c, d};
    store_each(row, registers, 4, false, here);
}
