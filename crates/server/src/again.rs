//! A reply whose call broke beyond repair, tried again: once, from where the call began, and held to calls that are well formed.
//!
//! Most of what breaks is repaired as it is read: what is open at the end is closed. Where a call has not even a name there is
//! nothing to close. Then what was told stands, the broken call is forgotten, and the model goes on from the last place before it with
//! a grammar that lets it only call.

use std::time::{Duration, Instant};

use tessera_engine::{
    Request,
    serving::{Constraint, Job, Speculation},
};

use crate::{
    catalog::Model,
    conversation::Reader,
    grammar::{Grammars, Held},
    problem::Problem,
};

/// What it takes to try a reply again.
pub(crate) struct Again {
    request: Request,
    speculation: Speculation,
    priority: i32,
    /// When the reply must end.
    deadline: Option<Instant>,
    /// The grammar's rules of calls.
    rules: String,
    /// The reply so far, and how much of it stood when it could have gone on in another way.
    tokens: Vec<u32>,
    kept: Option<usize>,
}

impl Again {
    /// Of a request that is about to be made.
    pub(crate) fn new(
        request: Request,
        (speculation, priority, deadline): (Speculation, i32, Option<Duration>),
        rules: String,
    ) -> Again {
        let deadline = deadline.map(|left| Instant::now() + left);
        Again { request, speculation, priority, deadline, rules, tokens: Vec::new(), kept: None }
    }

    /// Before the first token.
    pub(crate) fn begin(&mut self, reader: &Reader) {
        self.kept = reader.at_rest().then_some(0);
    }

    /// A token was read.
    pub(crate) fn read(&mut self, token: u32, reader: &Reader) {
        self.tokens.push(token);
        if reader.at_rest() {
            self.kept = Some(self.tokens.len());
        }
    }

    /// The job that goes on from before the call; none where no tokens are left for it.
    ///
    /// # Errors
    /// If the calls have no grammar.
    pub(crate) fn job(self, model: &Model) -> Result<Option<Job>, Problem> {
        let Some(kept) = self.kept else { return Ok(None) };
        let left = self.request.tokens_max.map(|most| most.saturating_sub(self.tokens.len()));
        if left == Some(0) {
            return Ok(None);
        }
        let mut request = Request { tokens_max: left, ..self.request };
        request.prompt.extend_from_slice(&self.tokens[..kept]);
        let (speculation, priority) = (self.speculation, self.priority);
        let deadline = self.deadline.map(|end| end.saturating_duration_since(Instant::now()));
        let constraint = Some(constraint(model.grammars(), self.rules)?);
        Ok(Some(Job { constraint, speculation, priority, deadline, ..Job::new(request) }))
    }
}

fn constraint(grammars: &Grammars, rules: String) -> Result<Box<dyn Constraint>, Problem> {
    grammars.constraint(&Held { shape: None, calls: Some((rules, true)), thoughts: None })
}
