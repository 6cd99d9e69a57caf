//! The `tessera` binary: commands, and the only place that names devices.

#![forbid(unsafe_code)]

fn main() {}
