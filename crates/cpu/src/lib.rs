//! The CPU device: packed weights, tiles and SIMD kernels.

pub mod isa;
pub mod matmul;
pub mod memory;
pub mod simd;
pub mod threads;
