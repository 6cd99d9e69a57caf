//! Which kernels there are: a module is a source with constants, all derived from one Rust value.
//!
//! Sources are joined into one text with `#line` marks: the compiler needs no include path, and the text is the cache's key.

use std::{collections::HashSet, fmt};

use sha2::{Digest, Sha256};
use tessera_ops::{KvFormat, PAGE_TOKENS, kv::RowFormat, streams::STREAMS_MAX};

use crate::{
    attention::{self, prompt::PromptTile, spans_tile::SpansTile, warps::WarpsTile, warps_prompt::WarpsPromptTile},
    connect,
    latent::{self, DecodeTile, IndexTile},
    matmul::{
        NUMBERS_THREADS, Packed,
        layout::{Float, Layout},
        many_tile::{COLUMN_RUN, ManyTile},
        prefill_tile::{self, PrefillTile, warps},
        tile::{CodesTile, FloatsTile, PARTS_OF_DEPTH, WARP},
        wide_tile::{Tile, WideTile},
    },
    routes::{FEW_TOKENS, LIST_THREADS},
    rowwise::{ELEMENTWISE, NORM_THREADS_MAX, ROUNDED_MAX},
    sample,
};

mod constants;
mod parameters;
mod rows;

pub(crate) use parameters::Parameter;
use rows::PACKED;
pub use rows::RowForm;

/// A source with its constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Module {
    /// Activations to codes.
    Quantize,
    /// Products with quantized weights.
    Codes(Layout, CodesTile),
    /// The same for many columns.
    Wide(Layout, WideTile),
    /// Codes to f16, in the order of columns.
    Numbers,
    /// The same for many more, of Hopper.
    Many(Layout, ManyTile),
    /// Products with plain weights.
    Floats(Float, FloatsTile),
    /// Activations to f16, by so many threads a row.
    Halves(usize),
    /// Products of prompt rows, of Hopper.
    Prefill(Packed, PrefillTile),
    /// The same of other cards.
    PrefillWarps(Packed),
    /// Root-mean-square norm.
    Norm,
    /// Rotary position embedding.
    Rope,
    /// Heads to small floats.
    Rounding,
    /// Several residual streams.
    Streams,
    /// So many from a block's result to the next one's input, gates by plain weights, of Hopper.
    Connect(Float, u8),
    /// What touches each number by itself.
    Elementwise,
    /// The choice of experts.
    Route,
    /// The likeliest tokens.
    Best,
    /// Keys and values into pages.
    Store(Pages),
    /// Attention of spans, of Hopper.
    Spans(Pages, SpansTile),
    /// Attention of prompt rows, of Hopper.
    Prompt(Pages, PromptTile),
    /// Attention on the matrix instructions of single warps, of all cards.
    Warps(Pages, WarpsTile),
    /// The same of prompt rows.
    WarpsPrompt(Pages, WarpsPromptTile),
    /// Attention in f32, of all cards.
    Plain(Pages),
    /// Attention: spans of a row into one.
    Merge(Pages),
    /// Rows of tokens into pages.
    StoreRows(RowForm),
    /// Rows made of inputs.
    Compress(RowForm),
    /// Rows of f16 and what is made of inputs, at once, and queries.
    Arrive,
    /// Scores of compressed rows, for their choice.
    IndexScores(RowForm, IndexTile),
    /// The highest of them.
    Select,
    /// Attention over latent rows, in the reference's bits.
    Latent(RowForm),
    /// The same of f16 on Hopper's matrix units: of prompt rows.
    LatentPrompt(RowForm),
    /// Of decoded rows.
    LatentDecode(RowForm, DecodeTile),
}

/// How a head's keys, or values, lie in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pages {
    /// Numbers in a head.
    pub head_dim: usize,
    /// How they are kept.
    pub format: KvFormat,
}

/// A format as kernels know it.
fn number_of(format: KvFormat) -> usize {
    match format {
        KvFormat::F32 => 0,
        KvFormat::F16 => 1,
        KvFormat::Q8_0 => 2,
    }
}

