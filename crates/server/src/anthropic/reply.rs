//! A reply as Anthropic's messages API tells it: in blocks. What is not streamed is told the same way and kept.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::Finish;

use crate::{
    answer::{End, Told},
    app::fresh_id,
    catalog::Model,
    conversation::ChatEvent,
    problem::{Dialect, Problem},
    sse::{Lines, Narrator},
};

/// The reply as it grows.
pub(super) struct Blocks {
    model: Arc<Model>,
    id: String,
    /// Tokens of the prompt, and those of them that were in the cache.
    prompt: (usize, usize),
    /// Blocks that are whole.
    blocks: Vec<Value>,
    current: Option<Block>,
    /// What stands in the block so far.
    text: String,
    called: bool,
    end: Option<End>,
}

/// The block that is being told.
#[derive(Clone, Debug, PartialEq)]
enum Block {
    Thinking,
    Text,
    Call { id: String, name: String },
}

impl Blocks {
    pub(super) fn new(model: &Arc<Model>) -> Blocks {
        Blocks {
            model: model.clone(),
            id: fresh_id("msg_"),
            prompt: (0, 0),
            blocks: Vec::new(),
            current: None,
            text: String::new(),
            called: false,
            end: None,
        }
    }

    /// The message as it is now.
    pub(super) fn message(&self) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model.name,
            "content": self.blocks,
            "stop_reason": self.stop_reason(),
            "stop_sequence": self.end.as_ref().and_then(|end| end.stop_string.as_deref()),
            "usage": self.usage(),
        })
    }

    fn stop_reason(&self) -> Option<&'static str> {
        let end = self.end.as_ref()?;
        Some(match end.finish {
            Finish::EndToken if self.called => "tool_use",
            Finish::EndToken => "end_turn",
            Finish::StopString => "stop_sequence",
            Finish::ContextFull => "model_context_window_exceeded",
            Finish::Length | Finish::Deadline | Finish::Cancelled => "max_tokens",
        })
    }

    fn usage(&self) -> Value {
        let (prompt, cached) = self.prompt;
        json!({
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self.end.as_ref().map_or(0, |end| end.usage.reply_tokens),
        })
    }

    fn event(kind: &str, mut object: Value, out: &mut Lines) {
        object["type"] = json!(kind);
        out.event(kind, &object);
    }

    /// The block as it is now.
    fn block(&self, block: &Block) -> Value {
        match block {
            Block::Thinking => json!({ "type": "thinking", "thinking": self.text, "signature": "" }),
            Block::Text => json!({ "type": "text", "text": self.text }),
            Block::Call { id, name } => {
                let input = serde_json::from_str(&self.text).unwrap_or_else(|_| json!({}));
                json!({ "type": "tool_use", "id": id, "name": name, "input": input })
            }
        }
    }

    fn open(&mut self, block: Block, out: &mut Lines) {
        if self.current.as_ref() == Some(&block) {
            return;
        }
        self.close(out);
        let start = json!({ "index": self.blocks.len(), "content_block": self.block(&block) });
        Blocks::event("content_block_start", start, out);
        self.current = Some(block);
    }

    fn close(&mut self, out: &mut Lines) {
        let Some(block) = self.current.take() else { return };
        let index = self.blocks.len();
        if block == Block::Thinking {
            self.delta(json!({ "type": "signature_delta", "signature": "" }), out);
        }
        Blocks::event("content_block_stop", json!({ "index": index }), out);
        self.blocks.push(self.block(&block));
        self.text.clear();
    }

    fn delta(&self, delta: Value, out: &mut Lines) {
        Blocks::event("content_block_delta", json!({ "index": self.blocks.len(), "delta": delta }), out);
    }

    fn piece(&mut self, event: ChatEvent, out: &mut Lines) {
        match event {
            ChatEvent::Reasoning(text) => {
                self.open(Block::Thinking, out);
                self.text += &text;
                self.delta(json!({ "type": "thinking_delta", "thinking": text }), out);
            }
            ChatEvent::Content(text) => {
                self.open(Block::Text, out);
                self.text += &text;
                self.delta(json!({ "type": "text_delta", "text": text }), out);
            }
            ChatEvent::ToolCallBegin { id, name, .. } => {
                self.called = true;
                self.open(Block::Call { id, name }, out);
            }
            ChatEvent::ToolCallArguments { json, .. } => {
                self.text += &json;
                self.delta(json!({ "type": "input_json_delta", "partial_json": json }), out);
            }
            ChatEvent::ToolCallEnd { .. } => self.close(out),
        }
    }
}

impl Narrator for Blocks {
    fn begin(&mut self, _out: &mut Lines) {}

    fn tell(&mut self, _choice: usize, told: Told, out: &mut Lines) {
        match told {
            Told::Started { prompt_tokens, cached_tokens } => {
                self.prompt = (prompt_tokens, cached_tokens);
                Blocks::event("message_start", json!({ "message": self.message() }), out);
                self.idle(out);
            }
            Told::Piece { events, .. } => events.into_iter().for_each(|event| self.piece(event, out)),
            Told::Finished(end) => {
                self.close(out);
                self.prompt = (end.usage.prompt_tokens, end.usage.cached_tokens);
                self.end = Some(*end);
                let message = self.message();
                let delta = json!({ "stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"] });
                Blocks::event("message_delta", json!({ "delta": delta, "usage": message["usage"] }), out);
                Blocks::event("message_stop", json!({}), out);
            }
            Told::Failed(_) => {}
        }
    }

    fn broke(&mut self, problem: &Problem, out: &mut Lines) {
        out.event("error", &problem.json(Dialect::Anthropic));
    }

    fn end(&mut self, _out: &mut Lines) {}

    fn idle(&mut self, out: &mut Lines) {
        Blocks::event("ping", json!({}), out);
    }
}
