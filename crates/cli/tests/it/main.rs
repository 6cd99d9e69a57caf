//! The built binary from outside: what a user types, what comes back, and what must never happen.

#![forbid(unsafe_code)]

mod fake_hub;
mod inspect;
mod store;
mod support;
mod surface;