/// Cards that kernels are compiled for in advance, to see that they can be.
pub const CARDS: [&str; 4] = ["sm_80", "sm_86", "sm_89", "sm_90a"];

/// Cards that have Hopper's own instructions.
pub(crate) const HOPPER_ARCH: &str = "sm_90a";

/// Threads of a block that makes f16 of a row: of rows that the first can hold, and of longer ones.
pub(crate) const HALVES_THREADS: [usize; 2] = [256, 1024];

/// Runs of 256 numbers that each warp of it holds.
pub(crate) const HALVES_HELD: usize = 4;

/// Head sizes that the compile check goes through, from the narrowest to the widest of known models.
const HEADS: [usize; 7] = [32, 64, 80, 96, 128, 256, 512];

impl Pages {
    /// Bytes of one head in a page.
    pub fn head_bytes(self) -> usize {
        let numbers = PAGE_TOKENS * self.head_dim;
        match self.format {
            KvFormat::F32 => 4 * numbers,
            KvFormat::F16 => 2 * numbers,
            KvFormat::Q8_0 => numbers + 4 * PAGE_TOKENS * self.head_dim.div_ceil(tessera_ops::kv::CODE_BLOCK),
        }
    }

    pub(crate) fn constants(self) -> Vec<(&'static str, usize)> {
        let format = ("FORMAT", number_of(self.format));
        let own = vec![("HEAD_DIM", self.head_dim), format, ("HEAD_PAGE_BYTES", self.head_bytes())];
        [own, attention::spans::constants()].concat()
    }
}

macro_rules! source {
    ($path:literal) => {
        ($path, include_str!(concat!("../kernels/", $path)))
    };
}

/// The first parts of all.
const PTX: (&str, &str) = source!("ptx.cuh");
const TURN: (&str, &str) = source!("turn.cuh");
const TIMELINE: (&str, &str) = source!("timeline.cuh");
const COMMON: (&str, &str) = source!("common.cuh");
const COLUMNS: (&str, &str) = source!("matmul/columns.cuh");
const CHAINS: (&str, &str) = source!("matmul/chains.cuh");
const SEGMENTS: (&str, &str) = source!("matmul/segments.cuh");
const BLOCK: (&str, &str) = source!("quantize/block.cuh");
const VALUES: (&str, &str) = source!("matmul/values.cuh");
const CODES: (&str, &str) = source!("quantize/blocks.cuh");
const SQUARES: (&str, &str) = source!("norm/squares.cuh");
const GATED: (&str, &str) = source!("elementwise/gated.cuh");
const GATES: (&str, &str) = source!("streams/gates.cuh");
const STEP: (&str, &str) = source!("attention/step.cuh");
const HOPPER: (&str, &str) = source!("hopper/ptx.cuh");
const WGMMA: (&str, &str) = source!("hopper/wgmma.cuh");
const HOPPER_RING: (&str, &str) = source!("hopper/ring.cuh");
const RAW: (&str, &str) = source!("matmul/raw.cuh");
const FOLDED: (&str, &str) = source!("matmul/folded.cuh");
const WIDE_WEIGHTS: (&str, &str) = source!("matmul/wide_weights.cuh");
const RUNS: (&str, &str) = source!("matmul/runs.cuh");
const WALK: (&str, &str) = source!("matmul/walk.cuh");
const UNIT_SCALES: (&str, &str) = source!("matmul/unit_scales.cuh");
const EXPAND: (&str, &str) = source!("matmul/expand.cuh");
const HEADS_OF_ROWS: (&str, &str) = source!("rope/heads.cuh");
const PAGES: (&str, &str) = source!("attention/pages.cuh");
const ROUNDING: (&str, &str) = source!("rounding/rounding.cuh");
const COMPRESS: (&str, &str) = source!("latent/compress.cuh");
const PACKED_ROWS: (&str, &str) = source!("latent/packed.cuh");
const PACK: (&str, &str) = source!("latent/pack.cuh");
const ROWS: (&str, &str) = source!("latent/rows.cuh");
const SIGHT: (&str, &str) = source!("latent/sight.cuh");
const TILES: (&str, &str) = source!("attention/tiles.cuh");
const PARTS: (&str, &str) = source!("attention/parts.cuh");
const WEIGHTS: (&str, &str) = source!("attention/weights.cuh");
const QUERY: (&str, &str) = source!("attention/query.cuh");
const KV_CODES: (&str, &str) = source!("attention/codes.cuh");
const RING: (&str, &str) = source!("attention/ring.cuh");
const WEIGH: (&str, &str) = source!("attention/weigh.cuh");
const WEIGH_KEYS: (&str, &str) = source!("attention/weigh_keys.cuh");
const SLABS: (&str, &str) = source!("attention/slabs.cuh");
/// Of products of codes, and of what follows them.
const CODES_PARTS: &[(&str, &str)] = &[
    COMMON,
    COLUMNS,
    SEGMENTS,
    HOPPER,
    BLOCK,
    CODES,
    GATED,
    source!("matmul/epilogue.cuh"),
    RAW,
    FOLDED,
    source!("matmul/codes_weights.cuh"),
    source!("matmul/codes_inputs.cuh"),
    source!("matmul/codes.cu"),
];

