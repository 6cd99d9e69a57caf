//! The commands, one file each.

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod inspect;
pub(crate) mod kernels;
pub(crate) mod list;
pub(crate) mod perplexity;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod synth;
pub(crate) mod tokenize;
pub(crate) mod tune;
