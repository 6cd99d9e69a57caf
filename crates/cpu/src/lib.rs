//! The CPU device: packed weights, tiles and SIMD kernels.
//!
//! [`CpuDevice`] gives the bits of `tessera_ops::reference` on every instruction set and number of threads.

pub mod attention;
pub mod audit;
mod best;
mod compress;
pub mod device;
mod embed;
mod gate;
pub mod isa;
mod kv;
mod lanes;
pub mod matmul;
pub mod memory;
mod norm;
mod rope;
pub mod routes;
pub mod simd;
mod streams;
pub mod tensor;
pub mod threads;

pub use device::CpuDevice;
pub use kv::KvPages;
pub use routes::Routes;
