//! `POST /v1/responses`: telling the reply as items. What is not streamed is told the same way and kept.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::{Finish, Sampled};

use super::logprobs;
use crate::{
    answer::{End, Told},
    app::{fresh_id, now},
    catalog::Model,
    conversation::ChatEvent,
    problem::{Dialect, Problem},
    sse::{Lines, Narrator},
};

/// What was asked for, as the response repeats it.
pub(super) struct Asked {
    pub(super) instructions: Option<String>,
    pub(super) tokens_max: Option<usize>,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) format: Value,
    pub(super) effort: Option<String>,
    pub(super) tools: Vec<Value>,
    pub(super) tool_choice: Value,
    pub(super) parallel: bool,
    pub(super) logprobs: Option<usize>,
    pub(super) metadata: Value,
}

/// The reply as it grows.
pub(super) struct Events {
    model: Arc<Model>,
    asked: Asked,
    id: String,
    created: u64,
    number: u64,
    /// Items that are whole.
    items: Vec<Value>,
    current: Option<Item>,
    /// What stands in the item so far.
    text: String,
    logprobs: Vec<Value>,
    /// Log-probabilities of tokens whose text has not come.
    waiting: Vec<Value>,
    end: Option<End>,
    problem: Option<Problem>,
}

/// The item that is being told.
enum Item {
    Reasoning { id: String },
    Message { id: String },
    Call { id: String, call: String, name: String },
}

impl Events {
    pub(super) fn new(model: &Arc<Model>, asked: Asked) -> Events {
        Events {
            model: model.clone(),
            asked,
            id: fresh_id("resp_"),
            created: now(),
            number: 0,
            items: Vec::new(),
            current: None,
            text: String::new(),
            logprobs: Vec::new(),
            waiting: Vec::new(),
            end: None,
            problem: None,
        }
    }

