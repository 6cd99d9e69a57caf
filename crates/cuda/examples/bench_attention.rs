//! Times attention of decode rows on a card: `cargo run --release -p tessera-cuda --example bench_attention [HEADS KV_HEADS HEAD_DIM TOKENS
//! ROWS [tiles]]`, TOKENS and ROWS with commas between. Keys and values are F16, random, and cold in the cache; every figure's result is
//! held to the reference first, at a shorter length. GB/s are of the keys and values that are seen, each once. With `tiles`, tiles of
//! other shapes are measured as well.

use tessera_cuda::{Cache, CudaDevice, attention::AttentionTile, measure::attention::AttentionSubject};
use tessera_ops::Attention;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers = |index: usize, default: &'static str| -> Result<Vec<usize>, std::num::ParseIntError> {
        let text = arguments.get(index).map_or(default, String::as_str);
        text.split(',').map(str::parse).collect()
    };
    let [heads, kv_heads, head_dim] = [numbers(0, "16")?[0], numbers(1, "2")?[0], numbers(2, "512")?[0]];
    let (lengths, rows) = (numbers(3, "32768")?, numbers(4, "1,8")?);
    let cache = std::env::var_os("TESSERA_CUDA_CACHE").map(Into::into);
    let device = CudaDevice::open(0, Cache::new(cache))?;
    let scale = (head_dim as f32).sqrt().recip();
    let spec = Attention { layer: 0, heads, kv_heads, head_dim, scale, window: None, soft_cap: None };
    let longest = lengths.iter().copied().max().unwrap_or(0);
    println!("{}, {heads} heads over {kv_heads} of {head_dim}", tessera_ops::Device::name(&device));
    let mut subject = AttentionSubject::new(&device, spec, longest)?;
    table(&subject, "", &lengths, &rows)?;
    if arguments.get(5).is_some_and(|a| a == "tiles") {
        for (columns, features, columns_each) in
            [(4, 8, 1), (4, 16, 1), (8, 8, 1), (8, 16, 1), (8, 16, 2), (16, 16, 2), (16, 32, 2), (16, 32, 4)]
        {
            subject.force_tile(AttentionTile { columns, features, columns_each })?;
            table(&subject, &format!("tile {columns} {features} {columns_each}:"), &lengths, &rows)?;
        }
    }
    Ok(())
}

fn table(
    subject: &AttentionSubject<'_>,
    name: &str,
    lengths: &[usize],
    rows: &[usize],
) -> Result<(), Box<dyn std::error::Error>> {
    for &tokens in lengths {
        for &count in rows {
            match subject.measure(tokens, count)? {
                Some(m) => {
                    let speed = m.kv_bytes as f64 / m.us / 1e3;
                    println!("{name} {tokens:7} tokens {count:3} rows {:9.1} us {speed:6.0} GB/s", m.us);
                }
                None => println!("{name} {tokens:7} tokens {count:3} rows WRONG"),
            }
        }
    }
    Ok(())
}
