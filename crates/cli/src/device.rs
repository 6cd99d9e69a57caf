//! The only place that names a device crate (beside the measurements of single kernels). What a device is tuned with comes
//! from a file; the device knows nothing of it.

use std::{num::NonZero, str::FromStr, sync::Arc};

use anyhow::Result;
use tessera_cpu::{
    CpuDevice,
    attention::select as attention,
    isa::Isa,
    matmul::{
        Kernels, Overrides,
        dispatch::{self, BytesMoved, Op, Request, Tile},
        select::select,
    },
    threads::default_thread_count,
};
use tessera_cuda::{CudaDevice, OpenError};
use tessera_engine::{Checkpoint, LanguageModel, LoadOptions, models, profile, synth, weights::Progress};
use tessera_formats::DType;
use tessera_ops::{Device, Profiled};

use crate::{
    args::{Compute, Placement},
    measure::Heads,
    store,
    tuning::{self, InForce},
};

pub(crate) use tessera_cpu::matmul::{Parameter, Tuning};
pub(crate) use tessera_cuda::Numerics;

/// A card.
pub(crate) type Card = CudaDevice;

/// The device that models run on.
pub(crate) type Chosen = CpuDevice;

/// Which device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// A card if there is one that can, else the CPU.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA card, by its number.
    Cuda(usize),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Place::Auto),
            None if text == "cpu" => Ok(Place::Cpu),
            None if text == "cuda" => Ok(Place::Cuda(0)),
            Some(("cuda", number)) => {
                number.parse().map(Place::Cuda).map_err(|_| format!("{number:?} numbers no card"))
            }
            _ => Err("there are auto, cpu, cuda and cuda:N".to_owned()),
        }
    }
}

/// Opens the device that the flags ask for. Switches of `--kernels` stand in for those of the environment.
///
/// # Errors
/// If it lacks what they ask for.
pub(crate) fn open(compute: &Compute) -> Result<Arc<Chosen>> {
    Ok(Arc::new(make(compute)?.0))
}

/// A device of either kind.
#[derive(Clone)]
pub(crate) enum Opened {
    Cpu(Arc<Chosen>),
    Card(Arc<CudaDevice>),
}

impl Opened {
    /// What the flags ask for.
    ///
    /// # Errors
    /// If it lacks what they ask for.
    pub(crate) fn open(compute: &Compute, placement: &Placement) -> Result<Opened> {
        Opened::card(placement)?.map_or_else(|| Ok(Opened::Cpu(open(compute)?)), Ok)
    }

    /// An NVIDIA card, if the flags ask for one; none where the CPU computes.
    ///
    /// # Errors
    /// If a card is asked for by name and cannot be opened.
    pub(crate) fn card(placement: &Placement) -> Result<Option<Opened>> {
        Ok(opened_card(placement)?.map(|card| Opened::Card(Arc::new(card))))
    }

    /// Loads a model onto it.
    ///
    /// # Errors
    /// As [`models::load`].
    pub(crate) fn load(
        &self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Box<dyn LanguageModel>> {
        Ok(match self {
            Opened::Cpu(device) => {
                synth::check_memory(checkpoint)?;
                models::load(checkpoint, device.clone(), options, report)?
            }
            Opened::Card(device) => models::load(checkpoint, device.clone(), options, report)?,
        })
    }

    /// Prompt tokens that are best computed at a time: a card wants many where they meet many experts.
    pub(crate) fn chunk(&self) -> usize {
        match self {
            Opened::Cpu(_) => 512,
            Opened::Card(_) => 2048,
        }
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        match self {
            Opened::Cpu(device) => device.name(),
            Opened::Card(device) => device.name(),
        }
    }

    /// The kernel that computes a projection of `tokens` decoded tokens; none for a format without one.
    pub(crate) fn kernel(&self, shape: &Shape, tokens: usize) -> Option<String> {
        match self {
            Opened::Cpu(device) => Some(plan(device, shape, tokens)?.name),
            Opened::Card(device) => device.kernel(shape.dtype, shape.rows, tokens),
        }
    }
}

/// Compiled kernels lie beside the other caches.
pub(crate) fn kernel_cache() -> tessera_cuda::Cache {
    tessera_cuda::Cache::new(store::cache_folder().map(|folder| folder.join("kernels")))
}

/// As [`open`], with what it is tuned with.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_tuned(compute: &Compute) -> Result<(Arc<Chosen>, InForce)> {
    let (device, tuned) = make(compute)?;
    Ok((Arc::new(device), tuned))
}

