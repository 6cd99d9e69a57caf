//! The reference device, seen from the outside.

mod attention;
mod profile;
mod rowwise;
mod segments;
mod support;
