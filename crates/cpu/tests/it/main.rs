//! The CPU device from the outside: against the reference device, bit for bit.

mod attention;
mod device;
mod latent;
mod layer;
mod masks;
mod matmul;
mod segments;
mod tensors;
mod weights;
