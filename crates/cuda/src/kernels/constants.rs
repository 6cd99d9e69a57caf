//! What each kernel's source is compiled with.

use super::*;

impl Module {
    /// What the source is compiled with.
    pub(crate) fn constants(self) -> Vec<(&'static str, usize)> {
        let is_in_parts = self.parts().iter().any(|part| [SQUARES, CHAINS].contains(part));
        [self.own_constants(), if is_in_parts { PARTS_OF_DEPTH.to_vec() } else { vec![] }].concat()
    }

    fn own_constants(self) -> Vec<(&'static str, usize)> {
        match self {
            Module::Codes(layout, tile) => [layout.constants(), tile.constants(layout)].concat(),
            Module::Wide(layout, tile) => [layout.constants(), tile.constants(layout)].concat(),
            Module::Many(layout, tile) => tile.constants(layout),
            Module::Numbers => vec![("THREADS", NUMBERS_THREADS), ("COLUMN_RUN", COLUMN_RUN)],
            Module::Floats(float, tile) => [float.constants(), tile.constants(float)].concat(),
            Module::Halves(threads) => vec![("THREADS", threads), ("HELD", HALVES_HELD)],
            Module::Prefill(form, tile) => tile.constants(form),
            Module::PrefillWarps(form) => warps::constants(form),
            Module::Spans(pages, tile) => [pages.constants(), tile.constants(pages)].concat(),
            Module::Prompt(pages, tile) => [pages.constants(), tile.constants(pages)].concat(),
            Module::WarpsPrompt(pages, tile) => [pages.constants(), tile.constants(pages)].concat(),
            Module::Warps(pages, tile) => [pages.constants(), tile.constants(pages)].concat(),
            Module::Plain(pages) | Module::Merge(pages) | Module::Store(pages) => pages.constants(),
            Module::StoreRows(form) | Module::Latent(form) => form.constants(latent::THREADS),
            Module::IndexScores(form, tile) => tile.constants(form),
            Module::LatentPrompt(form) => latent::prompt_constants(form),
            Module::LatentDecode(form, tile) => [form.constants(latent::DECODE_THREADS), tile.constants(form)].concat(),
            Module::Compress(form) => form.constants(form.width.next_multiple_of(WARP)),
            Module::Select => vec![("THREADS", latent::SELECT_THREADS), ("RUN", latent::SELECT_RUN)],
            Module::Arrive => vec![("THREADS", latent::ARRIVE_THREADS), ("NUMBERS", latent::ARRIVE_NUMBERS)],
            Module::Route => vec![("THREADS", LIST_THREADS), ("FEW", FEW_TOKENS)],
            Module::Rounding => vec![("MOST", ROUNDED_MAX)],
            Module::Streams => vec![("STREAMS_MAX", STREAMS_MAX)],
            Module::Connect(float, streams) => [float.constants(), connect::constants(float, streams)].concat(),
            Module::Best => sample::constants(),
            Module::Norm => vec![("THREADS", NORM_THREADS_MAX)],
            Module::Quantize | Module::Rope | Module::Elementwise => vec![],
        }
    }
}
