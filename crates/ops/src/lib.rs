//! What can be computed: the vocabulary between models and devices, and its plainest implementation.
//!
//! A model is a function of the ops in [`Device`]; a device implements them. This crate names no real device and no
//! model. It holds what both sides must agree on:
//!
//! - [`device`]: the ops themselves, one trait.
//! - [`batch`]: what one step computes: tokens, positions, sequences, roles.
//! - [`kv`]: how keys and values are paged.
//! - [`latent`]: what attention over rows that are key and value at once is given.
//! - [`mask`]: which positions a row sees, and where these are kept.
//! - [`matrix`]: views of matrices of numbers, the second operand of a dense product.
//! - [`numerics`]: the canonical order of every sum, so that a row's bits never depend on its neighbours.
//! - [`math`]: our own exp, sine and cosine, equal on every device.
//! - [`routing`]: the choice of experts.
//! - [`rounding`]: rows rounded to 8-bit and 4-bit floats.
//! - [`streams`]: the residual stream as several.
//! - [`packing`]: such rows kept as these floats.
//! - [`profile`]: a device that measures another.
//! - [`ranking`]: the likeliest tokens.
//! - [`reference`]: the plainest implementation of every op. It is the specification, and a device of its own.
//! - [`audit`]: every op of a device, at every edge, against it and against float64.

#![forbid(unsafe_code)]

pub mod audit;
pub mod batch;
pub mod device;
pub mod error;
pub mod gate;
pub mod kv;
pub mod latent;
pub mod mask;
pub mod math;
pub mod matrix;
pub mod numerics;
pub mod packing;
pub mod profile;
pub mod ranking;
pub mod reference;
pub mod rounding;
pub mod routing;
pub mod streams;
pub mod table;

pub use batch::{Batch, Role};
pub use device::{Attention, Device, Linear, LinearStack, MatrixSource, Rope, RopeLayout, Rotation, Router};
pub use error::Error;
pub use gate::Gate;
pub use kv::{KvEntry, KvFormat, KvLayout, PAGE_TOKENS, RingPart};
pub use latent::{CompressedRows, Compressor, LatentAttention, Selector};
pub use matrix::{MatrixView, Numbers};
pub use packing::Packing;
pub use profile::Profiled;
pub use ranking::Candidate;
pub use rounding::Rounding;
pub use routing::{ExpertGroups, Routing, Score};
pub use streams::StreamGates;
pub use table::Table;