/// As [`open`], with every op measured.
///
/// # Errors
/// As [`open`].
pub(crate) fn profiled(compute: &Compute) -> Result<Arc<Profiled<Chosen>>> {
    Ok(Arc::new(Profiled::new(make(compute)?.0, profile::label)))
}

/// The card that the flags ask for, if they do, with every op measured.
///
/// # Errors
/// As [`Opened::card`].
pub(crate) fn profiled_card(placement: &Placement) -> Result<Option<Arc<Profiled<CudaDevice>>>> {
    Ok(opened_card(placement)?.map(|card| Arc::new(Profiled::new(card, profile::label))))
}

/// The same, whose kernels note when their turn comes.
///
/// # Errors
/// As [`Opened::card`].
pub(crate) fn noting_card(placement: &Placement) -> Result<Option<Arc<Profiled<CudaDevice>>>> {
    Ok(card(placement, CudaDevice::under_profile)?.map(|card| Arc::new(Profiled::new(card, profile::label))))
}

/// A card, if the flags ask for one.
fn opened_card(placement: &Placement) -> Result<Option<CudaDevice>> {
    card(placement, CudaDevice::open)
}

fn card(
    placement: &Placement,
    open: impl Fn(usize, tessera_cuda::Cache) -> Result<CudaDevice, OpenError>,
) -> Result<Option<CudaDevice>> {
    let card = match placement.device {
        Place::Cpu => None,
        Place::Auto => open(0, kernel_cache()).ok(),
        Place::Cuda(ordinal) => Some(open(ordinal, kernel_cache())?),
    };
    Ok(card.map(|card| card.with_numerics(placement.numerics)))
}

/// As [`open`], with default numbers, to be changed as one likes.
///
/// # Errors
/// As [`open`].
pub(crate) fn untuned(compute: &Compute) -> Result<Chosen> {
    let (threads, kernels) = asked_for(compute)?;
    Ok(CpuDevice::with_kernels(Some(threads), kernels))
}

fn make(compute: &Compute) -> Result<(Chosen, InForce)> {
    let (threads, kernels) = asked_for(compute)?;
    let tuned = tuning::in_force(kernels.isa.name(), threads.get());
    Ok((CpuDevice::with_kernels(Some(threads), Kernels { tuning: tuned.tuning, ..kernels }), tuned))
}

fn asked_for(compute: &Compute) -> Result<(NonZero<usize>, Kernels)> {
    let threads = compute.threads.asked_for().unwrap_or_else(default_thread_count);
    let overrides = compute.kernels.as_deref().map_or_else(Overrides::from_environment, Overrides::parse)?;
    let isa = overrides.isa.map_or_else(Isa::choose, Ok)?;
    Ok((threads, Kernels { overrides, ..Kernels::new(isa) }))
}

/// The name of its instruction set.
pub(crate) fn isa_name(device: &Chosen) -> &'static str {
    device.isa().name()
}

/// What is forced, as `--kernels` takes it.
pub(crate) fn forced(device: &Chosen) -> String {
    device.kernels().overrides.to_string()
}

/// What is forced beside the instruction set.
pub(crate) fn switches(device: &Chosen) -> String {
    Overrides { isa: None, ..device.kernels().overrides }.to_string()
}

/// The measured numbers that are not as by default; nothing where all are.
pub(crate) fn tuned(device: &Chosen) -> String {
    device.kernels().tuning.to_string()
}

/// For people.
pub(crate) fn name(device: &Chosen) -> String {
    device.name()
}

/// What a matrix is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    /// All tokens meet it.
    Dense,
    /// As `Dense`, in the fine arithmetic: each token takes two columns.
    Head,
    /// One of a stack; each token meets `used` of them.
    Routed { experts: usize, used: usize },
}

