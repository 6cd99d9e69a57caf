//! The device of NVIDIA cards: CUDA C++ kernels, compiled at run time for the card and the model at hand.
//!
//! Nothing of CUDA is linked: driver and run-time compiler are looked for when a device is opened, and what is missing is one
//! sentence with a remedy. [`CudaDevice`] gives the bits of `tessera_ops::reference`: each kernel keeps the canonical order.
//!
//! - `driver`: context, stream, memory and launches; the only user of the driver.
//! - `compiler`: sources to machine code by NVRTC, and `cache`, which keeps it on disk.
//! - `kernels`: which source, entry and constants make a kernel; the sources lie in `kernels/`, one folder an op.
//! - `matmul`: packed layouts, tiles and launches of projections.
//! - `roles`: which rows run in which arithmetic.
//! - `device`: the ops.

pub mod attention;
pub mod audit;
mod cache;
pub mod compiler;
mod connect;
mod device;
mod driver;
mod embedding;
mod error;
mod hash;
pub mod kernels;
mod kv;
mod latent;
pub mod matmul;
pub mod measure;
mod queue;
mod roles;
mod routes;
mod rowwise;
mod sample;
mod steps;
mod tensor;
mod threads;

pub use cache::Cache;
pub use device::CudaDevice;
pub use driver::{Counts, timeline::Turn};
pub use error::OpenError;
pub use kv::KvPages;
pub use roles::Numerics;
pub use routes::Routes;
pub use tensor::Tensor;
