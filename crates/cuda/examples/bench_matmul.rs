//! Times decode products on a card: `cargo run --release -p tessera-cuda --example bench_matmul [ROWS DEPTH FORMATS COLUMNS [tiles]]`,
//! FORMATS and COLUMNS with commas between.
//!
//! Weights are random and cold in the cache; every figure's result is held to the reference first. GB/s are of the file's bytes.
//! With `tiles`, tiles of many shapes are measured beside the table's own.

use tessera_cuda::{
    Cache, CudaDevice,
    matmul::{Packed, select, tile::CodesTile},
    measure::{Measured, Subject},
};
use tessera_formats::DType;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Row tiles of a warp, blocks of a processor, and warps of a tile.
const SHAPES: [(usize, usize, usize); 10] =
    [(1, 2, 8), (1, 2, 2), (1, 3, 8), (1, 3, 2), (2, 2, 8), (2, 2, 4), (2, 2, 2), (4, 1, 8), (4, 1, 2), (2, 1, 2)];

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &'static str| arguments.get(index).cloned().unwrap_or(default.to_owned());
    let (rows, depth) = (argument(0, "32768").parse()?, argument(1, "8192").parse()?);
    let formats = argument(2, "Q8_0,Q4_K");
    let columns: Vec<usize> = argument(3, "1,2,4,8,16,64").split(',').map(str::parse).collect::<Result<_, _>>()?;
    let cache = std::env::var_os("TESSERA_CUDA_CACHE").map(Into::into);
    let device = CudaDevice::open(0, Cache::new(cache))?;
    println!("{}, [{rows} x {depth}]", tessera_ops::Device::name(&device));
    for format in formats.split(',') {
        let dtype = DType::from_name(format).ok_or(format!("no format {format}"))?;
        let mut subject = Subject::new(&device, dtype, rows, depth)?;
        for &count in &columns {
            line(&format!("{format} {count}"), subject.measure(count)?);
        }
        if argument(4, "") == "tiles" {
            for &count in &columns {
                tiles(&mut subject, dtype, count)?;
            }
        }
    }
    Ok(())
}

fn tiles(subject: &mut Subject<'_>, dtype: DType, columns: usize) -> Outcome<()> {
    let Some(Packed::Codes(layout)) = select(dtype) else { return Ok(()) };
    let own = CodesTile::for_columns(layout, columns);
    let mut tiles = vec![];
    for (fold, (row_tiles, blocks, warps)) in [1, 2, 4].into_iter().flat_map(|f| SHAPES.map(|s| (f, s))) {
        // As many columns at once, or some.
        for column_tiles in [1, 2, 4, 8].into_iter().filter(|t| *t <= columns.div_ceil(8 / fold)) {
            let tile = CodesTile { row_tiles, column_tiles, fold, blocks, warps, stages: 2 }.with_ring(layout);
            if tile.is_sound(layout)
                && (fold == 1 || columns <= 8 / fold)
                && 4 * tile.columns() >= columns
                && tile != own
            {
                tiles.push(tile);
            }
        }
    }
    subject.prepare(&tiles)?;
    for tile in tiles {
        subject.force_tile(tile)?;
        let CodesTile { row_tiles, column_tiles, fold, blocks, warps, stages } = tile;
        let name = format!(
            "{dtype} {columns}: {row_tiles}x{column_tiles} fold {fold} blocks {blocks} warps {warps} stages {stages}"
        );
        line(&name, subject.measure(columns)?);
    }
    Ok(())
}

fn line(name: &str, measured: Option<Measured>) {
    match measured {
        Some(Measured { product_us, quantize_us, file_bytes, packed_bytes }) => {
            let speed = |bytes: usize| bytes as f64 / product_us / 1e3;
            let (file, packed) = (speed(file_bytes), speed(packed_bytes));
            println!(
                "{name:56} {product_us:9.1} us {file:7.0} GB/s (packed {packed:5.0}), quantize {quantize_us:5.1} us"
            );
        }
        None => println!("{name:56} WRONG"),
    }
}
