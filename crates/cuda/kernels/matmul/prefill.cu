// Products of prompt rows on Hopper: f16 operands, f32 sums, weights expanded in flight.
//
// A block is persistent: it takes tile after tile of ROWS weight rows by TOKENS columns. One warp brings activations, another packed
// weights, both by bulk copies into rings of shared memory; the other warpgroups expand weights into registers, which are the first operand
// of `wgmma`, while the product before runs. Blocks of a cluster have the same columns, and each brings a part of them for all.
//
// A number's sum goes along the depth in one fixed order, by sixteens, in `splits` parts that are added in order; what stands in other
// columns or rows of a tile, and how large tiles are, does not reach it.
//
// x is what quantize/halves.cu leaves: [slices][depth / 64][eights of rows][8][64] f16, swizzled as the second operand wants it. Eights
// of rows never hold two segments'.

#define SUMS (TOKENS / 2)
#define X_BYTES (TOKENS * BLOCK * 2)
#define SHARED_BYTES (STAGES * X_BYTES + WEIGHT_STAGES * WEIGHT_BYTES)

static_assert(TOKENS % (8 * CLUSTER) == 0, "a tile of whole operands");

// Columns of the product that takes `left` of them: the widest is the tile's.
DEVICE u32 width_of(u32 left) {
#if TOKENS == 256
    return left <= 128 ? 128 : left <= 192 ? 192 : left <= 208 ? 208 : left <= 224 ? 224 : 256;
#elif TOKENS == 128
    return left <= 64 ? 64 : 128;
#elif TOKENS == 64
    return left <= 48 ? 48 : left <= 56 ? 56 : 64;
#else
    return TOKENS;
#endif
}

// What a warpgroup that multiplies goes through: its rows of the rings.
struct Consumer {
    const u8* ring;
    u32 x_stages, lane, own_row;
    Barriers barriers;
    float up;
    u32 up_pair;
    Ring<STAGES> x_at;
    Ring<WEIGHT_STAGES> w_at;

    // The packed rows of this warp, in the stage of weights at hand.
    DEVICE_MEMBER const u8* rows() const {
        return ring + w_at.stage * WEIGHT_BYTES + own_row / TILE_ROWS * TILE_BYTES + own_row % TILE_ROWS * 16;
    }
    DEVICE_MEMBER void give_x(u32 stage) const {
        if (lane >= CLUSTER) return;
#if CLUSTER > 1
        barrier_arrive_at(barriers.x_empty + 8 * stage, lane);
#else
        barrier_arrive(barriers.x_empty + 8 * stage);
#endif
    }
    DEVICE_MEMBER void give_weights() {
        reads_before_copies();
        __syncwarp();
        if (lane == 0) barrier_arrive(barriers.weights_empty + 8 * w_at.stage);
        w_at.next();
    }

