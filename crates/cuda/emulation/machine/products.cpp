// Hopper's products of warpgroups: started, ended in groups, and waited for. They are made when they are waited for, as late as a card
// may, so that whoever changes an operand before has a wrong result. A warp's sixteen rows depend on no other warp's.
#include "worker.h"

namespace emulation {

static constexpr unsigned depth = 16, rows = 16;

static float number_of_half(u32 bits) { return static_cast<float>(__builtin_bit_cast(_Float16, static_cast<unsigned short>(bits))); }

// Number `k` along the depth of a line (a row, or a column) of an operand in shared memory. Rows of 128 bytes, eights of them as far apart
// as the operand says, 16-byte parts swizzled by row: a row is a line, or where the operand is turned 64 lines at one place of the depth.
static float number_of(Worker& w, u64 operand, unsigned line, unsigned k, bool is_turned) {
    auto field = [&](unsigned at) { return static_cast<u32>(operand >> at & 0x3fff) << 4; };
    u32 row = is_turned ? k : line, column = is_turned ? line % 64 : k;
    u32 address = field(0) + row / 8 * field(32) + row % 8 * 128 + column * 2 + (is_turned ? line / 64 * field(16) : 0);
    address ^= (address >> 7 & 7) << 4;
    const u8* at = w.shared_place(w.block(), address, 2, {});
    return number_of_half(at[0] | at[1] << 8);
}

// Exact products, their sum with the number before rounded once. A card rounds in between; what it does is not written down.
static void multiply_one(Worker& w, const Product (&parts)[lanes]) {
    float a[rows][depth];
    // Of the warpgroup's 64 rows a warp has 16.
    const unsigned first = w.thread().place.thread.x / lanes % 4 * rows;
    for (unsigned lane = 0; lane < lanes; lane++) {
        for (unsigned r = 0; r < 4; r++) {
            for (unsigned i = 0; i < 2; i++) {
                const unsigned row = lane / 4 + r % 2 * 8, k = lane % 4 * 2 + i + r / 2 * 8;
                const Product& part = parts[lane];
                a[row][k] = part.a ? number_of_half(part.a[r] >> (16 * i)) : number_of(w, part.a_shared, first + row, k, part.a_is_turned);
            }
        }
    }
    for (unsigned column = 0; column < parts[0].columns; column++) {
        float b[depth];
        for (unsigned k = 0; k < depth; k++) b[k] = number_of(w, parts[0].b, column, k, parts[0].b_is_turned);
        for (unsigned row = 0; row < rows; row++) {
            float& sum = parts[row % 8 * 4 + column % 8 / 2].sums[column / 8 * 4 + row / 8 * 2 + column % 2];
            double exact = parts[0].is_first ? 0.0 : sum;
            for (unsigned k = 0; k < depth; k++) exact += static_cast<double>(a[row][k]) * b[k];
            sum = static_cast<float>(exact);
        }
    }
}

void multiply_add(Worker& w, const u64 (&brought)[lanes]) {
    auto thread = [&](unsigned lane) -> Thread& { return *reinterpret_cast<Thread*>(brought[lane]); };
    size_t ready = 0, count = thread(0).products.size();
    while (ready < count && thread(0).products[ready].group + thread(0).product_groups_left < thread(0).product_groups) ready++;
    for (size_t i = 0; i < ready; i++) {
        Product parts[lanes];
        for (unsigned lane = 0; lane < lanes; lane++) {
            const auto& all = thread(lane).products;
            if (all.size() != count || all[i].b != thread(0).products[i].b) w.fail({.kind = Fault::Divergent, .site = w.thread().site});
            parts[lane] = all[i];
        }
        multiply_one(w, parts);
    }
    for (unsigned lane = 0; lane < lanes; lane++) {
        auto& all = thread(lane).products;
        all.erase(all.begin(), all.begin() + static_cast<long>(ready));
    }
}

} // namespace emulation

using namespace emulation;

extern "C" void emulation_multiply_add(const Product* product) {
    Thread& thread = worker->thread();
    thread.products.push_back(*product);
    thread.products.back().group = thread.product_groups;
}

extern "C" void emulation_products_commit() { worker->thread().product_groups++; }

extern "C" void emulation_products_wait(u32 groups, Site site) {
    Thread& thread = worker->thread();
    thread.product_groups_left = groups;
    worker->meet(Meeting::Products, ~0u, reinterpret_cast<u64>(&thread), site);
}
