//! Projections: activations times packed weights, for any number of tokens, in the canonical order.
//!
//! - [`tile`]: the one definition of a tile; [`tuning`]: numbers that may change.
//! - [`select`]: format to packed layout; [`layout`]: the layouts; [`pack`]: file to layout.
//! - [`activations`]: quantized panels of tokens.
//! - `kernel`: the inner loops, written once for every instruction set, layout and width.
//! - [`project`]: who computes what.

pub mod activations;
mod kernel;
mod layout;
pub mod pack;
pub mod project;
pub mod select;
pub mod tile;
pub mod tuning;

pub use activations::Activations;
pub use pack::PackedMatrix;
pub use project::{Job, project};
