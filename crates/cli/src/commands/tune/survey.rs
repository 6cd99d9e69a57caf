//! What is measured: matrices and layers of the sizes that models have, and the widths at which a number could matter.

use anyhow::Result;
use tessera_formats::DType;

use crate::{
    device::{Chosen, Parameter, Tuning},
    machine,
    measure::{Dense, Effort, Routed, Subject},
};

/// How long a survey takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Full,
    /// Few candidates, small matrices: to see that it works.
    Quick,
}

/// A matrix or a layer under survey.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    dtype: DType,
    rows: usize,
    depth: usize,
    /// Experts, and how many a token uses.
    experts: Option<(usize, usize)>,
    size: Size,
    workers: usize,
}

impl Size {
    pub(super) fn rounds(self) -> usize {
        match self {
            Size::Full => 7,
            Size::Quick => 5,
        }
    }

    /// Wide cases do not fit in the time often, and they care little for where the weights are.
    pub(super) fn effort(self, width: usize) -> Effort {
        let turns_max = match (self, width) {
            (Size::Quick, _) => 4,
            (Size::Full, 0..=64) => usize::MAX,
            (Size::Full, 65..=300) => 8,
            (Size::Full, _) => 1,
        };
        let seconds = if self == Size::Full { 0.006 } else { 0.0005 };
        Effort { seconds, turns_max, alone_max: 0 }
    }

    /// The values to try.
    pub(super) fn candidates(self, parameter: Parameter) -> &'static [usize] {
        match (parameter, self) {
            (Parameter::PrefetchBytes, Size::Full) => &[2 << 10, 4 << 10, 12 << 10, 16 << 10, 24 << 10],
            (Parameter::PrefetchBytes, Size::Quick) => &[4 << 10, 16 << 10],
            (Parameter::TokensPerWorkerMin, Size::Full) => &[4, 6, 12, 16],
            (Parameter::TokensPerWorkerMin, Size::Quick) => &[4, 16],
            (Parameter::QuantizeAloneMax, Size::Full) => &[2 << 10, 4 << 10, 16 << 10, 32 << 10],
            (Parameter::QuantizeAloneMax, Size::Quick) => &[2 << 10],
            (Parameter::TurnBytes, Size::Full) => &[32 << 10, 64 << 10, 256 << 10, 512 << 10],
            (Parameter::TurnBytes, Size::Quick) => &[64 << 10],
            (Parameter::PassTokens, Size::Full) => &[128, 256],
            (Parameter::PassTokens, Size::Quick) => &[128],
            (Parameter::RoutedPassTokens, Size::Full) => &[32, 64, 256, 512],
            (Parameter::RoutedPassTokens, Size::Quick) => &[32],
            (Parameter::ProductsPerByte, Size::Full) => &[4, 8, 16, 24],
            (Parameter::ProductsPerByte, Size::Quick) => &[24],
        }
    }

    /// Where.
    pub(super) fn places(self, workers: usize) -> Vec<Place> {
        let place = |dtype, rows, depth, experts| Place { dtype, rows, depth, experts, size: self, workers };
        match self {
            Size::Full => vec![
                place(DType::Q4_1, 1536, 576, None),
                place(DType::Q4_K, 2048, 2048, None),
                place(DType::Q6_K, 1024, 4096, None),
                place(DType::Q8_0, 2048, 1024, None),
                place(DType::Q4_K, 512, 1024, Some((64, 8))),
                place(DType::Q4_K, 512, 1024, Some((8, 2))),
            ],
            Size::Quick => {
                vec![place(DType::Q4_0, 256, 512, None), place(DType::Q4_0, 64, 128, Some((4, 2)))]
            }
        }
    }
}

impl Place {
    /// `Q4_K 2048x2048`, `Q4_K 64 experts 512x1024`
    pub(super) fn name(&self) -> String {
        let experts = self.experts.map_or_else(String::new, |(count, _)| format!(" {count} experts"));
        format!("{}{experts} {}x{}", self.dtype, self.rows, self.depth)
    }

