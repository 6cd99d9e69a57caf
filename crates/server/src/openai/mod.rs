//! The API of OpenAI: chat completions, completions, responses.

pub(crate) mod chat;
mod chat_reply;
pub(crate) mod completions;
mod completions_reply;
mod logprobs;
mod messages;
pub(crate) mod responses;
mod responses_reply;
mod shared;

pub(crate) use shared::token_list;

use std::sync::Arc;

use axum::{extract::Request, response::Response};

use crate::{
    app::App,
    problem::{Kind, Problem},
};

/// `POST /v1/embeddings`: no model can, yet.
pub(crate) async fn embeddings(_app: Arc<App>, _request: Request) -> Result<Response, Problem> {
    let message = "no model of this server gives embeddings: it runs models that write text; use /v1/completions or \
                   /v1/chat/completions";
    Err(Problem::new(Kind::Absent, message))
}
