//! Times products of prompt rows on a card: `cargo run --release -p tessera-cuda --example bench_prefill [SHAPE FORMATS TOKENS [tiles]]`.
//!
//! SHAPE is `32768x8192`, or `64:6x2048x4096` for 64 experts, 6 of them a token; formats and tokens have commas between. Every result is
//! held to float64, NaN before it is written, and to the same bits in all tiles. `tools/bench_cublas.py` gives the library's figures.

use tessera_cuda::{
    Cache, CudaDevice,
    measure::prompt::{PromptMeasured, PromptSubject},
};
use tessera_formats::DType;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The farthest that f16 operands may be from float64, root mean square of what is summed: codes times scales are rounded once, where
/// there are scales of scales or minima some more times, and activations once.
const ERROR_MAX: f64 = 1.5e-3;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &'static str| arguments.get(index).cloned().unwrap_or(default.to_owned());
    let (shape, formats) = (argument(0, "32768x8192"), argument(1, "Q8_0,Q4_K,Q2_K,IQ2_XXS"));
    let tokens: Vec<usize> = argument(2, "64,128,512,2048").split(',').map(str::parse).collect::<Result<_, _>>()?;
    let all_tiles = argument(3, "") == "tiles";
    let numbers: Vec<usize> = shape.split([':', 'x']).map(str::parse).collect::<Result<_, _>>()?;
    let (experts, rows, depth) = match numbers[..] {
        [rows, depth] => (None, rows, depth),
        [count, slots, rows, depth] => (Some((count, slots)), rows, depth),
        _ => return Err(format!("{shape} is no shape").into()),
    };
    let cache = std::env::var_os("TESSERA_CUDA_CACHE").map(Into::into);
    let device = CudaDevice::open(0, Cache::new(cache))?;
    println!("{}, {shape}", tessera_ops::Device::name(&device));
    for format in formats.split(',') {
        let dtype = DType::from_name(format).ok_or(format!("no format {format}"))?;
        let mut subject = PromptSubject::new(&device, dtype, rows, depth, experts)?;
        for &count in &tokens {
            subject.force_tile(None);
            let own = subject.measure(count)?;
            line(&format!("{format} {count}"), &own, &own);
            for tile in subject.tiles().into_iter().filter(|t| all_tiles && subject.takes(*t)).collect::<Vec<_>>() {
                if tile.tokens > 2 * count.next_power_of_two() {
                    continue;
                }
                subject.force_tile(Some(tile));
                let name = format!(
                    "{format} {count}: {}x{}{}{}",
                    tile.rows(),
                    tile.tokens,
                    if tile.cluster > 1 { " cluster" } else { "" },
                    if tile.has_totals { " totals" } else { "" }
                );
                line(&name, &subject.measure(count)?, &own);
            }
        }
    }
    Ok(())
}

fn line(name: &str, measured: &PromptMeasured, own: &PromptMeasured) {
    let PromptMeasured { product_us, halves_us, operations, error, unwritten, hash } = *measured;
    let teraflops = operations / product_us / 1e6;
    let verdict = match () {
        () if unwritten > 0 => format!("WRONG: {unwritten} numbers not written"),
        () if error.is_nan() || error > ERROR_MAX => "WRONG".to_owned(),
        () if hash != own.hash => "DIFFERS".to_owned(),
        () => String::new(),
    };
    println!(
        "{name:36} {product_us:9.1} us {teraflops:6.1} TFLOPS, halves {halves_us:6.1} us, error {error:.2e} {verdict}"
    );
}