    // Sums of blocks `start .. end` of the depth, for WIDTH columns. Two warpgroups keep the tensor cores busy by leaving half a block's
    // product running while the next half's operand is expanded.
    template <int WIDTH> DEVICE_MEMBER void multiply_in_halves(float (&sums)[SUMS], u32 start, u32 end) {
        auto products = [&](const Operands& a, u64 operand) {
            products_begin();
            multiply_add<WIDTH>(sums, a.half[0], operand);
            multiply_add<WIDTH>(sums, a.half[1], operand + 2);
            products_commit();
        };
        Operands first, second;
        Unit unit;
        barrier_wait(barriers.weights_full + 8 * w_at.stage, w_at.parity);
        unit.load(rows(), 0, lane, up, up_pair);
        unit.expand(first, up);
        u32 stage_before = x_at.stage;
        for (u32 b = start; b < end; b += SPAN) {
            // Places of a chunk's many parts are worked out when it is compiled; of a few, as it runs.
#pragma unroll(SPAN > 2 ? SPAN : 1)
            for (u32 u = 0; u < SPAN; u++) {
                if (u > 0 && CHUNK_FEATURES < SPAN * BLOCK && b + u >= end) break;
                const u64 operand = operand_of(x_stages + x_at.stage * X_BYTES);
                barrier_wait(barriers.x_full + 8 * x_at.stage, x_at.parity);
                products(first, operand);
                unit.load(rows(), 2 * u + 1, lane, up, up_pair);
                // The second half of the block before: its operand, and its stage, are free.
                products_wait<1>();
                if (b + u > start) give_x(stage_before);
                unit.expand(second, up);
                products(second, operand + 4);
                stage_before = x_at.stage;
                x_at.next();
                if (u == SPAN - 1 || b + u + 1 >= end) give_weights();
                if (b + u + 1 < end) {
                    if (u == SPAN - 1) barrier_wait(barriers.weights_full + 8 * w_at.stage, w_at.parity);
                    unit.load(rows(), u == SPAN - 1 ? 0 : 2 * u + 2, lane, up, up_pair);
                }
                products_wait<1>();
                if (b + u + 1 < end) unit.expand(first, up);
            }
        }
        products_wait<0>();
        give_x(stage_before);
    }
    // The same of more warpgroups, which take turns: each with the operands of a block, for more there are no registers.
    template <int WIDTH> DEVICE_MEMBER void multiply_in_blocks(float (&sums)[SUMS], u32 start, u32 end) {
        Operands a[2];
        Unit units[2];
        auto expand = [&] {
            units[0].expand(a[0], up);
            units[1].expand(a[1], up);
        };
        barrier_wait(barriers.weights_full + 8 * w_at.stage, w_at.parity);
        load_block(units, rows(), 0, lane, up, up_pair);
        expand();
        for (u32 b = start; b < end; b += SPAN) {
#pragma unroll
            for (int u = 0; u < SPAN; u++) {
                if (u > 0 && CHUNK_FEATURES < SPAN * BLOCK && b + u >= end) break;
                const u64 operand = operand_of(x_stages + x_at.stage * X_BYTES);
                barrier_wait(barriers.x_full + 8 * x_at.stage, x_at.parity);
                products_begin();
#pragma unroll
                for (int h = 0; h < 4; h++) multiply_add<WIDTH>(sums, a[h / 2].half[h % 2], operand + h * 2);
                products_commit();
                if (u == SPAN - 1 || b + u + 1 >= end) give_weights();
                if (b + u + 1 < end) {
                    if (u == SPAN - 1) barrier_wait(barriers.weights_full + 8 * w_at.stage, w_at.parity);
                    load_block(units, rows(), u == SPAN - 1 ? 0 : u + 1, lane, up, up_pair);
                }
                products_wait<0>();
                give_x(x_at.stage);
                x_at.next();
                if (b + u + 1 < end) expand();
            }
        }
    }
    template <int WIDTH> DEVICE_MEMBER void multiply(float (&sums)[SUMS], u32 start, u32 end) {
        if constexpr (CONSUMERS > 2) multiply_in_blocks<WIDTH>(sums, start, end);
        else multiply_in_halves<WIDTH>(sums, start, end);
    }
    DEVICE_MEMBER void multiply(float (&sums)[SUMS], u32 start, u32 end, u32 width) {
#if TOKENS == 256
        if (width == 128) return multiply<128>(sums, start, end);
        if (width == 192) return multiply<192>(sums, start, end);
        if (width == 208) return multiply<208>(sums, start, end);
        if (width == 224) return multiply<224>(sums, start, end);
#elif TOKENS == 128
        if (width == 64) return multiply<64>(sums, start, end);
#elif TOKENS == 64
        if (width == 48) return multiply<48>(sums, start, end);
        if (width == 56) return multiply<56>(sums, start, end);
#endif
        multiply<TOKENS>(sums, start, end);
    }
};

