//! Messages on their way to a prompt, and the text of a reply on its way to thoughts, words and calls.

use std::collections::BTreeMap;

use serde_json::Value;
use tessera_engine::{Message as Plain, TemplateOptions};

use crate::{catalog::Model, problem::Problem, tools::ToolUse};

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Message {
    pub(crate) role: String,
    pub(crate) content: String,
    pub(crate) reasoning_content: Option<String>,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) tool_call_id: Option<String>,
    pub(crate) name: Option<String>,
}

/// A call that a model made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) function: Function,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl ToolCall {
    pub(crate) fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> ToolCall {
        ToolCall { id: id.into(), function: Function { name: name.into(), arguments: arguments.into() } }
    }
}

impl Message {
    pub(crate) fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), ..Message::default() }
    }
}

/// A piece of a reply.
#[derive(Clone, Debug, PartialEq)]
#[allow(dead_code)] // readers of thoughts and calls are another step
pub(crate) enum ChatEvent {
    Reasoning(String),
    Content(String),
    ToolCallBegin { index: usize, id: String, name: String },
    ToolCallArguments { index: usize, json: String },
    ToolCallEnd { index: usize },
}

/// Reads a reply as it comes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reader;

impl Reader {
    /// Reads a text that is no conversation: all of it is content.
    pub(crate) fn plain() -> Reader {
        Reader
    }

    pub(crate) fn read(&mut self, text: String, out: &mut Vec<ChatEvent>) {
        if !text.is_empty() {
            out.push(ChatEvent::Content(text));
        }
    }

    pub(crate) fn finish(&mut self, _out: &mut Vec<ChatEvent>) {}
}

/// A reply put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reply {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) calls: Vec<ToolCall>,
}

impl Reply {
    /// Adds the next piece.
    pub(crate) fn add(&mut self, event: &ChatEvent) {
        match event {
            ChatEvent::Reasoning(text) => self.reasoning += text,
            ChatEvent::Content(text) => self.content += text,
            ChatEvent::ToolCallBegin { id, name, .. } => self.calls.push(ToolCall::new(id, name, "")),
            ChatEvent::ToolCallArguments { index, json } => {
                if let Some(call) = self.calls.get_mut(*index) {
                    call.function.arguments += json;
                }
            }
            ChatEvent::ToolCallEnd { .. } => {}
        }
    }
}

/// A conversation that is to go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: ToolUse,
    /// How much to think; none: as the model does by itself.
    pub(crate) think: Option<String>,
    /// More variables of the template.
    pub(crate) variables: BTreeMap<String, Value>,
}

impl Conversation {
    /// The tokens up to where the model is to speak, and what reads its reply.
    pub(crate) fn prompt(&self, model: &Model) -> Result<(Vec<u32>, Reader), Problem> {
        let Some(template) = &model.loaded.template else {
            let message = format!("the model `{}` has no chat template; use /v1/completions", model.name);
            return Err(Problem::invalid(message).about("model"));
        };
        if !self.tools.list.is_empty() || self.messages.iter().any(|m| !m.tool_calls.is_empty() || m.role == "tool") {
            return Err(Problem::invalid("tools are not supported yet").about("tools"));
        }
        if self.think.is_some() {
            return Err(Problem::invalid("thinking cannot be switched yet").about("reasoning_effort"));
        }
        let tokenizer = model.tokenizer();
        let shield = |m: &Message| Plain::new(m.role.as_str(), tokenizer.shield(&m.content));
        let shielded: Vec<Plain> = self.messages.iter().map(shield).collect();
        let refused = |e: &dyn std::fmt::Display| Problem::invalid(e.to_string()).about("messages");
        let options = TemplateOptions { variables: self.variables.clone(), ..TemplateOptions::default() };
        let text = template.render(&shielded, &options).map_err(|e| refused(&e))?;
        let mut tokens = tokenizer.encode_rendered(&text).map_err(|e| refused(&e))?;
        // Some templates write the leading token and some leave it to the tokenizer.
        let bos = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && tokens.first() != Some(bos));
        if let Some(bos) = bos {
            tokens.insert(0, bos);
        }
        Ok((tokens, Reader))
    }
}
