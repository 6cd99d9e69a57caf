//! Requests as Anthropic's messages API writes them.

use serde_json::{Value, json};

use crate::{
    ask::{Ask, Prompt},
    conversation::{Conversation, Message, ToolCall},
    fields::{Fields, wrong},
    grammar::Shape,
    problem::Problem,
    tools,
};

/// A request for a reply; and whether it is to be streamed.
pub(super) fn request(mut fields: Fields) -> Result<(Ask, bool), Problem> {
    let mut ask = Ask::new(Vec::new());
    let tokens_max = fields.whole("max_tokens", 1..=1 << 30)?;
    ask.tokens_max = Some(fields.need("max_tokens", tokens_max)? as usize);
    let s = &mut ask.sampling;
    s.temperature = fields.number("temperature", 0.0..=1.0)?.unwrap_or(s.temperature);
    s.top_p = fields.number("top_p", f64::from(f32::MIN_POSITIVE)..=1.0)?.unwrap_or(s.top_p);
    s.top_k = fields.whole("top_k", 0..=1 << 30)?.unwrap_or(0) as usize;
    // Not of the API: fixes the draws.
    s.seed = fields.whole("seed", 0..=u64::MAX)?.unwrap_or(s.seed);
    ask.stop = fields.texts("stop_sequences")?;
    if ask.stop.iter().any(|stop| stop.is_empty() || stop.len() > 1024) || ask.stop.len() > 64 {
        return Err(fields.problem("stop_sequences", "holds at most 64 texts of 1 to 1024 bytes"));
    }
    let stream = fields.flag("stream")?.unwrap_or(false);
    fields.ignore(&["metadata", "service_tier", "inference_geo"]);
    fields.only("container", &[], "this server runs no code")?;
    fields.only("mcp_servers", &[], "this server calls no other servers")?;
    let (conversation, shape) = conversation(fields)?;
    ask.shape = shape;
    ask.prompts = vec![Prompt::Conversation(Box::new(conversation))];
    Ok((ask, stream))
}

/// What `count_tokens` takes: a request without anything about the reply.
pub(super) fn prompt(fields: Fields) -> Result<Conversation, Problem> {
    Ok(conversation(fields)?.0)
}

/// Reads what makes the prompt, and finishes the fields.
fn conversation(mut fields: Fields) -> Result<(Conversation, Option<(Shape, String)>), Problem> {
    let mut conversation = Conversation::default();
    if let Some(system) = fields.take("system") {
        conversation.messages.push(Message::new("system", texts(system, "system")?));
    }
    let list = fields.list("messages")?;
    let list = fields.need("messages", list)?;
    for (index, value) in list.into_iter().enumerate() {
        message(Fields::of(value, format!("messages[{index}]"))?, &mut conversation.messages)?;
    }
    match conversation.messages.last() {
        Some(last) if last.role == "assistant" => {
            if !last.tool_calls.is_empty() || last.reasoning_content.is_some() || conversation.messages.len() == 1 {
                let what = "ends with a message of the assistant that holds more than the text a reply begins with";
                return Err(fields.problem("messages", what));
            }
            conversation.begun = conversation.messages.pop().map(|last| last.content).unwrap_or_default();
        }
        Some(last) if last.role != "system" => {}
        _ => return Err(fields.problem("messages", "is empty; there is nothing to answer")),
    }
    conversation.tools = tools::anthropic(&mut fields)?;
    if let Some(mut thinking) = fields.object("thinking")? {
        let kind = thinking.word("type", &["enabled", "disabled", "adaptive"])?;
        conversation.think = match thinking.need("type", kind)? {
            "enabled" => Some("on".to_owned()),
            "disabled" => Some("none".to_owned()),
            _ => None,
        };
        thinking.whole("budget_tokens", 1..=1 << 30)?; // `max_tokens` bounds thoughts and words together
        thinking.ignore(&["display"]);
        thinking.finish()?;
    }
    let mut shape = fields.object("output_format")?.map(format).transpose()?;
    if let Some(mut output) = fields.object("output_config")? {
        let efforts = ["low", "medium", "high", "max"];
        conversation.think = output.word("effort", &efforts)?.map(str::to_owned).or(conversation.think);
        shape = output.object("format")?.map(format).transpose()?.or(shape);
        output.finish()?;
    }
    fields.only("context_management", &[json!({})], "what does not fit the context is refused")?;
    fields.ignore(&["cache_control"]);
    fields.finish()?;
    Ok((conversation, shape))
}

