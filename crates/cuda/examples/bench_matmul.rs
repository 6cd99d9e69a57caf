//! Times decode products on a card: `cargo run --release -p tessera-cuda --example bench_matmul [SHAPE FORMATS COLUMNS [tiles]]`.
//!
//! SHAPE is `32768x8192`; `8/1024x4096` for 8 groups, each of which meets its slice of a row; `256:6x2048x4096` for 256 experts, 6 of
//! them a token. Formats and columns have commas between.
//!
//! Weights are random and cold in the cache; every figure's result is held to the reference first. GB/s are of the file's bytes, of
//! experts those that are met. With `tiles`, tiles of many shapes are measured beside the table's own; with `check` instead, they are only
//! held to the reference. With `turn`, a norm and a product take turns, as in a step of a model; with `pair`, two
//! products of one input are one launch, as an expert's gate and up are; with `crowd`, one expert has a column of every token.

use tessera_cuda::{
    Cache, CudaDevice,
    matmul::{
        Packed,
        layout::Layout,
        many_tile::ManyTile,
        select,
        tile::CodesTile,
        wide_tile::{Tile, WideTile, shared_bytes_max},
    },
    measure::{Form, Measured, Subject},
};
use tessera_formats::DType;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Row tiles of a warp, blocks of a processor, warps of a tile and of a block.
const NARROW: [(usize, usize, usize, usize); 15] = [
    (1, 1, 8, 8),
    (2, 1, 8, 8),
    (1, 2, 8, 8),
    (1, 3, 8, 8),
    (1, 4, 4, 4),
    (1, 6, 4, 4),
    (2, 2, 8, 8),
    (2, 3, 8, 8),
    (2, 2, 4, 8),
    (2, 4, 4, 4),
    (2, 5, 4, 4),
    (2, 4, 2, 4),
    (4, 2, 8, 8),
    (4, 3, 4, 4),
    (4, 4, 4, 4),
];

/// Row tiles of a warp, blocks of a processor, teams and parts.
const WIDE: [(usize, usize, usize, usize); 9] = [
    (1, 4, 4, 1),
    (2, 1, 8, 1),
    (2, 2, 8, 1),
    (2, 2, 4, 1),
    (2, 3, 4, 1),
    (2, 4, 4, 1),
    (4, 1, 8, 1),
    (4, 2, 4, 1),
    (4, 3, 4, 1),
];

/// Warpgroups, columns and their pieces, and blocks of a cluster.
const MANY: [(usize, usize, usize, usize); 3] = [(2, 64, 2, 1), (2, 128, 2, 1), (2, 128, 2, 2)];

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &'static str| arguments.get(index).cloned().unwrap_or(default.to_owned());
    let (shape, formats) = (argument(0, "32768x8192"), argument(1, "Q8_0,Q4_K"));
    let columns: Vec<usize> = argument(2, "1,2,4,8,16,64").split(',').map(str::parse).collect::<Result<_, _>>()?;
    let cache = std::env::var_os("TESSERA_CUDA_CACHE").map(Into::into);
    let device = CudaDevice::open(0, Cache::new(cache))?;
    println!("{}, [{shape}]", tessera_ops::Device::name(&device));
    let (form, of_one) = form(&shape)?;
    for format in formats.split(',') {
        let dtype = DType::from_name(format).ok_or(format!("no format {format}"))?;
        let is_timed = argument(3, "") != "check";
        let make = if is_timed { Subject::new } else { Subject::single };
        let mut subject = make(&device, dtype, form, of_one)?;
        if argument(3, "") == "crowd" {
            subject.crowd();
        }
        for &count in &columns {
            if is_timed {
                line(&format!("{format} {count}"), subject.measure(count)?);
            } else if !subject.check(count)? {
                line(&format!("{format} {count}"), None);
            }
        }
        for &count in columns.iter().filter(|_| argument(3, "") == "pair") {
            println!("{format} {count}, two of one input: {:.1} us", subject.measure_pair(count)?);
        }
        for &count in columns.iter().filter(|_| argument(3, "") == "turn") {
            let [both, norm] = subject.measure_in_turn(count)?;
            println!("{format} {count}, after a norm: {both:.1} us, the norm alone {norm:.1}");
        }
        if ["tiles", "check"].contains(&argument(3, "").as_str())
            && let Some(Packed::Codes(layout)) = select(dtype)
        {
            for &count in &columns {
                tiles(&mut subject, layout, &format!("{format} {count}"), count, is_timed)?;
            }
        }
    }
    Ok(())
}

