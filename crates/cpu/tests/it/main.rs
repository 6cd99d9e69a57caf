//! The CPU device from the outside: against the reference device, bit for bit.

mod matmul;
mod weights;
