//! `POST /v1/completions`: telling the reply, at once or in chunks.

use std::sync::Arc;

use serde_json::{Map, Value, json};
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
    /// Alternatives to each token; none: no log-probabilities.
    logprobs: Option<usize>,
    usage: bool,
}

impl Told {
    pub(super) fn new(model: &Arc<Model>, replies: usize, logprobs: Option<usize>, usage: bool) -> Told {
        Told { model: model.clone(), id: fresh_id("cmpl-"), created: now(), replies, logprobs, usage }
    }

    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": concat!("tessera-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }

    /// `logprobs` of a choice; offsets are in characters of the tokens' texts, from `offset` on.
    fn logprobs(&self, sampled: &[Sampled], offset: &mut usize) -> Value {
        if self.logprobs.is_none() {
            return Value::Null;
        }
        let tokenizer = self.model.tokenizer();
        let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for token in sampled {
            let text = logprobs::text(tokenizer, token.id);
            offsets.push(*offset);
            *offset += text.chars().count();
            tokens.push(text);
            values.push(token.logprob.map(logprobs::finite));
            let one = |(id, p): &(u32, f32)| (logprobs::text(tokenizer, *id), json!(logprobs::finite(*p)));
            tops.push(token.top.iter().map(one).collect::<Map<_, _>>());
        }
        json!({ "tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets })
    }

    /// All replies as one object.
    pub(super) fn whole(&self, all: Vec<Whole>) -> Value {
        let choice = |(index, whole): (usize, &Whole)| {
            json!({
                "index": index,
                "text": whole.reply.content,
                "logprobs": self.logprobs(&whole.tokens, &mut 0),
                "finish_reason": shared::finish_reason(whole.finish(), false),
            })
        };
        let mut object = self.object(all.iter().enumerate().map(choice).collect());
        object["usage"] = shared::usage(Totals::of(&all, self.replies));
        object
    }
}

/// Tells replies in chunks.
pub(super) struct Chunks {
    told: Told,
    totals: Totals,
    /// Characters of each choice's tokens so far.
    offsets: Vec<usize>,
}

impl Chunks {
    pub(super) fn new(told: Told) -> Chunks {
        Chunks { told, totals: Totals::default(), offsets: Vec::new() }
    }

    fn chunk(&mut self, index: usize, text: &str, token: Option<&Sampled>, reason: Option<&str>, out: &mut Lines) {
        self.offsets.resize(self.offsets.len().max(index + 1), 0);
        let logprobs = match token {
            Some(token) => self.told.logprobs(std::slice::from_ref(token), &mut self.offsets[index]),
            None => Value::Null,
        };
        let choice = json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason });
        let mut object = self.told.object(json!([choice]));
        if self.told.usage {
            object["usage"] = Value::Null;
        }
        out.data(&object);
    }
}

impl Narrator for Chunks {
    fn begin(&mut self, _out: &mut Lines) {}

    fn tell(&mut self, index: usize, told: answer::Told, out: &mut Lines) {
        match told {
            answer::Told::Started { .. } | answer::Told::Failed(_) => {}
            answer::Told::Piece { events, token } => {
                let content = |event: ChatEvent| match event {
                    ChatEvent::Content(text) => Some(text),
                    _ => None,
                };
                let text: String = events.into_iter().filter_map(content).collect();
                let token = token.filter(|_| self.told.logprobs.is_some());
                if !text.is_empty() || token.is_some() {
                    self.chunk(index, &text, token.as_ref(), None, out);
                }
            }
            answer::Told::Finished(end) => {
                self.totals.add(index, self.told.replies, &end);
                self.chunk(index, "", None, Some(shared::finish_reason(end.finish, false)), out);
            }
        }
    }

    fn broke(&mut self, problem: &Problem, out: &mut Lines) {
        out.data(&problem.json(Dialect::OpenAi));
    }

    fn end(&mut self, out: &mut Lines) {
        if self.told.usage {
            let mut last = self.told.object(json!([]));
            last["usage"] = shared::usage(self.totals);
            out.data(&last);
        }
        out.raw("data: [DONE]\n\n");
    }
}
