//! The API of OpenAI: chat completions, completions, responses, embeddings.

pub(crate) mod chat;
mod chat_reply;
pub(crate) mod completions;
mod completions_reply;
pub(crate) mod embeddings;
mod logprobs;
mod messages;
pub(crate) mod responses;
mod responses_reply;
mod shared;

pub(crate) use shared::token_list;