    /// The response as it is now.
    pub(super) fn response(&self) -> Value {
        let asked = &self.asked;
        let cut = self.end.as_ref().is_some_and(|end| !matches!(end.finish, Finish::EndToken | Finish::StopString));
        let status = match (&self.problem, &self.end, cut) {
            (Some(_), ..) => "failed",
            (None, None, _) => "in_progress",
            (None, Some(_), true) => "incomplete",
            (None, Some(_), false) => "completed",
        };
        let mut text = json!({ "format": asked.format });
        text["verbosity"] = json!("medium");
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": self.problem.as_ref().map(|p| json!({ "code": "server_error", "message": p.message })),
            "incomplete_details": cut.then(|| json!({ "reason": "max_output_tokens" })),
            "instructions": asked.instructions,
            "max_output_tokens": asked.tokens_max,
            "max_tool_calls": null,
            "model": self.model.name,
            "output": self.items,
            "parallel_tool_calls": asked.parallel,
            "previous_response_id": null,
            "reasoning": { "effort": asked.effort, "summary": null },
            "service_tier": "default",
            "store": false,
            "temperature": asked.temperature,
            "text": text,
            "tool_choice": asked.tool_choice,
            "tools": asked.tools,
            "top_logprobs": asked.logprobs.unwrap_or(0),
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": self.end.as_ref().map(usage),
            "user": null,
            "metadata": asked.metadata,
        })
    }

    fn event(&mut self, kind: &str, rest: Value, out: &mut Lines) {
        let mut object = json!({ "type": kind, "sequence_number": self.number });
        if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        self.number += 1;
        out.event(kind, &object);
    }

    fn with_response(&mut self, kind: &str, out: &mut Lines) {
        let response = self.response();
        self.event(kind, json!({ "response": response }), out);
    }

    /// An item as it is now.
    fn item(&self, item: &Item, status: &str) -> Value {
        match item {
            Item::Reasoning { id } => {
                let content: Vec<Value> = match self.text.as_str() {
                    "" => Vec::new(),
                    text => vec![json!({ "type": "reasoning_text", "text": text })],
                };
                json!({ "id": id, "type": "reasoning", "summary": [], "content": content, "status": status })
            }
            Item::Message { id } => {
                let content = if status == "in_progress" { json!([]) } else { json!([self.part()]) };
                json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
            }
            Item::Call { id, call, name } => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call, "name": name, "arguments": self.text,
            }),
        }
    }

    fn part(&self) -> Value {
        json!({ "type": "output_text", "annotations": [], "logprobs": self.logprobs, "text": self.text })
    }

    fn open(&mut self, item: Item, out: &mut Lines) {
        let (index, added) = (self.items.len(), self.item(&item, "in_progress"));
        self.event("response.output_item.added", json!({ "output_index": index, "item": added }), out);
        if let Item::Message { id } = &item {
            let rest = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": self.part() });
            self.event("response.content_part.added", rest, out);
        }
        self.current = Some(item);
    }

    fn close(&mut self, status: &str, out: &mut Lines) {
        let Some(item) = self.current.take() else { return };
        let index = self.items.len();
        let at = |id: &str| json!({ "item_id": id, "output_index": index, "content_index": 0 });
        match &item {
            Item::Reasoning { id } => {
                let mut rest = at(id);
                rest["text"] = json!(self.text);
                self.event("response.reasoning_text.done", rest, out);
            }
            Item::Message { id } => {
                let (mut text, mut part) = (at(id), at(id));
                (text["text"], text["logprobs"]) = (json!(self.text), json!(self.logprobs));
                part["part"] = self.part();
                self.event("response.output_text.done", text, out);
                self.event("response.content_part.done", part, out);
            }
            Item::Call { id, name, .. } => {
                let rest = json!({ "item_id": id, "output_index": index, "name": name, "arguments": self.text });
                self.event("response.function_call_arguments.done", rest, out);
            }
        }
        let done = self.item(&item, status);
        self.event("response.output_item.done", json!({ "output_index": index, "item": done }), out);
        self.items.push(done);
        self.text.clear();
        self.logprobs.clear();
    }

    fn piece(&mut self, event: ChatEvent, out: &mut Lines) {
        let index = self.items.len();
        match event {
            ChatEvent::Reasoning(text) => {
                if !matches!(self.current, Some(Item::Reasoning { .. })) {
                    self.close("completed", out);
                    self.open(Item::Reasoning { id: fresh_id("rs_") }, out);
                }
                self.delta("response.reasoning_text.delta", &text, out);
            }
            ChatEvent::Content(text) => {
                if !matches!(self.current, Some(Item::Message { .. })) {
                    self.close("completed", out);
                    self.open(Item::Message { id: fresh_id("msg_") }, out);
                }
                self.delta("response.output_text.delta", &text, out);
            }
            ChatEvent::ToolCallBegin { id: call, name, .. } => {
                self.close("completed", out);
                self.open(Item::Call { id: fresh_id("fc_"), call, name }, out);
            }
            ChatEvent::ToolCallArguments { json, .. } => {
                self.text.push_str(&json);
                if let Some(Item::Call { id, .. }) = &self.current {
                    let rest = json!({ "item_id": id, "output_index": index, "delta": json });
                    self.event("response.function_call_arguments.delta", rest, out);
                }
            }
            ChatEvent::ToolCallEnd { .. } => self.close("completed", out),
        }
    }

    /// More text of the current item.
    fn delta(&mut self, kind: &str, text: &str, out: &mut Lines) {
        let index = self.items.len();
        self.text.push_str(text);
        let (Some(Item::Reasoning { id } | Item::Message { id }), spoken) =
            (&self.current, kind.contains("output_text"))
        else {
            return;
        };
        let mut rest = json!({ "item_id": id, "output_index": index, "content_index": 0, "delta": text });
        if spoken {
            let logprobs = std::mem::take(&mut self.waiting);
            rest["logprobs"] = json!(logprobs);
            self.logprobs.extend(logprobs);
        }
        self.event(kind, rest, out);
    }

    fn token(&mut self, token: Option<&Sampled>) {
        if let Some(token) = token.filter(|_| self.asked.logprobs.is_some()) {
            self.waiting.push(logprobs::content(self.model.tokenizer(), token));
        }
    }
}

impl Narrator for Events {
    fn begin(&mut self, out: &mut Lines) {
        self.with_response("response.created", out);
        self.with_response("response.in_progress", out);
    }

    fn tell(&mut self, _choice: usize, told: Told, out: &mut Lines) {
        match told {
            Told::Started { .. } | Told::Failed(_) => {}
            Told::Piece { events, token } => {
                self.token(token.as_ref());
                events.into_iter().for_each(|event| self.piece(event, out));
            }
            Told::Finished(end) => {
                let whole = matches!(end.finish, Finish::EndToken | Finish::StopString);
                if self.items.is_empty() && self.current.is_none() {
                    self.open(Item::Message { id: fresh_id("msg_") }, out); // an empty reply is a message too
                }
                self.close(if whole { "completed" } else { "incomplete" }, out);
                self.end = Some(*end);
                self.with_response(if whole { "response.completed" } else { "response.incomplete" }, out);
            }
        }
    }

    fn broke(&mut self, problem: &Problem, out: &mut Lines) {
        self.problem = Some(problem.clone());
        let error = problem.json(Dialect::OpenAi);
        let rest = json!({ "code": error["error"]["code"], "message": problem.message, "param": problem.param });
        self.event("error", rest, out);
        self.with_response("response.failed", out);
    }

    fn end(&mut self, _out: &mut Lines) {}
}

fn usage(end: &End) -> Value {
    let usage = &end.usage;
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": { "cached_tokens": usage.cached_tokens },
        "output_tokens": usage.reply_tokens,
        "output_tokens_details": { "reasoning_tokens": end.reasoning_tokens },
        "total_tokens": usage.prompt_tokens + usage.reply_tokens,
    })
}