/// What the kernels of Hopper stand on whose blocks walk over tiles.
const WALK_PARTS: &[(&str, &str)] = &[COMMON, HOPPER, WGMMA, RAW, EXPAND, RUNS, HOPPER_RING, WALK];

impl Module {
    /// Every module that a table of this crate names: all layouts with all tiles, all formats of pages with all known heads.
    pub fn all() -> Vec<Module> {
        let mut all = vec![Module::Quantize, Module::Norm, Module::Rope, Module::Elementwise, Module::Route];
        all.extend([Module::Rounding, Module::Streams, Module::Best, Module::Numbers, Module::Select, Module::Arrive]);
        all.extend(HALVES_THREADS.map(Module::Halves));
        for layout in Layout::all() {
            let tiles: HashSet<_> = CARDS.iter().flat_map(|arch| Tile::all(layout, arch)).collect();
            all.extend(tiles.into_iter().map(|tile| Module::product(layout, tile)));
        }
        for form in Layout::all().into_iter().map(Packed::Codes).chain(Float::forms()) {
            all.extend(Module::prefill(form));
        }
        for float in Float::ALL {
            all.extend(FloatsTile::ALL.map(|tile| Module::Floats(float, tile)));
            all.extend(connect::STREAMS.map(|streams| Module::Connect(float, streams)));
        }
        for format in KvFormat::ALL {
            for head_dim in HEADS {
                let pages = Pages { head_dim, format };
                all.extend([Module::Store(pages), Module::Plain(pages), Module::Merge(pages)]);
                all.extend(SpansTile::variants(pages).map(|tile| Module::Spans(pages, tile)));
                all.extend(latent::modules(RowForm { width: head_dim, format: RowFormat::Plain(format) }));
                all.extend(PromptTile::all(pages).into_iter().map(|tile| Module::Prompt(pages, tile)));
                let warps = CARDS.iter().flat_map(|arch| WarpsTile::all(pages, arch));
                all.extend(warps.map(|tile| Module::Warps(pages, tile)).collect::<HashSet<_>>());
                let prompts = CARDS.iter().flat_map(|arch| WarpsPromptTile::all(pages, arch));
                all.extend(prompts.map(|tile| Module::WarpsPrompt(pages, tile)).collect::<HashSet<_>>());
            }
        }
        let packed = PACKED.map(|(width, packing)| RowForm { width, format: RowFormat::Packed(packing) });
        all.extend(packed.into_iter().flat_map(latent::modules));
        all
    }

