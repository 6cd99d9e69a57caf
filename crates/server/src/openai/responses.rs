//! `POST /v1/responses`: reading the request.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use serde_json::{Value, json};

use super::{
    chat::IGNORED,
    messages,
    responses_reply::{Asked, Events},
    shared,
};
use crate::{
    app::App,
    ask::{Ask, Prompt},
    body,
    conversation::{Conversation, Message, ToolCall},
    fields::{Fields, wrong},
    problem::{Problem, ok},
    sse::{self, Lines, Narrator},
    tools::{self, Choice},
};

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut fields = body::object(&app, request).await?;
    let name = fields.text("model")?;
    let model = app.catalog.find(name.as_deref())?;
    let (ask, asked, stream) = read(fields)?;
    let mut answer = ask.submit(&app, &model).await?;
    let mut events = Events::new(&model, asked);
    if stream {
        return Ok(sse::stream(&app, answer, events));
    }
    // The same as is streamed, told to nobody.
    let mut nobody = Lines::default();
    events.begin(&mut nobody);
    while let Some((choice, told)) = answer.next().await {
        if let crate::answer::Told::Failed(problem) = told {
            return Err(problem);
        }
        events.tell(choice, told, &mut nobody);
        nobody = Lines::default();
    }
    Ok(ok(&events.response()))
}

fn read(mut fields: Fields) -> Result<(Ask, Asked, bool), Problem> {
    let mut conversation = Conversation::default();
    let instructions = fields.text("instructions")?;
    conversation.messages.extend(instructions.as_deref().map(|text| Message::new("system", text)));
    conversation.messages.extend(input(&mut fields)?);
    conversation.tools = tools::openai(&mut fields)?;
    if let Some(mut reasoning) = fields.object("reasoning")? {
        let words = ["none", "minimal", "low", "medium", "high", "xhigh"];
        conversation.think = reasoning.word("effort", &words)?.map(str::to_owned);
        reasoning.ignore(&["summary", "generate_summary"]);
        reasoning.finish()?;
    }
    let mut ask = Ask::new(Vec::new());
    shared::sampling(&mut fields, &mut ask)?;
    ask.tokens_max = fields.whole("max_output_tokens", 1..=1 << 30)?.map(|n| n as usize);
    let mut format = json!({ "type": "text" });
    if let Some(mut text) = fields.object("text")? {
        if let Some(value) = text.take("format") {
            format = value.clone();
            ask.shape = shared::format(Fields::of(value, "text.format")?)?;
        }
        text.only("verbosity", &[json!("medium")], "say in a message how much is to be written")?;
        text.finish()?;
    }
    let wanted = fields.texts("include")?;
    let logprobs = wanted.iter().any(|w| w == "message.output_text.logprobs");
    if let Some(other) =
        wanted.iter().find(|w| !["message.output_text.logprobs", "reasoning.encrypted_content"].contains(&w.as_str()))
    {
        let other: String = other.chars().take(60).collect();
        return Err(fields.problem("include", format_args!("asks for `{other}`, which this server does not have")));
    }
    let top = fields.whole("top_logprobs", 0..=20)?.map(|n| n as usize);
    ask.sampling.logprobs = (logprobs || top.is_some_and(|n| n > 0)).then(|| top.unwrap_or(0));
    let stream = fields.flag("stream")?.unwrap_or(false);
    if let Some(mut options) = fields.object("stream_options")? {
        options.ignore(&["include_obfuscation"]);
        options.finish()?;
    }
    let metadata = fields.take("metadata").unwrap_or_else(|| json!({}));
    fields.ignore(&IGNORED);
    fields.only("store", &[json!(false)], "this server keeps no responses")?;
    fields.only("background", &[json!(false)], "this server keeps no responses")?;
    fields.only("previous_response_id", &[], "this server keeps no responses; send the conversation")?;
    fields.only("conversation", &[], "this server keeps no conversations; send the messages")?;
    fields.only("truncation", &[json!("disabled")], "what does not fit the context is refused")?;
    fields.only("prompt", &[], "this server keeps no prompts")?;
    fields.only("max_tool_calls", &[], "this server calls no tools itself")?;
    fields.finish()?;
    let asked = Asked {
        instructions,
        tokens_max: ask.tokens_max,
        temperature: ask.sampling.temperature,
        top_p: ask.sampling.top_p,
        format,
        effort: conversation.think.clone(),
        tools: conversation.tools.list.iter().map(flat).collect(),
        tool_choice: match &conversation.tools.choice {
            Choice::Auto => json!("auto"),
            Choice::None => json!("none"),
            Choice::Required => json!("required"),
            Choice::Named(name) => json!({ "type": "function", "name": name }),
        },
        parallel: !conversation.tools.one_only,
        logprobs: ask.sampling.logprobs,
        metadata,
    };
    ask.prompts = vec![Prompt::Conversation(Box::new(conversation))];
    Ok((ask, asked, stream))
}

