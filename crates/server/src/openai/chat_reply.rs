//! `POST /v1/chat/completions`: telling the reply, at once or in chunks.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::Sampled;

use super::{logprobs, shared};
use crate::{
    answer::{self, Totals, Whole},
    app::{fresh_id, now},
    catalog::Model,
    conversation::ChatEvent,
    problem::{Dialect, Problem},
    sse::{Lines, Narrator},
};

/// What all parts of a reply have in common.
pub(super) struct Told {
    model: Arc<Model>,
    id: String,
    created: u64,
    replies: usize,
    logprobs: bool,
    /// Whether a last chunk has the usage.
    usage: bool,
}

impl Told {
    pub(super) fn new(model: &Arc<Model>, replies: usize, logprobs: bool, usage: bool) -> Told {
        Told { model: model.clone(), id: fresh_id("chatcmpl-"), created: now(), replies, logprobs, usage }
    }

    fn object(&self, kind: &str) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": concat!("tessera-", env!("CARGO_PKG_VERSION")),
        })
    }

    /// `logprobs` of a choice.
    fn logprobs(&self, tokens: &[Sampled]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let tokenizer = self.model.tokenizer();
        let content: Vec<Value> = tokens.iter().map(|token| logprobs::content(tokenizer, token)).collect();
        json!({ "content": content, "refusal": null })
    }

    /// All replies as one object.
    pub(super) fn whole(&self, all: Vec<Whole>) -> Value {
        let totals = Totals::of(&all, self.replies);
        let mut object = self.object("chat.completion");
        object["choices"] = all.iter().enumerate().map(|(index, whole)| self.choice(index, whole)).collect();
        object["usage"] = shared::usage(totals);
        object
    }

    fn choice(&self, index: usize, whole: &Whole) -> Value {
        let reply = &whole.reply;
        let called = !reply.calls.is_empty();
        let content = if called && reply.content.is_empty() { Value::Null } else { json!(reply.content) };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
        if !reply.reasoning.is_empty() {
            message["reasoning_content"] = json!(reply.reasoning);
        }
        if called {
            let call = |call: &crate::conversation::ToolCall| {
                let function = json!({ "name": call.function.name, "arguments": call.function.arguments });
                json!({ "id": call.id, "type": "function", "function": function })
            };
            message["tool_calls"] = reply.calls.iter().map(call).collect();
        }
        json!({
            "index": index,
            "message": message,
            "logprobs": self.logprobs(&whole.tokens),
            "finish_reason": shared::finish_reason(whole.finish(), called),
        })
    }
}

/// Tells replies in chunks.
pub(super) struct Chunks {
    told: Told,
    totals: Totals,
    /// Of each choice: whether its role was told, and whether it called a tool.
    choices: Vec<(bool, bool)>,
}

impl Chunks {
    pub(super) fn new(told: Told) -> Chunks {
        Chunks { told, totals: Totals::default(), choices: Vec::new() }
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut object = self.told.object("chat.completion.chunk");
        object["choices"] = choices;
        if self.told.usage {
            object["usage"] = Value::Null;
        }
        object
    }

    fn delta(&self, index: usize, delta: Value, tokens: &[Sampled], out: &mut Lines) {
        let logprobs = if tokens.is_empty() { Value::Null } else { self.told.logprobs(tokens) };
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null });
        out.data(&self.chunk(json!([choice])));
    }

    fn role(&mut self, index: usize, out: &mut Lines) {
        self.choices.resize(self.choices.len().max(index + 1), (false, false));
        if !std::mem::replace(&mut self.choices[index].0, true) {
            self.delta(index, json!({ "role": "assistant", "content": "" }), &[], out);
        }
    }

    fn event(&mut self, index: usize, event: ChatEvent) -> Option<Value> {
        let call = |index: usize, rest: Value| {
            let mut call = json!({ "index": index });
            if let (Some(call), Value::Object(rest)) = (call.as_object_mut(), rest) {
                call.extend(rest);
            }
            json!({ "tool_calls": [call] })
        };
        Some(match event {
            ChatEvent::Reasoning(text) => json!({ "reasoning_content": text }),
            ChatEvent::Content(text) => json!({ "content": text }),
            ChatEvent::ToolCallBegin { index: at, id, name } => {
                self.choices[index].1 = true;
                call(at, json!({ "id": id, "type": "function", "function": { "name": name, "arguments": "" } }))
            }
            ChatEvent::ToolCallArguments { index: at, json } => call(at, json!({ "function": { "arguments": json } })),
            ChatEvent::ToolCallEnd { .. } => return None,
        })
    }
}

impl Narrator for Chunks {
    fn begin(&mut self, _out: &mut Lines) {}

    fn tell(&mut self, index: usize, told: answer::Told, out: &mut Lines) {
        self.role(index, out);
        match told {
            answer::Told::Started { .. } | answer::Told::Failed(_) => {}
            answer::Told::Piece { events, token } => {
                let mut tokens = if self.told.logprobs { token.as_slice() } else { &[] };
                for event in events {
                    let Some(delta) = self.event(index, event) else { continue };
                    self.delta(index, delta, std::mem::take(&mut tokens), out);
                }
                // A token without text of its own still has its probability.
                if !tokens.is_empty() {
                    self.delta(index, json!({}), tokens, out);
                }
            }
            answer::Told::Finished(end) => {
                self.totals.add(index, self.told.replies, &end);
                let reason = shared::finish_reason(end.finish, self.choices[index].1);
                let choice = json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason });
                out.data(&self.chunk(json!([choice])));
            }
        }
    }

    fn broke(&mut self, problem: &Problem, out: &mut Lines) {
        out.data(&problem.json(Dialect::OpenAi));
    }

    fn end(&mut self, out: &mut Lines) {
        if self.told.usage {
            let mut last = self.chunk(json!([]));
            last["usage"] = shared::usage(self.totals);
            out.data(&last);
        }
        out.raw("data: [DONE]\n\n");
    }
}
