//! The only place that names a device crate.

use std::{num::NonZero, sync::Arc};

use anyhow::Result;
use tessera_cpu::CpuDevice;

use crate::args::Engine;

/// The device that models run on.
pub(crate) type Chosen = CpuDevice;

/// Opens the device that the flags ask for.
///
/// # Errors
/// If it lacks what they ask for.
pub(crate) fn open(engine: &Engine) -> Result<Arc<Chosen>> {
    Ok(Arc::new(CpuDevice::new(engine.threads.and_then(NonZero::new), None)?))
}
