//! Projections: activations times packed weights, for any number of tokens, in the canonical order.
//!
//! - [`tile`]: the one definition of a tile; [`tuning`]: numbers that may change; [`overrides`]: what a user forces.
//! - [`dispatch`]: from a shape to a plan, the only choice; [`segments`]: which rows meet which matrix.
//! - [`select`]: format to packed layout; [`layout`]: the layouts; [`pack`]: file to layout.
//! - [`activations`]: quantized panels of tokens; `quantize`: how they are filled.
//! - `kernel`: the inner loops, written once for every instruction set, layout and width.
//! - [`project`]: who computes what.

pub mod activations;
pub mod dispatch;
mod kernel;
mod layout;
pub mod overrides;
pub mod pack;
pub mod project;
pub(crate) mod quantize;
pub mod segments;
pub mod select;
pub mod tile;
pub mod tuning;

pub use activations::Activations;
pub use overrides::Overrides;
pub use pack::PackedMatrix;
pub use project::{Job, Kernels, project, project_segments};
pub use segments::SegmentTable;
pub use tuning::{Parameter, Tuning};
