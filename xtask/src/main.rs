//! `cargo xtask`: the checks that keep the house in order.

#![forbid(unsafe_code)]

fn main() {}