// weights [segments][tiles of TILE_ROWS][chunks]; x_scales for each row of x; y rows of `y_stride`, or where `parts` are wanted
// [splits][tokens][rows] of them, without the bias. `order` as in columns.cuh; `up` and `down` are the matrix's power of two and what
// undoes it.
KERNEL
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, 1) prefill(const u8* weights, const u8* x, const float* x_scales, float* y, float* parts, const float* bias,
                                      const u32* starts, const u32* order, u32 rows, u32 depth, u32 tokens, u32 segments,
                                      u32 x_eights, u32 y_stride, u32 splits, u32 sliced, float up, float down) {
    after_earlier_work();
    DYNAMIC_SHARED(u8, dynamic);
    u8* shared = dynamic + ((1024 - (shared_address(dynamic) & 1023)) & 1023);
    u8* const ring = shared + STAGES * X_BYTES;
    const u32 x_stages = shared_address(shared), weight_stages = shared_address(ring);
    const Barriers barriers(weight_stages + WEIGHT_STAGES * WEIGHT_BYTES);
    u8* behind = shared + SHARED_BYTES + BARRIER_BYTES;
    float* const column_scales = (float*)behind;
    u32* const column_places = (u32*)behind + TOKENS;
    u32* const before = column_places + TOKENS;
    const u32 rank = CLUSTER > 1 ? block_of_cluster() : 0;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    const u32 row_tiles = (rows + ROWS * CLUSTER - 1) / (ROWS * CLUSTER), blocks = (depth + BLOCK - 1) / BLOCK;
    const Problem p = {starts, tokens, segments, row_tiles, blocks, splits, parts != 0, before};
    const u32 tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    const u64 tile_bytes = (u64)((depth + CHUNK_FEATURES - 1) / CHUNK_FEATURES) * CHUNK;

    begin_walk(p, before, barriers, ring, depth);

    const u32 step = gridDim.x / CLUSTER, count = p.count();
    u32 segment = 0;
    if (warp >= CONSUMERS * 4) {
        give_registers<GIVEN_REGISTERS>();
        if (warp == CONSUMERS * 4 && lane == 0) {
            Ring<STAGES> at;
            at.parity = 1;
            for (u32 t = blockIdx.x / CLUSTER; t < count; t += step) {
                Tile tile(p, t, segment);
                const u32 width = width_of(p.columns(tile.segment) - tile.column), bytes = width * BLOCK * 2 / CLUSTER;
                u32 first = first_row(starts, tile.segment) + tile.column + rank * (width / CLUSTER), slice = sliced ? tile.segment : 0;
                u32 s0 = p.is_parted ? tile.part : 0, s1 = p.is_parted ? tile.part + 1 : splits, start, end, unused;
                part_of(p, s0, start, unused);
                part_of(p, s1 - 1, unused, end);
                const u8* from = x + ((u64)(slice * p.blocks + start) * x_eights + first / 8) * (8 * BLOCK * 2);
                for (u32 b = start; b < end; b++, from += (u64)x_eights * (8 * BLOCK * 2)) {
                    barrier_wait(barriers.x_empty + 8 * at.stage, at.parity);
                    barrier_expect(barriers.x_full + 8 * at.stage, bytes * CLUSTER);
                    u32 to = x_stages + at.stage * X_BYTES + rank * bytes;
#if CLUSTER > 1
                    copy_bulk_to_all(to, from, bytes, barriers.x_full + 8 * at.stage, (1 << CLUSTER) - 1);
#else
                    copy_bulk(to, from, bytes, barriers.x_full + 8 * at.stage);
#endif
                    at.next();
                }
            }
        } else if (warp == CONSUMERS * 4 + 1) {
            Ring<WEIGHT_STAGES> at;
            at.parity = 1;
            for (u32 t = blockIdx.x / CLUSTER; t < count; t += step) {
                Tile tile(p, t, segment);
                const u32 s0 = p.is_parted ? tile.part : 0, s1 = p.is_parted ? tile.part + 1 : splits;
                u32 start, end, unused;
                part_of(p, s0, start, unused);
                part_of(p, s1 - 1, unused, end);
                bring_weights(weights, tile, rank, lane, tiles, tile_bytes, start, end, weight_stages, barriers, at);
            }
        }
    } else {
        take_registers<TAKEN_REGISTERS>();
        // The first row, of the tile, that this warp multiplies.
        const u32 own_row = warp * 16;
        Consumer consumer = {ring, x_stages, lane, own_row, barriers, up, pair_of_halves(up, up)};
        for (u32 t = blockIdx.x / CLUSTER; t < count; t += step) {
            Tile tile(p, t, segment);
            const u32 column_count = p.columns(tile.segment);
            // On its way while the tile is multiplied.
            const u32 own_column = tile.column + threadIdx.x;
            float own_scale = 0.0f;
            u32 own_place = 0xffffffffu;
            if (threadIdx.x < TOKENS && own_column < column_count) {
                own_scale = x_scales[first_row(starts, tile.segment) + own_column];
                own_place = order ? order[starts[tile.segment] + own_column] : own_column;
            }
            float sums[SUMS];
#if TOTALS
            float totals[SUMS];
#endif
            const u32 s0 = p.is_parted ? tile.part : 0, s1 = p.is_parted ? tile.part + 1 : splits;
            for (u32 s = s0; s < s1; s++) {
                u32 start, end;
                part_of(p, s, start, end);
#pragma unroll
                for (int i = 0; i < SUMS; i++) sums[i] = 0.0f;
                consumer.multiply(sums, start, end, width_of(column_count - tile.column));
#if TOTALS
#pragma unroll
                for (int i = 0; i < SUMS; i++) totals[i] = s == s0 ? sums[i] : totals[i] + sums[i];
#endif
            }
#if TOTALS
            auto& result = totals;
#else
            auto& result = sums;
#endif
            // Scales and places of the columns, for all.
            wait_for_threads(1, CONSUMERS * 128);
            if (threadIdx.x < TOKENS) {
                column_scales[threadIdx.x] = p.is_parted ? 1.0f : own_scale * down;
                column_places[threadIdx.x] = p.is_parted && own_place != 0xffffffffu ? tile.part * tokens + own_column : own_place;
            }
            wait_for_threads(1, CONSUMERS * 128);
            const u32 row = (tile.row_tile * CLUSTER + rank) * ROWS + own_row + lane / 4;
            float* const out = p.is_parted ? parts + row : y + (sliced ? tile.segment * rows : 0) + row;
            const u32 stride = p.is_parted ? rows : y_stride;
            const float added[2] = {bias && row < rows ? bias[tile.segment * rows + row] : 0.0f,
                                    bias && row + 8 < rows ? bias[tile.segment * rows + row + 8] : 0.0f};
#pragma unroll
            for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const u32 column = j * 8 + lane % 4 * 2 + e, place = column_places[column];
                    if (place == 0xffffffffu) continue;
                    const float scale = column_scales[column];
                    float* const at = out + (u64)place * stride;
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        float value = result[j * 4 + h * 2 + e] * scale;
                        if (row + h * 8 < rows) at[h * 8] = bias ? value + added[h] : value;
                    }
                }
        }
    }
    // Nobody leaves while another block may still write here.
    if (CLUSTER > 1) wait_for_cluster();
}

// y (tokens, rows) = the parts of each sum, in order, scaled, and the bias.
KERNEL add_parts(const float* parts, const float* x_scales, float* y, const float* bias, u32 rows, u32 tokens, u32 y_stride,
                 u32 splits, float down) {
    after_earlier_work();
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x, count = (u64)rows * tokens;
    if (at >= count) return;
    u32 token = (u32)(at / rows), row = (u32)(at % rows);
    float sum = parts[at];
    for (u32 s = 1; s < splits; s++) sum = sum + parts[s * count + at];
    sum = sum * (x_scales[token] * down);
    y[(u64)token * y_stride + row] = bias ? sum + bias[row] : sum;
}
