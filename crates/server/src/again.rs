//! A reply whose call broke beyond repair, drawn again: once, from where the call began, and held to calls that are well formed.
//!
//! Most of what breaks is repaired as it is read: what is open where it breaks is closed. Where a call has not even a name there is
//! nothing to close. Then the broken call is forgotten, and the model goes on from before it with a grammar that lets it only call.
//!
//! A client that streams has read all that came before, so nothing of that may change. It need not:
//!
//! - A call is told from when its name and the beginning of its arguments are known, and what is told of it can be closed into
//!   valid JSON at any time. So a call that was told in part is never drawn again; it goes on, or is closed where it broke. A call
//!   that is beyond repair is one of which nothing was told.
//! - The new attempt begins behind all that was told: behind the last token before the call, and where a token holds the end of what
//!   was said and the beginning of a call, behind that text, cut into tokens anew. It stands in the prompt, and most of it in the cache.
//! - Calls that are whole stand too. Behind them the reply may also end: a client acts on calls, and one that was forced would be one
//!   too many. If they are in a block that has not ended, the attempt goes on in that block.
//! - Thoughts are never reached back into: the attempt begins behind them or not at all.
//!
//! All tokens that were read count, once, also those that were forgotten: as usage, and against the most that were asked for. A
//! reply that was cut off (by its length, the context, a stop string, the time) is not drawn again, for more of it is not wanted. Then
//! the beginning of a call without a name is left out; it is neither a call nor something said.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tessera_engine::{
    ChatFormat, Request, Special,
    chat::{LostCall, Rest},
    serving::{Job, Speculation},
};

use crate::{
    calls::{self, From},
    catalog::Model,
    conversation::ChatEvent,
    grammar::Held,
    tools::ToolUse,
};

/// What it takes to draw a reply again.
pub(crate) struct Again {
    request: Request,
    speculation: Speculation,
    priority: i32,
    /// When the reply must end.
    deadline: Option<Instant>,
    format: &'static ChatFormat,
    tools: Arc<ToolUse>,
    /// The reply so far.
    tokens: Vec<u32>,
    place: Option<Place>,
}

/// The last place from where the reply could go on with a call.
struct Place {
    /// Tokens of the reply before it.
    tokens: usize,
    rest: Rest,
    /// What was said since.
    said: String,
}

impl Again {
    /// Of a job that may call these tools.
    pub(crate) fn new(job: &Job, format: &'static ChatFormat, tools: Arc<ToolUse>) -> Again {
        let Job { ref request, speculation, priority, deadline, .. } = *job;
        let deadline = deadline.map(|left: Duration| Instant::now() + left);
        let (tokens, place) = (Vec::new(), None);
        Again { request: request.clone(), speculation, priority, deadline, format, tools, tokens, place }
    }

    /// A token was read, or none; what was told then, and where the reply is now.
    pub(crate) fn read(&mut self, token: Option<u32>, told: &[ChatEvent], rest: Option<Rest>) {
        self.tokens.extend(token);
        for event in told {
            match (event, &mut self.place) {
                (ChatEvent::Content(text), Some(place)) if matches!(place.rest, Rest::Content { .. }) => {
                    place.said += text;
                }
                (ChatEvent::ToolCallEnd { .. }, _) => {}
                _ => self.place = None,
            }
        }
        if let Some(rest) = rest {
            self.place = Some(Place { tokens: self.tokens.len(), rest, said: String::new() });
        }
    }

    /// The job that goes on from before the call. None where it is not known which tokens that is behind, where no tokens are left
    /// for it, or where the tools have no grammar. `called`: the reply has a call that is whole.
    pub(crate) fn job(&self, lost: LostCall, called: bool, model: &Model) -> Option<Job> {
        let place = self.place.as_ref().filter(|place| (place.rest == Rest::Block) == lost.in_block)?;
        let left = self.request.tokens_max.map(|most| most.saturating_sub(self.tokens.len()));
        if left == Some(0) {
            return None;
        }
        let mut request = Request { tokens_max: left, ..self.request.clone() };
        request.prompt.extend_from_slice(&self.tokens[..place.tokens]);
        request.prompt.extend(self.said(place, model)?);
        let from = match (lost.in_block, called) {
            (true, _) => From::Block,
            (false, true) => From::Next,
            (false, false) => From::First,
        };
        let rules = calls::rules(self.format, model.tokenizer(), &self.tools, from)?;
        let held = Held { shape: None, calls: Some((rules, true)), thoughts: None };
        let constraint = Some(model.grammars().constraint(&held).ok()?);
        let (speculation, priority) = (self.speculation, self.priority);
        let deadline = self.deadline.map(|end| end.saturating_duration_since(Instant::now()));
        Some(Job { constraint, speculation, priority, deadline, ..Job::new(request) })
    }

    /// What was said since the place, in tokens.
    fn said(&self, place: &Place, model: &Model) -> Option<Vec<u32>> {
        // White space that waited at the place is in the tokens before it.
        let spaces = if let Rest::Content { spaces } = place.rest { spaces } else { 0 };
        let said = place.said.get(spaces..).unwrap_or_default();
        if said.is_empty() {
            return Some(Vec::new());
        }
        // A tokenizer that begins every text with a space cannot say how one goes on.
        let tokenizer = Some(model.tokenizer()).filter(|tokenizer| !tokenizer.adds_space())?;
        tokenizer.encode(said, Special::Plain, false).ok()
    }
}