/// A tool as responses write it, its fields beside its type.
fn flat(tool: &Value) -> Value {
    let function = &tool["function"];
    json!({
        "type": "function",
        "name": function["name"],
        "description": function["description"],
        "parameters": function["parameters"],
        "strict": false,
    })
}

/// A text, or items: messages, calls and their results, thoughts.
fn input(fields: &mut Fields) -> Result<Vec<Message>, Problem> {
    let input = fields.take("input");
    let items = match fields.need("input", input)? {
        Value::String(text) => return Ok(vec![Message::new("user", text)]),
        Value::Array(items) => items,
        other => return Err(wrong("input", &other, "a string or an array of items")),
    };
    if items.is_empty() {
        return Err(fields.problem("input", "is empty; there is nothing to answer"));
    }
    let mut all: Vec<Message> = Vec::new();
    for (index, value) in items.into_iter().enumerate() {
        item(Fields::of(value, format!("input[{index}]"))?, &mut all)?;
    }
    Ok(all)
}

fn item(mut fields: Fields, all: &mut Vec<Message>) -> Result<(), Problem> {
    let kinds = ["message", "function_call", "function_call_output", "reasoning"];
    let kind = fields.word("type", &kinds)?.unwrap_or("message");
    fields.ignore(&["id", "status"]);
    match kind {
        "message" => {
            let role = fields.word("role", &["system", "developer", "user", "assistant"])?;
            let role = fields.need("role", role)?;
            let (content, at) = (fields.take("content"), fields.path("content"));
            let text = messages::text(fields.need("content", content)?, &at)?;
            fields.ignore(&["phase"]);
            match (role, speaking(all)) {
                // Thoughts and words of one turn are one message.
                ("assistant", Some(last)) if last.content.is_empty() && last.tool_calls.is_empty() => {
                    last.content = text
                }
                _ => all.push(Message::new(if role == "developer" { "system" } else { role }, text)),
            }
        }
        "function_call" => {
            let (id, name, arguments) = (fields.text("call_id")?, fields.text("name")?, fields.text("arguments")?);
            let id = fields.need("call_id", id)?;
            let call = ToolCall::new(id, fields.need("name", name)?, arguments.unwrap_or_default());
            match speaking(all) {
                Some(last) => last.tool_calls.push(call),
                None => all.push(Message { tool_calls: vec![call], ..Message::new("assistant", "") }),
            }
        }
        "function_call_output" => {
            let (id, output, at) = (fields.text("call_id")?, fields.take("output"), fields.path("output"));
            let id = fields.need("call_id", id)?;
            let text = messages::text(fields.need("output", output)?, &at)?;
            let called = all.iter().flat_map(|m| &m.tool_calls).find(|call| call.id == id);
            let name = called.map(|call| call.function.name.clone());
            all.push(Message { tool_call_id: Some(id), name, ..Message::new("tool", text) });
        }
        _ => {
            fields.ignore(&["summary", "encrypted_content"]);
            let thoughts = match fields.list("content")? {
                None => String::new(),
                Some(parts) => {
                    let text = |part: &Value| part["text"].as_str().unwrap_or_default().to_owned();
                    parts.iter().map(text).collect()
                }
            };
            if !thoughts.is_empty() {
                all.push(Message { reasoning_content: Some(thoughts), ..Message::new("assistant", "") });
            }
        }
    }
    fields.finish()
}

/// The last message, if the model is still speaking.
fn speaking(all: &mut [Message]) -> Option<&mut Message> {
    all.last_mut().filter(|message| message.role == "assistant")
}
