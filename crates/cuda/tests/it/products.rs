//! Products of codes in every tile, and of plain weights in every shape of a block: all give the reference's bits. On a card, or an emulated one:
//! `tools/emulate env EMULATED_CARD=capability=9.0 cargo test -p tessera-cuda reference`.

use tessera_cuda::{
    matmul::{
        Packed,
        many_tile::ManyTile,
        select,
        wide_tile::{Tile, WideTile, shared_bytes_max},
    },
    measure::{Form, Subject},
};
use tessera_formats::DType;

/// One of each kind of layout, with rows and depth of a matrix, and tokens. Depths have fewer segments than a tile has parts, as many, and
/// more, a last one that is longer, and chunks that fill no step.
type Case = (DType, Form, (usize, usize), &'static [usize]);
const CASES: [Case; 7] = [
    (DType::Q8_0, Form::Dense, (150, 2144), &[3, 70]),
    (DType::Q4_K, Form::Dense, (40, 4096), &[9]),
    (DType::Q2_K, Form::Dense, (70, 768), &[2]),
    (DType::IQ2_S, Form::Dense, (48, 512), &[5]),
    (DType::Q5_1, Form::Grouped(3), (20, 576), &[10]),
    (DType::MXFP4, Form::Experts { count: 5, slots: 2 }, (40, 544), &[1]),
    (DType::IQ2_XXS, Form::Experts { count: 7, slots: 2 }, (72, 512), &[1]),
];

#[test]
fn every_tile_of_codes_gives_the_reference_s_bits() {
    // What is missing where there is no card, the test of the audit tells.
    let Some((_alone, device)) = crate::opened_card() else { return };
    let name = tessera_ops::Device::name(&device);
    let arch = ["sm_90a", "sm_80"].into_iter().find(|arch| name.contains(arch));
    for (dtype, form, shape, widths) in CASES {
        let Some(Packed::Codes(layout)) = select(dtype) else { panic!("{dtype} has codes") };
        for &tokens in widths {
            let mut subject = Subject::single(&device, dtype, form, shape).unwrap();
            assert!(subject.check(tokens).unwrap(), "{dtype} {shape:?}, {tokens} tokens in the table's tile");
            let parted = WideTile { row_tiles: 1, column_tiles: 2, fold: 1, teams: 2, parts: 4, blocks: 1, stages: 0 };
            let all = |arch| {
                let parted = Tile::Wide(parted.with_ring(layout, shared_bytes_max(arch)));
                Tile::all(layout, arch).into_iter().chain([parted]).collect::<Vec<_>>()
            };
            for tile in arch.map_or(vec![], all) {
                // Of the narrow ones, those that few shapes have; the audit goes over the others.
                let is_common = matches!(tile, Tile::Narrow(tile) if !tile.is_for_some());
                if is_common || tile.columns() >= 3 * tokens.max(3) || tile.columns() * 4 < tokens {
                    continue;
                }
                subject.force_tile(tile);
                assert!(subject.check(tokens).unwrap(), "{dtype} {shape:?}, {tokens} tokens in {tile:?}");
            }
        }
    }
}

/// More experts than places, and one that has a place of every token: of more columns than a narrow tile, and a wide one.
const CROWDED: [(DType, &[usize]); 3] = [(DType::IQ2_XXS, &[3, 9]), (DType::Q2_K, &[4]), (DType::Q8_0, &[9])];

#[test]
fn crowded_experts_give_the_reference_s_bits() {
    let Some((_alone, device)) = crate::opened_card() else { return };
    for (dtype, widths) in CROWDED {
        let Some(Packed::Codes(layout)) = select(dtype) else { panic!("{dtype} has codes") };
        let form = Form::Experts { count: 20, slots: 2 };
        let mut subject = Subject::single(&device, dtype, form, (72, 512)).unwrap();
        subject.crowd();
        for &tokens in widths {
            assert!(subject.check(tokens).unwrap(), "{dtype}, {tokens} tokens in the table's tile");
        }
        for tile in Tile::all(layout, "sm_80") {
            if matches!(tile, Tile::Narrow(tile) if tile.is_for_some()) || tile.columns() > 16 {
                continue;
            }
            subject.force_tile(tile);
            assert!(subject.check(widths[0]).unwrap(), "{dtype}, {} tokens in {tile:?}", widths[0]);
        }
    }
}

/// Many columns: tiles that are whole, half and neither; segments that are summed and one alone; sub-blocks of both sizes, with minima and
/// without; a last block of 32 features; columns of groups, and of experts, some of which have none.
const MANY: [Case; 8] = [
    (DType::Q8_0, Form::Dense, (150, 2144), &[66, 130]),
    (DType::Q4_K, Form::Dense, (40, 1024), &[40]),
    (DType::Q2_K, Form::Dense, (70, 768), &[70]),
    (DType::Q6_K, Form::Dense, (20, 512), &[1]),
    (DType::IQ2_S, Form::Dense, (48, 256), &[65]),
    (DType::Q5_1, Form::Grouped(3), (20, 576), &[33]),
    (DType::Q4_0, Form::Grouped(2), (140, 544), &[35]),
    (DType::MXFP4, Form::Experts { count: 5, slots: 2 }, (40, 544), &[3, 170]),
];

#[test]
fn many_columns_give_the_reference_s_bits() {
    let Some((_alone, device)) = crate::opened_card() else { return };
    let name = tessera_ops::Device::name(&device);
    let arch = if name.contains("sm_90a") { "sm_90a" } else { return };
    for (dtype, form, shape, widths) in MANY {
        let Some(Packed::Codes(layout)) = select(dtype) else { panic!("{dtype} has codes") };
        for tile in ManyTile::all(layout, arch) {
            let mut subject = Subject::single(&device, dtype, form, shape).unwrap();
            subject.force_tile(Tile::Many(tile));
            for &tokens in widths {
                assert!(subject.check(tokens).unwrap(), "{dtype} {form:?} {shape:?}, {tokens} tokens in {tile:?}");
            }
        }
    }
}

/// Plain weights: groups of rows that share no part, two and all; depths of one pass and of several, with parts, chains and runs that are not
/// whole; matrices of many rows; each tile; weights that wait for lists.
const PLAIN: [Case; 12] = [
    (DType::F16, Form::Dense, (40, 2144), &[1, 3, 9]),
    (DType::BF16, Form::Dense, (37, 4100), &[1, 5]),
    (DType::F32, Form::Dense, (9, 8712), &[1, 7]),
    (DType::F32, Form::Dense, (33, 3), &[2]),
    (DType::F16, Form::Dense, (4100, 1030), &[1]),
    (DType::F16, Form::Dense, (1030, 2060), &[3, 9]),
    (DType::F32, Form::Dense, (2060, 1030), &[4, 9]),
    (DType::BF16, Form::Dense, (4100, 130), &[5, 9]),
    (DType::F16, Form::Grouped(3), (20, 700), &[1, 5]),
    (DType::F16, Form::Grouped(3), (700, 520), &[5]),
    (DType::F16, Form::Experts { count: 5, slots: 2 }, (40, 1100), &[1, 6]),
    (DType::BF16, Form::Experts { count: 5, slots: 2 }, (420, 300), &[3, 9]),
];

#[test]
fn plain_weights_give_the_reference_s_bits() {
    let Some((_alone, device)) = crate::opened_card() else { return };
    for (dtype, form, shape, widths) in PLAIN {
        for &tokens in widths {
            let subject = Subject::single(&device, dtype, form, shape).unwrap();
            assert!(subject.check(tokens).unwrap(), "{dtype} {form:?} {shape:?}, {tokens} tokens");
        }
    }
}
