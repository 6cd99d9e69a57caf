//! A reply put together: what a caller that does not stream wants, and what goes into the conversation.

use super::{
    event::{CallState, ChatEvent},
    message::{Message, ToolCall},
};

/// All of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// What was thought.
    pub reasoning: String,
    /// What was said.
    pub content: String,
    /// What was called, with the raw text of each call.
    pub calls: Vec<ToolCall>,
    /// For each call whether it was well formed.
    pub states: Vec<CallState>,
}

impl Reply {
    /// Adds the next piece.
    pub fn add(&mut self, event: &ChatEvent) {
        match event {
            ChatEvent::Reasoning(text) => self.reasoning += text,
            ChatEvent::Content(text) => self.content += text,
            ChatEvent::ToolCallBegin { id, name, .. } => {
                self.calls.push(ToolCall::new(id.as_str(), name.as_str(), ""));
                self.states.push(CallState::Repaired);
            }
            ChatEvent::ToolCallArguments { index, json } => {
                if let Some(call) = self.calls.get_mut(*index) {
                    call.function.arguments += json;
                }
            }
            ChatEvent::ToolCallEnd { index, state, raw } => {
                if let (Some(call), Some(last)) = (self.calls.get_mut(*index), self.states.get_mut(*index)) {
                    (call.raw, *last) = (Some(raw.clone()), *state);
                }
            }
        }
    }

    /// The reply as a message of the conversation.
    pub fn message(&self) -> Message {
        let reasoning_content = Some(&self.reasoning).filter(|r| !r.is_empty()).cloned();
        Message {
            reasoning_content,
            tool_calls: self.calls.clone(),
            ..Message::new("assistant", self.content.as_str())
        }
    }
}

impl<'e> FromIterator<&'e ChatEvent> for Reply {
    fn from_iter<I: IntoIterator<Item = &'e ChatEvent>>(events: I) -> Reply {
        let mut reply = Reply::default();
        events.into_iter().for_each(|event| reply.add(event));
        reply
    }
}
