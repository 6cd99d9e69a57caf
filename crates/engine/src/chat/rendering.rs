//! From messages to a prompt: shielded, in the form that the family's template wants, rendered and cut into tokens.

use minijinja::{
    Value,
    value::{Serde, ValueKind},
};
use serde::{Serialize, Serializer};

use super::{
    format::ChatFormat,
    message::{Message, ToolCall},
};
use crate::{ChatTemplate, TemplateError, TemplateOptions, Tokenizer, TokenizerError};

/// Stands in for text that is put in after rendering: code points that Unicode promises never to be characters.
const HOLE: char = '\u{fdd1}';

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The template fails.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The text cannot be cut into tokens.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Arguments of a call in the conversation are no JSON.
    #[error("the arguments of the call of `{name}` in message {message} are not JSON: {problem}")]
    #[allow(missing_docs)] // the message says what the fields are
    Arguments { message: usize, name: String, problem: String },
}

/// The text of a conversation up to where the model is to speak, and its tokens. What people, tools and models wrote in it
/// can make no control token; only calls with their raw text ([`ToolCall::raw`]) can, where the family allows it.
///
/// # Errors
/// If a call's arguments are not JSON, or the template or the tokenizer fails.
pub fn prompt(
    template: &ChatTemplate,
    format: &ChatFormat,
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: &TemplateOptions,
) -> Result<(String, Vec<u32>), PromptError> {
    let shield = |text: &str| tokenizer.shield(text);
    let (values, holes) = messages_for(template, format, messages, &shield)?;
    let mut options = options.clone();
    if let Some(tools) = &options.tools {
        let tools: Value = serde_json::from_str(tools).map_err(|e| TemplateError::Tools(e.to_string()))?;
        options.tools = serde_json::to_string(&shielded(&tools, &shield)).ok();
    }
    let mut text = template.render(&values, &options)?;
    for (index, raw) in holes.iter().enumerate() {
        text = text.replace(&hole(index), raw);
    }
    let mut tokens = tokenizer.encode_rendered(&text)?;
    // Some templates write the leading token and some leave it to the tokenizer.
    let bos = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && tokens.first() != Some(bos));
    if let Some(bos) = bos {
        tokens.insert(0, bos);
    }
    Ok((text, tokens))
}

/// Messages in the form that a family's template wants, every text of them through `shield`; and the texts for the holes
/// that stand for calls which are repeated exactly.
///
/// # Errors
/// If the arguments of a call are not JSON.
pub fn messages_for(
    template: &ChatTemplate,
    format: &ChatFormat,
    messages: &[Message],
    shield: &dyn Fn(&str) -> String,
) -> Result<(Vec<Value>, Vec<String>), PromptError> {
    let wants = format.history;
    let text_arguments = wants.text_arguments.is_some_and(|clue| template.mentions(clue));
    let inside =
        wants.results.filter(|(key, own)| template.mentions(key) && !template.mentions(own)).map(|(key, _)| key);
    let (mut values, mut holes): (Vec<Vec<(String, Value)>>, _) = (Vec::new(), Vec::new());
    for (index, message) in messages.iter().enumerate() {
        let called = |m: &&Message| !m.tool_calls.is_empty();
        if let (Some(key), "tool", Some(last)) = (inside, message.role.as_str(), values.last_mut()) {
            let caller = messages[..index].iter().rev().find(called);
            add_result(last, key, message, caller, shield);
            continue;
        }
        let mut fields = vec![("role".to_owned(), Value::from(message.role.as_str()))];
        let mut content = shield(&message.content);
        let mut reasoning = message.reasoning_content.as_deref().map(shield);
        let raws = message.tool_calls.iter().map(|call| call.raw.as_deref()).collect::<Option<String>>();
        let raw = raws.filter(|raw| wants.replay && !raw.is_empty() && format.is_closed(raw));
        if let Some(raw) = raw {
            content += &hole(holes.len());
            holes.push(raw);
        } else if !message.tool_calls.is_empty() {
            if let (true, Some(thoughts), false) = (wants.merge, &mut reasoning, content.is_empty()) {
                *thoughts = format!("{thoughts}\n\n{}", std::mem::take(&mut content));
            }
            let call = |call: &ToolCall| call_value(call, index, text_arguments, shield);
            let calls = message.tool_calls.iter().map(call).collect::<Result<Vec<_>, _>>()?;
            fields.push(("tool_calls".to_owned(), Value::from(calls)));
        }
        fields.push(("content".to_owned(), Value::from(content)));
        let others = [
            (wants.reasoning, reasoning),
            ("tool_call_id", message.tool_call_id.as_deref().map(shield)),
            ("name", message.name.as_deref().map(shield)),
        ];
        let others = others.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?))));
        fields.extend(others);
        values.push(fields);
    }
    Ok((values.into_iter().map(map).collect(), holes))
}

