//! The commands, one file each.

pub(crate) mod completions;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod pull;
pub(crate) mod rm;
