//! Tests from the outside.

mod arrived;
mod best;
mod card;
mod connected;
mod emulation;
mod gated;
mod heads;
mod highest;
mod joined;
mod latent;
mod packing;
mod products;
mod prompt;
mod stand_in;
