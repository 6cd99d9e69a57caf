//! Projections: packed weights, tiles, launches.

pub mod layout;
mod many;
pub mod many_tile;
mod originals;
mod pack;
mod packing;
mod places;
mod prefill;
pub mod prefill_tile;
mod project;
mod select;
pub mod tile;
pub mod wide_tile;

pub(crate) use many::NUMBERS_THREADS;
pub(crate) use originals::Originals;
pub use pack::PackedMatrix;
pub(crate) use prefill::HALF_RUN;
pub(crate) use project::{Codes, Columns, NO_BLOCK, Operand, Share, product, project, project_fine};
pub use select::{Packed, select};