fn hole(index: usize) -> String {
    format!("{HOLE}{index}{HOLE}")
}

/// A call: `{"id", "type", "function": {"name", "arguments"}}`.
fn call_value(
    call: &ToolCall,
    message: usize,
    as_text: bool,
    shield: &dyn Fn(&str) -> String,
) -> Result<Value, PromptError> {
    let text = if call.function.arguments.trim().is_empty() { "{}" } else { &call.function.arguments };
    let parsed: Value = serde_json::from_str(text).map_err(|e| PromptError::Arguments {
        message,
        name: call.function.name.clone(),
        problem: e.to_string(),
    })?;
    let arguments = if as_text { Value::from(shield(text)) } else { shielded(&parsed, shield) };
    let function = map([("name", Value::from(shield(&call.function.name))), ("arguments", arguments)]);
    let (id, kind) = (Value::from(shield(&call.id)), Value::from(call.kind.as_str()));
    Ok(map([("id", id), ("type", kind), ("function", function)]))
}

/// Puts the result of a tool into the message before, for templates that know no messages of tools.
fn add_result(
    fields: &mut Vec<(String, Value)>,
    key: &str,
    message: &Message,
    caller: Option<&Message>,
    shield: &dyn Fn(&str) -> String,
) {
    let calls = caller.map_or(&[][..], |caller| &caller.tool_calls);
    let named = calls.iter().find(|call| Some(&call.id) == message.tool_call_id.as_ref());
    let name = message.name.as_deref().or(named.map(|call| call.function.name.as_str())).unwrap_or("unknown");
    let parsed = serde_json::from_str::<Value>(&message.content).ok().filter(|v| v.kind() == ValueKind::Map);
    let response = parsed.map_or_else(|| Value::from(shield(&message.content)), |value| shielded(&value, shield));
    let result = map([("name", Value::from(shield(name))), ("response", response)]);
    let before = fields.iter().position(|(k, _)| k == key).map(|at| fields.remove(at).1);
    let all = before.iter().filter_map(|list| list.try_iter().ok()).flatten().chain([result]);
    fields.push((key.to_owned(), Value::from(all.collect::<Vec<_>>())));
}

/// The same value with every text shielded, keys too.
fn shielded(value: &Value, shield: &dyn Fn(&str) -> String) -> Value {
    match value.kind() {
        ValueKind::String => Value::from(shield(value.as_str().unwrap_or_default())),
        ValueKind::Seq => {
            let items = value.try_iter().into_iter().flatten();
            Value::from(items.map(|item| shielded(&item, shield)).collect::<Vec<_>>())
        }
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            let pair = |key: Value| {
                let inner = value.get_item(&key).unwrap_or_default();
                (shielded(&key, shield), shielded(&inner, shield))
            };
            map(keys.map(pair))
        }
        _ => value.clone(),
    }
}

/// A map that keeps the order of its keys.
fn map<K: Serialize>(pairs: impl IntoIterator<Item = (K, Value)>) -> Value {
    struct Pairs<K>(Vec<(K, Value)>);
    impl<K: Serialize> Serialize for Pairs<K> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
        }
    }
    Value::from(Serde(&Pairs(pairs.into_iter().collect())))
}
