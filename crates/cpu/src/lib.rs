//! The CPU device: packed weights, tiles and SIMD kernels.
