//! The only place that names a device crate (beside the measurements of single kernels).

use std::{num::NonZero, sync::Arc};

use anyhow::Result;
use tessera_cpu::{
    CpuDevice,
    isa::Isa,
    matmul::{
        Kernels, Overrides,
        dispatch::{self, Op, Request},
        select::{Packed, select},
    },
};
use tessera_formats::DType;

use crate::args::Compute;

/// The device that models run on.
pub(crate) type Chosen = CpuDevice;

/// Opens the device that the flags ask for. Switches of `--kernels` stand in for those of the environment.
///
/// # Errors
/// If it lacks what they ask for.
pub(crate) fn open(compute: &Compute) -> Result<Arc<Chosen>> {
    let threads = compute.threads.and_then(NonZero::new);
    let Some(text) = &compute.kernels else { return Ok(Arc::new(CpuDevice::new(threads, None)?)) };
    let overrides = Overrides::parse(text)?;
    let isa = overrides.isa.map_or_else(Isa::choose, Ok)?;
    Ok(Arc::new(CpuDevice::with_kernels(threads, Kernels { overrides, ..Kernels::new(isa) })))
}

/// The name of its instruction set.
pub(crate) fn isa_name(device: &Chosen) -> &'static str {
    device.isa().name()
}

/// What is forced, as `--kernels` takes it.
pub(crate) fn forced(device: &Chosen) -> String {
    device.kernels().overrides.to_string()
}

/// The variant that multiplies `tokens` tokens with a matrix; none for formats that hold no weights.
pub(crate) fn variant(device: &Chosen, dtype: DType, rows: usize, depth: usize, tokens: usize) -> Option<String> {
    name(device, dtype, |layout, workers| Request {
        op: Op::Dense,
        layout,
        rows,
        depth,
        tokens,
        segments: 1,
        tokens_total: tokens,
        workers,
    })
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
    let op = Op::Routed;
    name(device, dtype, |layout, workers| Request { op, layout, rows, depth, tokens, segments, tokens_total, workers })
}

fn name(device: &Chosen, dtype: DType, request: impl FnOnce(Packed, usize) -> Request) -> Option<String> {
    let Kernels { isa, tuning, overrides } = device.kernels();
    let request = request(select(dtype)?, device.threads());
    Some(dispatch::plan(*isa, &request, tuning, overrides).to_string())
}
