//! The built binary from outside: what a user types, what comes back, and what must never happen.

#![forbid(unsafe_code)]

mod audit;
mod bench;
mod chat;
mod emulated;
mod fake_hub;
mod hostile;
mod inspect;
mod kernels;
mod perplexity;
mod real;
mod run;
mod serve;
mod speculate;
mod store;
mod support;
mod surface;
mod synth;
mod talk;
mod tokenize;
mod tune;
