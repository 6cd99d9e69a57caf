//! `POST /v1/completions`: reading the request.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use serde_json::{Value, json};

use super::{
    chat::IGNORED,
    completions_reply::{Chunks, Told},
    shared,
    shared::Sending,
};
use crate::{
    app::App,
    ask::{Ask, Prompt},
    body,
    fields::{Fields, wrong},
    problem::{Problem, ok},
    sse,
};

/// OpenAI's default.
const TOKENS_MAX: u64 = 16;

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut fields = body::object(&app, request).await?;
    let name = fields.text("model")?;
    let model = app.catalog.find(name.as_deref())?;
    let (ask, sending) = read(fields)?;
    let told = Told::new(&model, ask.replies, ask.sampling.logprobs, sending.usage);
    let answer = ask.submit(&app, &model).await?;
    if sending.stream {
        return Ok(sse::stream(&app, answer, Chunks::new(told)));
    }
    Ok(ok(&told.whole(answer.whole().await?)))
}

fn read(mut fields: Fields) -> Result<(Ask, Sending), Problem> {
    let mut ask = Ask::new(prompts(&mut fields, "prompt")?);
    shared::sampling(&mut fields, &mut ask)?;
    // No tokens at all: to put a prompt into the cache.
    ask.tokens_max = Some(fields.whole("max_tokens", 0..=1 << 30)?.unwrap_or(TOKENS_MAX) as usize);
    ask.replies = fields.whole("n", 1..=128)?.unwrap_or(1) as usize;
    ask.sampling.logprobs = fields.whole("logprobs", 0..=20)?.map(|n| n as usize);
    ask.shape = fields.object("response_format")?.map(shared::format).transpose()?.flatten();
    let sending = shared::sending(&mut fields)?;
    fields.ignore(&IGNORED);
    fields.only("best_of", &[json!(1), json!(ask.replies)], "ask for `n` replies and choose")?;
    fields.only("echo", &[json!(false)], "put the prompt before the reply yourself")?;
    fields.only("suffix", &[json!("")], "models of this server write forward only")?;
    fields.finish()?;
    Ok((ask, sending))
}

/// A text, tokens, or several of either.
pub(super) fn prompts(fields: &mut Fields, name: &'static str) -> Result<Vec<Prompt>, Problem> {
    let prompt = fields.take(name);
    let prompt = fields.need(name, prompt)?;
    let expected = "a string, an array of token ids, or an array of these";
    let one = |value: &Value| match value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(ids) => {
            let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
            ids.map(Prompt::Tokens).ok_or_else(|| wrong(name, value, expected))
        }
        other => Err(wrong(name, other, expected)),
    };
    match &prompt {
        Value::Array(list) if !list.iter().all(Value::is_number) => list.iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}
