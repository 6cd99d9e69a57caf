//! Messages of a conversation as OpenAI's chat API writes them.

use serde_json::Value;

use crate::{
    conversation::{Message, ToolCall},
    fields::{Fields, wrong},
    problem::Problem,
};

/// Reads `messages`.
pub(super) fn read(fields: &mut Fields) -> Result<Vec<Message>, Problem> {
    let (list, path) = (fields.list("messages")?, fields.path("messages"));
    let list = fields.need("messages", list)?;
    if list.is_empty() {
        return Err(fields.problem("messages", "is empty; there is nothing to answer"));
    }
    let one = |(index, value): (usize, Value)| message(Fields::of(value, format!("{path}[{index}]"))?);
    list.into_iter().enumerate().map(one).collect()
}

fn message(mut fields: Fields) -> Result<Message, Problem> {
    let role = fields.word("role", &["system", "developer", "user", "assistant", "tool"])?;
    let role = fields.need("role", role)?;
    let (content, at) = (fields.take("content"), fields.path("content"));
    let mut message = Message::new(if role == "developer" { "system" } else { role }, "");
    match content {
        Some(value) => message.content = text(value, &at)?,
        None if role == "assistant" => {}
        None => return Err(fields.problem("content", "is missing")),
    }
    message.name = fields.text("name")?;
    match role {
        "assistant" => {
            let reasoning = fields.text("reasoning_content")?;
            message.reasoning_content = reasoning.or(fields.text("reasoning")?);
            message.tool_calls = calls(&mut fields)?;
            fields.ignore(&["annotations"]);
            for gone in ["refusal", "audio", "function_call"] {
                fields.only(gone, &[], "this server never sends it")?;
            }
        }
        "tool" => {
            let id = fields.text("tool_call_id")?;
            message.tool_call_id = Some(fields.need("tool_call_id", id)?);
        }
        _ => {}
    }
    fields.finish()?;
    Ok(message)
}

/// A text, or parts that are texts.
pub(super) fn text(value: Value, at: &str) -> Result<String, Problem> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong(at, &other, "a string or an array of parts")),
    };
    let part = |(index, value): (usize, Value)| {
        let mut fields = Fields::of(value, format!("{at}[{index}]"))?;
        let kind = fields.text("type")?;
        let kind = fields.need("type", kind)?;
        if !["text", "input_text", "output_text"].contains(&kind.as_str()) {
            let kind: String = kind.chars().take(40).collect();
            return Err(fields.problem("type", format_args!("is `{kind}`: models of this server read text only")));
        }
        let text = fields.text("text")?;
        let text = fields.need("text", text)?;
        fields.ignore(&["annotations", "logprobs"]);
        fields.finish()?;
        Ok(text)
    };
    parts.into_iter().enumerate().map(part).collect()
}

fn calls(fields: &mut Fields) -> Result<Vec<ToolCall>, Problem> {
    let path = fields.path("tool_calls");
    let one = |(index, value): (usize, Value)| {
        let mut call = Fields::of(value, format!("{path}[{index}]"))?;
        call.word("type", &["function"])?;
        call.ignore(&["index"]);
        let id = call.text("id")?;
        let function = call.object("function")?;
        let (id, mut function) = (call.need("id", id)?, call.need("function", function)?);
        let (name, arguments) = (function.text("name")?, function.text("arguments")?);
        let name = function.need("name", name)?;
        function.finish()?;
        call.finish()?;
        Ok(ToolCall::new(id, name, arguments.unwrap_or_default()))
    };
    fields.list("tool_calls")?.unwrap_or_default().into_iter().enumerate().map(one).collect()
}