fn format(mut fields: Fields) -> Result<(Shape, String), Problem> {
    fields.word("type", &["json_schema"])?;
    let schema = fields.take("schema");
    let shape = (Shape::Schema(fields.need("schema", schema)?), fields.path("schema"));
    fields.finish()?;
    Ok(shape)
}

/// A text, or blocks of text.
fn texts(value: Value, at: &str) -> Result<String, Problem> {
    let blocks = match value {
        Value::String(text) => return Ok(text),
        Value::Array(blocks) => blocks,
        other => return Err(wrong(at, &other, "a string or an array of blocks")),
    };
    let one = |(index, value): (usize, Value)| {
        let mut block = Fields::of(value, format!("{at}[{index}]"))?;
        let kind = block.text("type")?;
        let kind = block.need("type", kind)?;
        if kind != "text" {
            return Err(no_text(&block, &kind));
        }
        text(block)
    };
    let all = blocks.into_iter().enumerate().map(one).collect::<Result<Vec<String>, Problem>>()?;
    Ok(all.join("\n"))
}

fn text(mut block: Fields) -> Result<String, Problem> {
    let text = block.text("text")?;
    let text = block.need("text", text)?;
    block.ignore(&["cache_control", "citations"]);
    block.finish()?;
    Ok(text)
}

fn no_text(block: &Fields, kind: &str) -> Problem {
    let kind: String = kind.chars().take(40).collect();
    block.problem("type", format_args!("is `{kind}`: models of this server read text only"))
}

/// A message; results of tools become messages of their own.
fn message(mut fields: Fields, all: &mut Vec<Message>) -> Result<(), Problem> {
    let role = fields.word("role", &["user", "assistant"])?;
    let role = fields.need("role", role)?;
    let (content, at) = (fields.take("content"), fields.path("content"));
    let content = fields.need("content", content)?;
    fields.finish()?;
    let blocks = match content {
        Value::String(text) => {
            all.push(Message::new(role, text));
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        other => return Err(wrong(&at, &other, "a string or an array of blocks")),
    };
    let (mut said, mut message) = (Vec::new(), Message::new(role, ""));
    for (index, value) in blocks.into_iter().enumerate() {
        let mut block = Fields::of(value, format!("{at}[{index}]"))?;
        let kind = block.text("type")?;
        let kind = block.need("type", kind)?;
        match (kind.as_str(), role) {
            ("text", _) => said.push(text(block)?),
            ("tool_result", "user") => {
                let result = result(block, all)?;
                all.push(result);
            }
            ("tool_use", "assistant") => message.tool_calls.push(call(block)?),
            ("thinking", "assistant") => {
                let thoughts = block.text("thinking")?;
                block.ignore(&["signature", "cache_control"]);
                message.reasoning_content = thoughts.filter(|t| !t.is_empty()).or(message.reasoning_content);
                block.finish()?;
            }
            ("tool_result" | "tool_use" | "thinking", _) => {
                return Err(
                    block.problem("type", format_args!("is `{kind}`, which a message of the {role} does not hold"))
                );
            }
            _ => return Err(no_text(&block, &kind)),
        }
    }
    message.content = said.join("\n");
    let only_results = role == "user" && said.is_empty();
    if !only_results {
        all.push(message);
    }
    Ok(())
}

fn call(mut block: Fields) -> Result<ToolCall, Problem> {
    let (id, name, input) = (block.text("id")?, block.text("name")?, block.take("input"));
    let (id, name) = (block.need("id", id)?, block.need("name", name)?);
    let input = input.unwrap_or_else(|| json!({}));
    if !input.is_object() {
        return Err(wrong(&block.path("input"), &input, "an object"));
    }
    block.ignore(&["cache_control", "caller"]);
    block.finish()?;
    Ok(ToolCall::new(id, name, input.to_string()))
}

fn result(mut block: Fields, all: &[Message]) -> Result<Message, Problem> {
    let (id, content, at) = (block.text("tool_use_id")?, block.take("content"), block.path("content"));
    let id = block.need("tool_use_id", id)?;
    let content = content.map_or(Ok(String::new()), |content| texts(content, &at))?;
    let failed = block.flag("is_error")?.unwrap_or(false);
    block.ignore(&["cache_control"]);
    block.finish()?;
    let called = all.iter().flat_map(|m| &m.tool_calls).find(|call| call.id == id);
    let name = called.map(|call| call.function.name.clone());
    let content = if failed { format!("Error: {content}") } else { content };
    Ok(Message { tool_call_id: Some(id), name, ..Message::new("tool", content) })
}
