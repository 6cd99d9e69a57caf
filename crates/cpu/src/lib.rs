//! The CPU device: packed weights, tiles and SIMD kernels.

pub mod isa;
pub mod simd;
pub mod threads;
