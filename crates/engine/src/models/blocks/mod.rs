//! What transformer models are made of: self-attention, feed-forward layers, an output head. An architecture is a short file
//! that puts these together; what differs are fields of the blocks.

mod attention;
mod experts;
mod feed_forward;
mod head;
mod latent;
mod streams;

pub(super) use attention::SelfAttention;
pub(super) use experts::{Experts, routing};
pub(super) use feed_forward::{FeedForward, GatedMlp};
pub(super) use head::Head;
pub(super) use latent::{LatentContext, LatentSelfAttention};
pub(super) use streams::HyperConnection;
