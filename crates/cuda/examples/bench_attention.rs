//! Times attention on a card: `cargo run --release -p tessera-cuda --example bench_attention [HEADS KV_HEADS HEAD_DIM TOKENS ROWS
//! [decode|prompt|tiles|warps|warps-prompt|latent|latent-prompt|choice [f16|q8_0]]]`, TOKENS and ROWS with commas between. Keys and values
//! are random, and cold in the cache. Beside each time stands the distance from float64, at a shorter length, and how many of five rows
//! differ in a bit from what they are alone, which is none. GB/s are of the keys and values that are seen, each once; TFLOPS of the pairs
//! that see each other. With `tiles`, decode rows are measured in tiles of other shapes as well; with `warps`, in those of the kernel for
//! all cards, as rows of a prompt are with `warps-prompt`. With `latent` and `latent-prompt` all heads share rows of HEAD_DIM numbers that
//! are key and value at once, of which each row sees TOKENS. With `choice` HEADS heads of HEAD_DIM numbers choose 512 of the rows that
//! stand for four of TOKENS each: both launches in turn, scores by blocks of many keys and of few, the choice; rows that are chosen
//! otherwise than the definition has it are none. TESSERA_CUDA_ATTENTION=sm_80 gives attention the kernels and tiles of such a card.

use tessera_cuda::{
    Cache, CudaDevice,
    measure::{attention::AttentionSubject, choice::ChoiceSubject, latent_rows::LatentSubject},
};
use tessera_ops::{Attention, KvFormat, Role};

/// Compressed rows that an indexer chooses.
const CHOSEN: usize = 512;

fn choose(
    device: &CudaDevice,
    heads: (usize, usize),
    lengths: &[usize],
    rows: &[usize],
) -> Result<(), Box<dyn std::error::Error>> {
    for &tokens in lengths {
        let subject = ChoiceSubject::new(device, heads, CHOSEN, tokens)?;
        for &count in rows {
            let m = subject.measure(count)?;
            print!("{tokens:7} tokens {count:4} rows {:9.2} us", m.us);
            print!(
                "  scores {:.2} (many keys), {:.2} (few), choice {:.2} us",
                m.scores_us[0], m.scores_us[1], m.select_us
            );
            println!("  {} rows differ", m.rows_differ);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers = |index: usize, default: &'static str| -> Result<Vec<usize>, std::num::ParseIntError> {
        let text = arguments.get(index).map_or(default, String::as_str);
        text.split(',').map(str::parse).collect()
    };
    let [heads, kv_heads, head_dim] = [numbers(0, "16")?[0], numbers(1, "2")?[0], numbers(2, "512")?[0]];
    let (lengths, rows) = (numbers(3, "32768")?, numbers(4, "1,8")?);
    let what = arguments.get(5).map_or("decode", String::as_str);
    let cache = std::env::var_os("TESSERA_CUDA_CACHE").map(Into::into);
    let device = CudaDevice::open(0, Cache::new(cache))?;
    let scale = (head_dim as f32).sqrt().recip();
    let spec = Attention { layer: 0, heads, kv_heads, head_dim, scale, window: None, soft_cap: None };
    let longest = lengths.iter().copied().max().unwrap_or(0);
    println!("{}, {heads} heads over {kv_heads} of {head_dim}, {what}", tessera_ops::Device::name(&device));
    let role = if what.ends_with("prompt") { Role::Prefill } else { Role::Decode };
    if what.starts_with("latent") {
        let subject = LatentSubject::new(&device, heads, head_dim)?;
        for (&tokens, &count) in lengths.iter().flat_map(|tokens| rows.iter().map(move |rows| (tokens, rows))) {
            let m = subject.measure(tokens, count, role)?;
            print!("{tokens:7} tokens {count:4} rows {:9.1} us", m.us);
            println!("  error {:.1e}, {} rows differ", m.error, m.rows_differ);
        }
        return Ok(());
    }
    if what == "choice" {
        return choose(&device, (heads, head_dim), &lengths, &rows);
    }
    let format = if arguments.get(6).is_some_and(|f| f == "q8_0") { KvFormat::Q8_0 } else { KvFormat::F16 };
    let mut subject = AttentionSubject::new(&device, spec, format, longest)?;
    let table = |subject: &AttentionSubject<'_>, name: &str| -> Result<(), Box<dyn std::error::Error>> {
        for (&tokens, &count) in lengths.iter().flat_map(|tokens| rows.iter().map(move |rows| (tokens, rows))) {
            let m = subject.measure(tokens, count, role)?;
            let (speed, operations) = (m.kv_bytes as f64 / m.us / 1e3, m.operations / m.us / 1e6);
            print!("{name}{tokens:7} tokens {count:4} rows {:9.1} us {speed:6.0} GB/s {operations:6.1} TFLOPS", m.us);
            println!("  error {:.1e}, {} rows differ", m.error, m.rows_differ);
        }
        Ok(())
    };
    table(&subject, "")?;
    if what == "tiles" {
        for (columns, resident) in [(8, 1), (8, 2), (8, 3), (16, 1), (16, 2), (32, 1), (32, 2), (64, 1)] {
            subject.force_tile(columns, resident)?;
            table(&subject, &format!("{columns} columns, {resident} blocks: "))?;
        }
    }
    for index in 0..if what == "warps-prompt" { 4 } else { 0 } {
        if let Some(tile) = subject.force_warps_prompt(index)? {
            table(&subject, &format!("{} warps of {} columns: ", tile.warps, tile.columns()))?;
        }
    }
    if what.starts_with("warps") {
        for columns in [8, 16, 32, 64, 128] {
            if subject.force_warps(columns)? {
                table(&subject, &format!("{columns} columns of warps: "))?;
            }
        }
    }
    Ok(())
}