    /// `codes`, `norm`, …
    pub fn name(self) -> &'static str {
        match self {
            Module::Quantize => "quantize",
            Module::Codes(..) => "codes",
            Module::Wide(..) => "wide",
            Module::Numbers => "numbers",
            Module::Many(..) => "many",
            Module::Floats(..) => "floats",
            Module::Halves(_) => "halves",
            Module::Prefill(..) => "prefill",
            Module::PrefillWarps(_) => "prefill_warps",
            Module::Norm => "norm",
            Module::Rope => "rope",
            Module::Rounding => "rounding",
            Module::Streams => "streams",
            Module::Connect(..) => "connect",
            Module::Elementwise => "elementwise",
            Module::Route => "route",
            Module::Best => "best",
            Module::Store(_) => "store",
            Module::Spans(..) => "spans",
            Module::Prompt(..) => "prompt",
            Module::Warps(..) => "warps",
            Module::WarpsPrompt(..) => "warps_prompt",
            Module::Plain(_) => "plain",
            Module::Merge(_) => "merge",
            Module::StoreRows(_) => "store_rows",
            Module::Compress(_) => "compress",
            Module::Arrive => "arrive",
            Module::IndexScores(..) => "index_scores",
            Module::Select => "select",
            Module::Latent(_) => "latent",
            Module::LatentPrompt(_) => "latent_prompt",
            Module::LatentDecode(..) => "latent_decode",
        }
    }

    /// The functions that the host launches.
    pub(crate) fn entries(self) -> &'static [&'static str] {
        match self {
            Module::Quantize => &["quantize"],
            Module::Codes(..) => &["codes"],
            Module::Wide(..) => &["wide"],
            Module::Numbers => &["numbers"],
            Module::Many(..) => &["many"],
            Module::Floats(..) => &["floats"],
            Module::Halves(_) => &["halves"],
            Module::Prefill(..) => &["prefill", "add_parts"],
            Module::PrefillWarps(_) => &["prefill_warps"],
            Module::Norm => &["rms_norm"],
            Module::Rope => &["rotate"],
            Module::Rounding => &["round_fp8", "round_hadamard_fp4"],
            Module::Streams => &["copies", "stream_gates", "collapse_streams", "spread_streams"],
            Module::Connect(..) => &["connect"],
            Module::Elementwise => ELEMENTWISE,
            Module::Route => &["route", "route_few", "list_places"],
            Module::Best => &["best"],
            Module::Store(_) => &["store"],
            Module::Spans(..) => &["spans"],
            Module::Prompt(..) => &["prompt"],
            Module::Warps(..) => &["warps"],
            Module::WarpsPrompt(..) => &["warps_prompt"],
            Module::Plain(_) => &["plain"],
            Module::Merge(_) => &["merge"],
            Module::StoreRows(_) => &["store_rows"],
            Module::Compress(_) => &["compress"],
            Module::Arrive => &["arrive"],
            Module::IndexScores(..) => &["index_scores"],
            Module::Select => &["select"],
            Module::Latent(_) => &["latent_scores", "latent_weights", "latent_values"],
            Module::LatentPrompt(_) => &["latent_prompt"],
            Module::LatentDecode(..) => &["latent_decode"],
        }
    }

    /// The kernel of a tile.
    pub(crate) fn product(layout: Layout, tile: Tile) -> Module {
        match tile {
            Tile::Narrow(tile) => Module::Codes(layout, tile),
            Tile::Wide(tile) => Module::Wide(layout, tile),
            Tile::Many(tile) => Module::Many(layout, tile),
        }
    }

    /// The kernels that multiply prompt rows by weights of a form, of all cards.
    pub(crate) fn prefill(form: Packed) -> Vec<Module> {
        let tiles = prefill_tile::all(form).into_iter().map(|tile| Module::Prefill(form, tile));
        tiles.chain([Module::PrefillWarps(form)]).collect()
    }

    /// Whether a card runs it: some use Hopper's own instructions, which others stand in for elsewhere.
    pub fn runs_on(self, arch: &str) -> bool {
        match self {
            Module::Prefill(..) | Module::Many(..) | Module::Spans(..) | Module::Prompt(..) => arch == HOPPER_ARCH,
            Module::LatentPrompt(_) | Module::LatentDecode(..) | Module::Connect(..) => arch == HOPPER_ARCH,
            Module::PrefillWarps(_) => arch != HOPPER_ARCH,
            Module::Codes(layout, tile) => CodesTile::all(layout, arch).contains(&tile),
            Module::Wide(layout, tile) => WideTile::all(layout, arch).contains(&tile),
            Module::WarpsPrompt(pages, tile) => {
                WarpsPromptTile::all(pages, arch).contains(&WarpsPromptTile { is_capped: false, ..tile })
            }
            Module::Warps(pages, tile) => WarpsTile::all(pages, arch).contains(&WarpsTile { is_capped: false, ..tile }),
            _ => true,
        }
    }

    fn parts(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Module::Quantize => vec![COMMON, BLOCK, CODES, source!("quantize/quantize.cu")],
            Module::Codes(..) => CODES_PARTS.to_vec(),
            Module::Wide(..) => {
                vec![COMMON, COLUMNS, SEGMENTS, RAW, FOLDED, UNIT_SCALES, WIDE_WEIGHTS, source!("matmul/wide.cu")]
            }
            Module::Numbers => vec![COMMON, RUNS, source!("quantize/numbers.cu")],
            Module::Many(..) => [WALK_PARTS, &[SEGMENTS, FOLDED, UNIT_SCALES, source!("matmul/many.cu")]].concat(),
            Module::Floats(..) => vec![COMMON, COLUMNS, VALUES, CHAINS, source!("matmul/floats.cu")],
            Module::Halves(_) => vec![COMMON, GATED, source!("quantize/halves.cu")],
            Module::Prefill(..) => [WALK_PARTS, &[source!("matmul/prefill.cu")]].concat(),
            Module::PrefillWarps(_) => vec![COMMON, RAW, EXPAND, source!("matmul/prefill_warps.cu")],
            Module::Norm => vec![COMMON, BLOCK, CODES, SQUARES, source!("norm/norm.cu")],
            Module::Rope => vec![COMMON, BLOCK, CODES, SQUARES, HEADS_OF_ROWS, source!("rope/rope.cu")],
            Module::Rounding => vec![COMMON, ROUNDING, source!("rounding/rounding.cu")],
            Module::Streams => vec![COMMON, GATES, source!("streams/streams.cu")],
            Module::Connect(..) => {
                vec![COMMON, HOPPER, VALUES, CHAINS, BLOCK, CODES, SQUARES, GATES, source!("streams/connect.cu")]
            }
            Module::Elementwise => vec![COMMON, BLOCK, CODES, GATED, source!("elementwise/elementwise.cu")],
            Module::Route => vec![COMMON, source!("route/route.cu")],
            Module::Best => vec![COMMON, source!("sample/best.cu")],
            Module::Store(_) => {
                vec![COMMON, BLOCK, CODES, STEP, PAGES, SQUARES, HEADS_OF_ROWS, source!("attention/store.cu")]
            }
            Module::Spans(..) => {
                let attention = [STEP, PAGES, TILES, WEIGHTS, WEIGH_KEYS, PARTS, QUERY, SLABS, KV_CODES];
                let own =
                    [source!("attention/merged.cuh"), source!("attention/work.cuh"), source!("attention/spans.cu")];
                [&[COMMON, BLOCK, CODES, HOPPER, WGMMA][..], &attention, &own].concat()
            }
            Module::Prompt(pages, _) => {
                let wide = [SLABS, source!("attention/prompt_wide.cu")];
                let narrow = [SLABS, WEIGH, HOPPER_RING, source!("attention/prompt.cu")];
                let own = if PromptTile::is_wide(pages) { &wide[..] } else { &narrow };
                [&[COMMON, HOPPER, WGMMA, STEP, PAGES, TILES, WEIGHTS, PARTS, QUERY], own].concat()
            }
            Module::Warps(..) => {
                vec![COMMON, STEP, PAGES, TILES, WEIGHTS, PARTS, QUERY, KV_CODES, RING, source!("attention/warps.cu")]
            }
            Module::WarpsPrompt(..) => {
                let shared = [STEP, PAGES, TILES, WEIGHTS, PARTS, QUERY, KV_CODES, RING];
                [&[COMMON][..], &shared, &[WEIGH, source!("attention/warps_prompt.cu")]].concat()
            }
            Module::Plain(_) => vec![COMMON, STEP, PAGES, WEIGHTS, PARTS, source!("attention/plain.cu")],
            Module::Merge(_) => vec![COMMON, BLOCK, CODES, STEP, WEIGHTS, PARTS, source!("attention/merge.cu")],
            Module::StoreRows(_) => {
                vec![COMMON, BLOCK, STEP, PACKED_ROWS, ROWS, ROUNDING, PACK, source!("latent/store.cu")]
            }
            Module::Compress(_) => {
                let rows = [PACKED_ROWS, ROWS, ROUNDING, PACK, SQUARES, COMPRESS, source!("latent/compress.cu")];
                [&[COMMON, BLOCK, STEP][..], &rows].concat()
            }
            Module::Arrive => {
                let rows = [PACKED_ROWS, ROUNDING, PACK, SQUARES, COMPRESS, source!("latent/arrive.cu")];
                [&[COMMON, BLOCK, CODES, STEP][..], &rows].concat()
            }
            Module::IndexScores(_, tile) => [&[COMMON, BLOCK, STEP, PACKED_ROWS, ROWS], &tile.parts()[..]].concat(),
            Module::Select => vec![COMMON, STEP, source!("latent/select.cu")],
            Module::Latent(_) => vec![COMMON, BLOCK, STEP, PACKED_ROWS, ROWS, SIGHT, source!("latent/attend.cu")],
            Module::LatentPrompt(_) | Module::LatentDecode(..) => {
                let is_prompt = matches!(self, Module::LatentPrompt(_));
                let own = if is_prompt { source!("latent/prompt.cu") } else { source!("latent/decode.cu") };
                let rows = [PACKED_ROWS, ROWS, SIGHT, source!("latent/widen.cuh")];
                let shared = [WEIGHTS, WEIGH_KEYS, QUERY];
                [&[COMMON, BLOCK, HOPPER, WGMMA, CODES, STEP][..], &rows, &shared, &[own]].concat()
            }
        }
    }

    /// Whether its kernels wait for earlier work by themselves (`kernels/ptx.cuh`), so that they may be started early.
    pub(crate) fn waits_by_itself(self) -> bool {
        !matches!(self, Module::Prefill(..) | Module::PrefillWarps(_) | Module::Halves(_) | Module::Many(..))
    }

    /// The whole text.
    pub(crate) fn source(self) -> String {
        [PTX, TURN, TIMELINE]
            .into_iter()
            .chain(self.parts())
            .map(|(path, text)| format!("#line 1 \"{path}\"\n{text}\n"))
            .collect()
    }

    /// A number of the source and its constants, which the compiled module carries: host and kernel must mean the same tile.
    pub(crate) fn stamp(self) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.source());
        hash.update(format!("{:?}", self.constants()));
        u64::from_le_bytes(*hash.finalize().first_chunk().expect("a hash of 32 bytes"))
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.constants().iter().try_for_each(|(name, value)| write!(f, " {}={value}", name.to_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_differ_and_hold_their_entries() {
        let all = Module::all();
        assert_eq!(all.iter().map(|m| m.stamp()).collect::<HashSet<_>>().len(), all.len());
        for module in all {
            let source = module.source();
            for entry in module.entries() {
                let begins = |text: &str| source.contains(&format!("{text} {entry}("));
                assert!(
                    begins("KERNEL")
                        || ["BLOCKS)", "(THREADS)", "(THREADS, 1)", "(THREADS, RESIDENT)", "32)"]
                            .iter()
                            .any(|t| begins(t)),
                    "{module}: {entry}"
                );
            }
        }
    }

    #[test]
    fn a_cache_takes_what_the_layout_says_or_widens_scales() {
        for format in KvFormat::ALL {
            for head_dim in HEADS {
                let (own, layout) =
                    (Pages { head_dim, format }.head_bytes(), PAGE_TOKENS * format.head_bytes(head_dim));
                assert!(own == layout || format == KvFormat::Q8_0 && own > layout && own % 64 == 0);
            }
        }
    }
}
