//! Tests from the outside. Those that need a card are ignored where there is none: `cargo test -p tessera-cuda -- --ignored`.

mod card;
mod packing;
