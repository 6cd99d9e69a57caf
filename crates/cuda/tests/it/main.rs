//! Tests from the outside.

mod card;
mod emulation;
mod packing;
mod prompt;
