//! `POST /v1/chat/completions`: reading the request.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use serde_json::json;

use super::{
    chat_reply::{self, Told},
    messages, shared,
    shared::Sending,
};
use crate::{
    app::App,
    ask::{Ask, Prompt},
    body,
    conversation::Conversation,
    fields::Fields,
    problem::{Problem, ok},
    sse, tools,
};

/// Fields that OpenAI's own service uses and that mean nothing here.
pub(super) const IGNORED: [&str; 6] =
    ["user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut fields = body::object(&app, request).await?;
    let name = fields.text("model")?;
    let model = app.catalog.find(name.as_deref())?;
    let (ask, sending) = read(fields)?;
    let replies = ask.replies;
    let logprobs = ask.sampling.logprobs.is_some();
    let answer = ask.submit(&app, &model).await?;
    let told = Told::new(&model, replies, logprobs, sending.usage);
    if sending.stream {
        return Ok(sse::stream(&app, answer, chat_reply::Chunks::new(told)));
    }
    Ok(ok(&told.whole(answer.whole().await?)))
}

fn read(mut fields: Fields) -> Result<(Ask, Sending), Problem> {
    let mut conversation = Conversation { messages: messages::read(&mut fields)?, ..Conversation::default() };
    let tools = tools::openai(&mut fields)?;
    conversation.think = think(&mut fields)?;
    conversation.variables = match fields.object("chat_template_kwargs")? {
        Some(variables) => variables.all(),
        None => Default::default(),
    };
    let mut ask = Ask::new(Vec::new());
    shared::sampling(&mut fields, &mut ask)?;
    let (new, old) = (fields.whole("max_completion_tokens", 1..=1 << 30)?, fields.whole("max_tokens", 1..=1 << 30)?);
    ask.tokens_max = new.or(old).map(|n| n as usize);
    ask.replies = fields.whole("n", 1..=128)?.unwrap_or(1) as usize;
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.whole("top_logprobs", 0..=20)?;
    if top.is_some_and(|n| n > 0) && !logprobs {
        return Err(fields.problem("top_logprobs", "is given and `logprobs` is not true"));
    }
    ask.sampling.logprobs = logprobs.then(|| top.unwrap_or(0) as usize);
    ask.shape = fields.object("response_format")?.map(shared::format).transpose()?.flatten();
    let sending = shared::sending(&mut fields)?;
    fields.ignore(&IGNORED);
    fields.only("store", &[json!(false)], "this server keeps no replies")?;
    fields.only("modalities", &[json!(["text"])], "models of this server write text only")?;
    fields.only("verbosity", &[json!("medium")], "say in a message how much is to be written")?;
    for (field, why) in [
        ("audio", "models of this server write text only"),
        ("prediction", "drafts are looked up in the prompt anyway"),
        ("web_search_options", "this server searches nothing"),
        ("functions", "use `tools`"),
        ("function_call", "use `tool_choice`"),
    ] {
        fields.only(field, &[], why)?;
    }
    fields.finish()?;
    conversation.tools = tools;
    ask.prompts = vec![Prompt::Conversation(Box::new(conversation))];
    Ok((ask, sending))
}

/// `reasoning_effort`: `none` and `minimal` switch thinking off, where the model can.
fn think(fields: &mut Fields) -> Result<Option<String>, Problem> {
    let words = ["none", "minimal", "low", "medium", "high", "xhigh"];
    Ok(fields.word("reasoning_effort", &words)?.map(str::to_owned))
}
