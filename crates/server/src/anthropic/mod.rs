//! The API of Anthropic: messages, and how many tokens they are.

pub(crate) mod messages;
mod read;
mod reply;
