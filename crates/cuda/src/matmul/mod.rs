//! Projections: packed weights, tiles, launches.

pub mod layout;
mod pack;
mod project;
mod select;
pub mod tile;

pub use pack::PackedMatrix;
pub(crate) use project::{Columns, project, quantize};
pub use select::{Packed, select};