fn form(shape: &str) -> Outcome<(Form, (usize, usize))> {
    let numbers: Vec<usize> = shape.split([':', 'x', '/']).map(str::parse).collect::<Result<_, _>>()?;
    Ok(match numbers[..] {
        [rows, depth] => (Form::Dense, (rows, depth)),
        [count, rows, depth] => (Form::Grouped(count), (rows, depth)),
        [count, slots, rows, depth] => (Form::Experts { count, slots }, (rows, depth)),
        _ => return Err(format!("{shape} is no shape").into()),
    })
}

fn tiles(subject: &mut Subject<'_>, layout: Layout, name: &str, columns: usize, is_timed: bool) -> Outcome<()> {
    let mut tiles = vec![];
    for (fold, (row_tiles, blocks, warps, block_warps)) in [1, 2, 4].into_iter().flat_map(|f| NARROW.map(|s| (f, s))) {
        let tile =
            CodesTile { row_tiles, column_tiles: 1, fold, blocks, warps, block_warps, stages: 2, is_staged: false };
        let tile = tile.with_ring(layout).staged(layout, "sm_90a");
        let is_near = tile.columns() >= columns && (tile.row_tiles == 1 || tile.columns() < 3 * columns.max(2));
        if columns <= 8 && tile.is_sound(layout) && is_near {
            tiles.push(Tile::Narrow(tile));
        }
    }
    let room = shared_bytes_max("sm_90a");
    let runs = [(1, 4), (1, 2), (1, 1), (2, 1), (4, 1), (8, 1)];
    for ((column_tiles, fold), (row_tiles, blocks, teams, parts)) in runs.into_iter().flat_map(|r| WIDE.map(|s| (r, s)))
    {
        let tile = WideTile { row_tiles, column_tiles, fold, teams, parts, blocks, stages: 0 }.with_ring(layout, room);
        let is_near = tile.columns() >= columns && tile.columns() < 3 * columns.max(2);
        if (is_near || column_tiles == 8 && columns > 64) && tile.is_sound(layout, room) {
            tiles.push(Tile::Wide(tile));
        }
    }
    for (consumers, tokens, pieces, cluster) in MANY.into_iter().filter(|many| columns > many.1 / 2) {
        let tile = ManyTile { consumers, tokens, pieces, cluster, cost_percent: 100 };
        if tile.is_sound(layout) {
            tiles.push(Tile::Many(tile));
        }
    }
    subject.prepare(&tiles)?;
    println!("{name}: {} other tiles", tiles.len());
    for tile in tiles {
        subject.force_tile(tile);
        let tile = match tile {
            Tile::Narrow(CodesTile { row_tiles, fold, blocks, warps, block_warps, stages, .. }) => {
                format!(
                    "{row_tiles} rows, fold {fold}, {blocks} blocks, warps {warps} of {block_warps}, stages {stages}"
                )
            }
            Tile::Wide(WideTile { row_tiles, column_tiles, fold, teams, parts, blocks, stages }) => {
                format!(
                    "{row_tiles}x{column_tiles} fold {fold}, {blocks} blocks, teams {teams}, parts {parts}, stages {stages}"
                )
            }
            Tile::Many(ManyTile { consumers, tokens, pieces, cluster, .. }) => {
                format!("many: {consumers} warpgroups, {tokens} columns in {pieces} pieces, cluster {cluster}")
            }
        };
        if is_timed {
            line(&format!("{name}: {tile}"), subject.measure(columns)?);
        } else if !subject.check(columns)? {
            line(&format!("{name}: {tile}"), None);
        }
    }
    Ok(())
}

fn line(name: &str, measured: Option<Measured>) {
    match measured {
        Some(Measured { product_us, quantize_us, file_bytes, packed_bytes }) => {
            let speed = |bytes: f64| bytes / product_us / 1e3;
            let (file, packed) = (speed(file_bytes), speed(packed_bytes));
            println!(
                "{name:56} {product_us:9.1} us {file:7.0} GB/s (packed {packed:5.0}), quantize {quantize_us:5.1} us"
            );
        }
        None => println!("{name:56} WRONG"),
    }
}
