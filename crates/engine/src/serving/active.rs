//! A request that was taken and has not ended.

use std::time::Duration;

use super::{
    Constraint, Event, Job, Outcome, Refused, RequestId, Speculation, Usage, draw::Row,
    speculation::acceptance::Acceptance,
};
use crate::{Error, Finish, Pooling, Sampler, SequenceId, Tokenizer, pooling::Pool, reply::Reply};

/// A request that was taken and has not ended. It is *admitted* while it has a sequence, and waits while it has none. What is
/// to be computed of it is what it knows less what its sequence holds; there are no other phases.
pub(super) struct Active {
    pub(super) id: RequestId,
    pub(super) priority: i32,
    /// The prompt and the reply.
    pub(super) known: Vec<u32>,
    pub(super) prompt_tokens: usize,
    pub(super) sequence: Option<SequenceId>,
    pub(super) sampler: Sampler,
    pub(super) reply: Reply,
    constraint: Option<Box<dyn Constraint>>,
    /// Where an embedding is wanted: what is known of it.
    pub(super) pool: Option<Pool>,
    pub(super) speculation: Speculation,
    pub(super) acceptance: Acceptance,
    pub(super) usage: Usage,
    submitted: Duration,
    pub(super) deadline: Option<Duration>,
    admitted: Option<Duration>,
    started: Option<Duration>,
}

/// A token that was drawn.
pub(super) struct Drawn {
    pub(super) token: u32,
    pub(super) event: Option<Event>,
    pub(super) finish: Option<Finish>,
}

impl Active {
    pub(super) fn new(id: RequestId, job: Job, pooling: Option<Pooling>, now: Duration) -> Result<Active, Refused> {
        let Job { request, constraint, speculation, priority, embed, deadline } = job;
        let pool = embed.then(|| pooling.map(Pool::new).ok_or(Refused::NoEmbeddings)).transpose()?;
        let reply = Reply::new(&request)?;
        let prompt_tokens = request.prompt.len();
        Ok(Active {
            id,
            priority,
            known: request.prompt,
            prompt_tokens,
            sequence: None,
            sampler: Sampler::new(request.sampling)?,
            reply,
            constraint,
            pool,
            speculation,
            acceptance: Acceptance::default(),
            usage: Usage { prompt_tokens, ..Usage::default() },
            submitted: now,
            deadline: deadline.map(|d| now.saturating_add(d)),
            admitted: None,
            started: None,
        })
    }

    /// Who ranks before another is computed first and pre-empted last.
    pub(super) fn ranks_before(&self, other: &Active) -> bool {
        (std::cmp::Reverse(self.priority), self.id) < (std::cmp::Reverse(other.priority), other.id)
    }

    /// Whether it was never admitted: only these fill the queue.
    pub(super) fn is_queued(&self) -> bool {
        self.admitted.is_none()
    }

    /// Whether its prompt is computed.
    pub(super) fn is_started(&self) -> bool {
        self.started.is_some()
    }

    /// It has a sequence, of which `cached` tokens were there.
    pub(super) fn admit(&mut self, sequence: SequenceId, cached: usize, now: Duration) {
        self.sequence = Some(sequence);
        if self.admitted.is_none() {
            self.admitted = Some(now);
            self.usage.queued = now.saturating_sub(self.submitted);
        }
        self.reused(cached);
    }

    /// The tokens that it may take from the cache, but for the last.
    pub(super) fn reusable(&self, share_replies: bool) -> &[u32] {
        // A row that was computed for somebody else is not seen.
        if self.pool.as_ref().is_some_and(|pool| pool.pooling().needs_all()) {
            return &[];
        }
        let shared = if share_replies { self.known.len() } else { self.prompt_tokens + 1 };
        &self.known[..shared.min(self.known.len())]
    }

    /// It lost its sequence. Gives which.
    pub(super) fn preempt(&mut self) -> Option<SequenceId> {
        let sequence = self.sequence.take()?;
        self.usage.preemptions += 1;
        self.pool.iter_mut().for_each(Pool::clear);
        Some(sequence)
    }

    /// Tokens were found in the cache.
    pub(super) fn reused(&mut self, cached: usize) {
        // What a pre-empted request finds again was counted the first time, or computed by itself.
        if self.started.is_none() && self.usage.preemptions == 0 {
            self.usage.cached_tokens += cached;
        }
    }

    /// The prompt is computed; the event that says so, the first time.
    pub(super) fn start(&mut self, now: Duration) -> Option<Event> {
        if self.started.is_some() {
            return None;
        }
        self.started = Some(now);
        self.usage.prefill = now.saturating_sub(self.admitted.unwrap_or(now));
        Some(Event::Started { prompt_tokens: self.prompt_tokens, cached_tokens: self.usage.cached_tokens })
    }

    /// Draws the next token from the logits after all known ones. With `full`, the context has no room to compute it.
    pub(super) fn draw(&mut self, row: Row<'_>, full: bool, tokenizer: &Tokenizer) -> Result<Drawn, Error> {
        let (index, mut masked) = (self.reply.tokens().len() as u64, Ok(()));
        let constraint = &mut self.constraint;
        let sampled = match row {
            Row::Best(best) => self.sampler.sample_best(best, index),
            Row::Logits(logits) => self.sampler.sample_masked(logits, &self.known, index, &mut |logits| {
                if let Some(constraint) = constraint {
                    masked = constraint.mask(logits);
                }
            }),
        };
        masked.map_err(Error::Constraint)?;
        let sampled = sampled?;
        if let Some(constraint) = constraint {
            constraint.accept(sampled.id).map_err(Error::Constraint)?;
        }
        let token = sampled.id;
        let (text, finish) = self.reply.push(&sampled, full, tokenizer);
        if finish == Some(Finish::EndToken) {
            return Ok(Drawn { token, event: None, finish });
        }
        self.known.push(token);
        let held = self.reply.holds();
        Ok(Drawn { token, event: Some(Event::Token { sampled, text, held }), finish })
    }

    /// How many of the likeliest tokens decide its draws, as [`Sampler::enough`]; none where all logits count.
    pub(super) fn enough(&self, vocabulary: usize) -> Option<usize> {
        self.sampler.enough(vocabulary).filter(|_| self.constraint.is_none())
    }

    /// What its grammar says must come next.
    pub(super) fn forced(&mut self) -> Vec<u32> {
        self.constraint.as_mut().map(|c| c.forced()).unwrap_or_default()
    }

    /// The end of the reply.
    pub(super) fn outcome(&mut self, finish: Finish, end_token: Option<u32>, now: Duration) -> Outcome {
        let mut usage = std::mem::take(&mut self.usage);
        usage.reply_tokens = self.reply.tokens().len();
        match (self.admitted, self.started) {
            (None, _) => usage.queued = now.saturating_sub(self.submitted),
            (Some(admitted), None) => usage.prefill = now.saturating_sub(admitted),
            (_, Some(started)) => usage.decode = now.saturating_sub(started),
        }
        let text = self.reply.finish();
        let stop_string = self.reply.stop_string().filter(|_| finish == Finish::StopString).map(str::to_owned);
        Outcome { finish, text, stop_string, end_token, usage }
    }
}
