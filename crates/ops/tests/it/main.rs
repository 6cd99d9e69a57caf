//! The reference device, seen from the outside.

mod attention;
mod latent;
mod masks;
mod pieces;
mod profile;
mod rowwise;
mod segments;
mod streams;
mod support;