impl Projection {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Projection::Dense => "dense",
            Projection::Head => "head",
            Projection::Routed { .. } => "routed",
        }
    }
}

/// A matrix, and what it is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) projection: Projection,
    pub(crate) dtype: DType,
    /// Output features (of each expert).
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

/// How a projection is computed.
pub(crate) struct Plan {
    /// All of it in one word.
    pub(crate) name: String,
    /// The code that runs.
    pub(crate) variant: String,
    pub(crate) tile: Tile,
    /// Tokens that share one read of the weights.
    pub(crate) pass_tokens: usize,
    /// What threads divide among them.
    pub(crate) split: &'static str,
    pub(crate) bytes: BytesMoved,
}

/// How a projection of `tokens` tokens is computed; none for a format without a kernel. Experts are taken to have as many
/// tokens each.
pub(crate) fn plan(device: &Chosen, shape: &Shape, tokens: usize) -> Option<Plan> {
    let (op, tokens_total, segments) = match shape.projection {
        Projection::Dense => (Op::Dense, tokens, 1),
        Projection::Head => (Op::Dense, if shape.dtype.is_float() { tokens } else { 2 * tokens }, 1),
        Projection::Routed { experts, used } => (Op::Routed, tokens * used, experts.min(tokens * used)),
    };
    let request = Request {
        op,
        layout: select(shape.dtype)?,
        rows: shape.rows,
        depth: shape.depth,
        tokens: tokens_total.div_ceil(segments.max(1)),
        segments,
        tokens_total,
        workers: device.threads(),
    };
    let plan = chosen(device, &request);
    Some(Plan {
        name: plan.to_string(),
        variant: plan.variant.to_string(),
        tile: plan.tile,
        pass_tokens: plan.pass_tokens,
        split: plan.split.name(),
        bytes: plan.bytes_moved(&request),
    })
}

/// The variant that multiplies `tokens` tokens with a matrix; none for formats that hold no weights.
pub(crate) fn variant(device: &Chosen, dtype: DType, rows: usize, depth: usize, tokens: usize) -> Option<String> {
    Some(plan(device, &Shape { projection: Projection::Dense, dtype, rows, depth }, tokens)?.name)
}

/// The variant that multiplies an expert's `tokens` tokens, where `segments` experts have `tokens_total` together.
pub(crate) fn routed_variant(
    device: &Chosen,
    dtype: DType,
    (rows, depth): (usize, usize),
    tokens: usize,
    segments: usize,
    tokens_total: usize,
) -> Option<String> {
    let (op, layout, workers) = (Op::Routed, select(dtype)?, device.threads());
    let request = Request { op, layout, rows, depth, tokens, segments, tokens_total, workers };
    Some(chosen(device, &request).to_string())
}

fn chosen(device: &Chosen, request: &Request) -> dispatch::Plan {
    let Kernels { isa, tuning, overrides } = device.kernels();
    dispatch::plan(*isa, request, tuning, overrides)
}

/// The way of attention of the last `rows` of a sequence's `tokens`.
pub(crate) fn attention_plan(device: &Chosen, heads: &Heads, rows: usize, tokens: usize) -> String {
    let Heads { heads, kv_heads, head_dim, window, format } = *heads;
    let seen = |position: usize| window.unwrap_or(usize::MAX).min(position + 1);
    let request = attention::Request {
        format,
        head_dim,
        kv_heads,
        group: heads / kv_heads,
        rows,
        run: rows,
        longest: seen(tokens.saturating_sub(1)),
        visible: (tokens.saturating_sub(rows)..tokens).map(seen).sum(),
        threads: device.threads(),
    };
    attention::plan(&request, device.kernels().overrides.attention).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        let known = [("auto", Place::Auto), ("cpu", Place::Cpu), ("cuda", Place::Cuda(0)), ("cuda:3", Place::Cuda(3))];
        known.into_iter().for_each(|(text, place)| assert_eq!(text.parse(), Ok(place)));
        ["", "gpu", "cuda:", "cuda:-1", "cpu:0"]
            .into_iter()
            .for_each(|text| assert!(text.parse::<Place>().is_err(), "{text}"));
    }
}