    /// Makes it, with inputs of these widths.
    ///
    /// # Errors
    /// If there is no memory.
    pub(super) fn make(&self, device: &Chosen, widths: &[usize]) -> Result<Box<dyn Subject>> {
        let sizes = (self.rows, self.depth);
        Ok(match self.experts {
            Some(experts) => Box::new(Routed::new(device, self.dtype, sizes, experts, widths)?),
            None => {
                let cold_bytes = if self.size == Size::Full { 3 * machine::cache_bytes() } else { 1 << 20 };
                Box::new(Dense::new(device, self.dtype, sizes, widths, cold_bytes)?)
            }
        })
    }

    /// Widths at which a candidate for `parameter` could matter, on all sides of where plans change. [`Place::governs`] sorts
    /// out for each candidate which of them do.
    pub(super) fn widths(&self, parameter: Parameter) -> Vec<usize> {
        let workers = self.workers;
        let each = |tokens: &[usize], scale: usize| tokens.iter().map(|t| t * scale).collect::<Vec<_>>();
        let quick = self.size == Size::Quick;
        let mut widths = match (parameter, self.experts) {
            (Parameter::PrefetchBytes, None) if quick => vec![1, 8],
            (Parameter::PrefetchBytes, None) => vec![1, 2, 4, 8, 16, 64, 256],
            (Parameter::PrefetchBytes, Some((many, _))) if many > 8 => vec![1, 4, 16],
            (Parameter::PrefetchBytes, Some(_)) => vec![64],
            (Parameter::TokensPerWorkerMin, None) if quick => each(&[4, 8, 15], workers),
            (Parameter::TokensPerWorkerMin, None) => {
                let tokens = each(&[4, 5, 6, 7, 8, 10, 12, 14, 15], workers);
                tokens.into_iter().chain([8 * workers - 1, 16 * workers - 1]).collect()
            }
            // A token uses a quarter of few experts, and workers take tokens where each has enough of one expert.
            (Parameter::TokensPerWorkerMin, Some((..=8, _))) => each(&[4, 6, 8, 12, 15], 4.max(workers / 2)),
            (Parameter::QuantizeAloneMax, None) => vec![1, 2, 3, 4, 5, 8, 12, 14, 15],
            (Parameter::TurnBytes, None) if quick => vec![13, 13 * workers],
            (Parameter::TurnBytes, None) => [vec![13, 15], each(&[13, 17, 25, 49, 125], workers)].concat(),
            (Parameter::TurnBytes, Some((..=8, _))) => vec![100, 200],
            (Parameter::PassTokens, None) if quick => vec![150 * workers],
            (Parameter::PassTokens, None) if self.depth <= 2048 => vec![256, 512, 1024, 2048],
            (Parameter::RoutedPassTokens, Some((..=8, _))) if quick => vec![128],
            (Parameter::RoutedPassTokens, Some((..=8, _))) => vec![160, 256, 512, 1024, 2048],
            (Parameter::ProductsPerByte, Some((9.., _))) => vec![2, 4, 8, 16],
            (Parameter::ProductsPerByte, Some(_)) if quick => vec![4],
            _ => vec![],
        };
        widths.retain(|width| (1..=4096).contains(width));
        widths.sort_unstable();
        widths.dedup();
        widths
    }

    /// Whether anything is done in another way with `tuning` than by default.
    pub(super) fn governs(&self, device: &mut Chosen, subject: &dyn Subject, width: usize, tuning: &Tuning) -> bool {
        let default = Tuning::default();
        let differs = |parameter: Parameter| parameter.of(tuning) != parameter.of(&default);
        if differs(Parameter::PrefetchBytes) || differs(Parameter::TurnBytes) {
            return true;
        }
        if differs(Parameter::ProductsPerByte) && self.experts.is_some() && self.workers > 1 {
            return true;
        }
        device.retune(*tuning);
        let variants = subject.variants(device, width);
        device.retune(default);
        if variants != subject.variants(device, width) {
            return true;
        }
        let alone = |tuning: &Tuning| width * self.depth <= tuning.quantize_alone_max;
        // Where workers take tokens, each quantizes its own.
        self.experts.is_none() && variants.ends_with("/weights") && alone(tuning) != alone(&default)
    }
}
