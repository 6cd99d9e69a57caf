//! The reference device, seen from the outside.

mod attention;
mod rowwise;
mod segments;
mod support;
