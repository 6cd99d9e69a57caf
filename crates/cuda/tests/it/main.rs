//! Tests from the outside.

mod card;
mod packing;
