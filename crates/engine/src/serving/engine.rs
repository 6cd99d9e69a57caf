//! The loop: admit, plan, run, sample, emit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Counters, Event, Gauges, Job, Options, Refused, RequestId, Speculation,
    active::Active,
    costs::Costs,
    draw::{self, Draws, Harvest, Rows},
    gauges::Rate,
    pace::Pace,
    plan::Planned,
    speculation::{Drafter, Prediction, PromptLookup, Speculator},
};
use crate::{Ahead, Error, Finish, Part, Pooling, Sequences, Tokenizer};

/// Where the engine's time comes from.
pub trait Clock: Send {
    /// Time since some moment; never less than before.
    fn now(&self) -> Duration;
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock(Instant);

impl Default for MonotonicClock {
    fn default() -> MonotonicClock {
        MonotonicClock(Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Many requests on one model, without a thread: somebody calls [`Engine::step`].
pub struct Engine {
    pub(super) sequences: Sequences,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) options: Options,
    /// The longest sequence.
    pub(super) context: usize,
    pub(super) clock: Box<dyn Clock>,
    /// In the order of rank.
    pub(super) live: Vec<Active>,
    next: u64,
    /// Of steps in which every row gives a token or verifies one.
    pub(super) decode_costs: Costs,
    pub(super) pace: Pace,
    pub(super) speculator: Speculator,
    pub(super) counters: Counters,
    rate: Rate,
    /// Rows and sequences of the last step.
    last: (usize, usize),
}

impl Engine {
    /// An engine for a model whose sequences are all free, with prompt lookup for speculation, and what the model predicts itself.
    pub fn new(sequences: Sequences, tokenizer: Arc<Tokenizer>, options: Options, clock: Box<dyn Clock>) -> Engine {
        let mut options = options.sound();
        options.share_replies &= sequences.roles_agree();
        options.slots = options.slots.min(sequences.count_max());
        let room = sequences.total_pages() * tessera_ops::PAGE_TOKENS;
        let context = options.context.unwrap_or(sequences.config().context).min(room);
        let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(PromptLookup::default())];
        if sequences.predicts() {
            drafters.push(Box::new(Prediction));
        }
        Engine {
            sequences,
            tokenizer,
            options,
            context,
            clock,
            live: Vec::new(),
            next: 0,
            decode_costs: Costs::default(),
            pace: Pace::default(),
            speculator: Speculator::new(drafters),
            counters: Counters::default(),
            rate: Rate::default(),
            last: (0, 0),
        }
    }

    /// Asks another drafter where those before it have no guess.
    pub fn with_drafter(mut self, drafter: Box<dyn Drafter>) -> Engine {
        self.speculator.add(drafter);
        self
    }

    /// Its limits.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The longest sequence, prompt and reply, in tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// How it makes embeddings, if it does.
    pub fn pooling(&self) -> Option<Pooling> {
        self.options.pooling.or(self.sequences.config().pooling)
    }

    /// The tokenizer of its model.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The model and its cache.
    pub fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// Whether no request is left.
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// Requests that were never admitted.
    pub fn queued(&self) -> usize {
        self.live.iter().filter(|a| a.is_queued()).count()
    }

    /// Takes a job, or says why not. Its events come from the next steps.
    ///
    /// # Errors
    /// If it can never be served, or too many wait.
    pub fn submit(&mut self, job: Job) -> Result<RequestId, Refused> {
        check(&job, self.context, self.sequences.config().vocabulary)?;
        if self.queued() >= self.options.queue {
            return Err(Refused::QueueFull { limit: self.options.queue });
        }
        let id = RequestId(self.next);
        let active = Active::new(id, job, self.pooling(), self.clock.now())?;
        self.next += 1;
        let at = self.live.partition_point(|other| other.ranks_before(&active));
        self.live.insert(at, active);
        self.counters.submitted += 1;
        Ok(id)
    }

    /// Ends a request now; its pages are free when this returns. Gives its last event, if it had not ended.
    pub fn cancel(&mut self, id: RequestId) -> Option<Event> {
        let index = self.live.iter().position(|a| a.id == id)?;
        Some(self.end(index, Finish::Cancelled, None))
    }

    /// Computes one step and appends what came of it. Gives false if there is nothing to do.
    pub fn step(&mut self, events: &mut Vec<(RequestId, Event)>) -> bool {
        let now = self.clock.now();
        while let Some(index) = self.live.iter().position(|a| a.deadline.is_some_and(|d| d <= now)) {
            let id = self.live[index].id;
            events.push((id, self.end(index, Finish::Deadline, None)));
        }
        self.admit(now);
        let plan = self.plan();
        if plan.is_empty() {
            assert!(self.live.is_empty(), "the first in rank always gets on");
            self.last = (0, 0);
            self.rate.stop();
            return false;
        }
        self.run(plan, events);
        true
    }

    /// The engine as it is now.
    pub fn gauges(&self) -> Gauges {
        let running = self.live.iter().filter(|a| a.sequence.is_some());
        let prefilling = running.clone().filter(|a| !a.is_started());
        let (pages, free) = (self.sequences.total_pages(), self.sequences.free_pages());
        let running = running.count();
        Gauges {
            running,
            prefilling: prefilling.count(),
            waiting: self.live.len() - running,
            pages,
            pages_held: pages - free,
            pages_cached: self.sequences.cached_pages(),
            cache_bytes: self.sequences.cache_bytes(),
            batch_rows: self.last.0,
            batch_sequences: self.last.1,
            tokens_per_second: self.rate.per_second(),
            counters: self.counters.clone(),
        }
    }

    /// Runs what was planned and deals with what comes of it.
    fn run(&mut self, plan: Vec<Planned>, events: &mut Vec<(RequestId, Event)>) {
        let parts: Vec<Part<'_>> = plan
            .iter()
            .map(|p| Part { sequence: p.sequence, tokens: &p.tokens, role: p.role, logits: p.logits })
            .collect();
        let start = self.clock.now();
        let embeds = plan.iter().any(|p| self.live.iter().any(|a| a.id == p.id && a.pool.is_some()));
        let enough = self.enough(&plan).filter(|_| !embeds);
        let done = match enough {
            Some(count) => self.sequences.step_best(&parts, count).err(),
            None if embeds => self.sequences.step_hidden(&parts).err(),
            None => self.sequences.step(&parts).err(),
        };
        if let Some(error) = done {
            let error = Arc::new(error);
            for p in &plan {
                self.fail(p.id, error.clone(), events);
            }
            return;
        }
        let rows = plan.iter().map(|p| p.tokens.len()).sum();
        self.last = (rows, plan.len());
        let before = self.counters.reply_tokens;
        self.counters.steps += 1;
        self.counters.rows += rows as u64;
        let draws = Draws { context: self.context, tokenizer: &self.tokenizer, logits_min: self.options.shared_draws };
        let vocabulary = self.sequences.config().vocabulary;
        let drawn_from = match enough {
            Some(count) => Rows::Best { all: self.sequences.best(), each: count.min(vocabulary) },
            None => Rows::Logits { all: self.sequences.logits(), vocabulary },
        };
        let harvests = draw::all(&mut self.live, &plan, drawn_from, draws);
        let mut row = 0;
        for (planned, harvest) in plan.iter().zip(harvests) {
            self.harvest(planned, harvest, row, events);
            row += planned.tokens.len();
        }
        self.predict(&plan);
        let now = self.clock.now();
        let drawn = (self.counters.reply_tokens - before) as usize;
        self.rate.observe(now, drawn);
        self.measure(&plan, rows, drawn, now.saturating_sub(start));
    }

    /// How many of the likeliest tokens of a row decide all draws of a step; none where a draw needs more, or to find them costs more.
    fn enough(&self, plan: &[Planned]) -> Option<usize> {
        let vocabulary = self.sequences.config().vocabulary;
        let drawn = self.live.iter().filter(|a| plan.iter().any(|p| p.id == a.id && p.logits > 0));
        let counts: Option<Vec<usize>> = drawn.map(|a| a.enough(vocabulary)).collect();
        counts?.into_iter().max().filter(|_| self.sequences.ranks())
    }

    /// Deals with what came of a part of the step, whose first row is `row`, and with its pages.
    fn harvest(&mut self, planned: &Planned, harvest: Harvest, row: usize, events: &mut Vec<(RequestId, Event)>) {
        let (id, used) = (planned.id, harvest.used);
        let index = self.live.iter().position(|a| a.id == id).expect("nobody ends between plan and harvest");
        let before = self.sequences.tokens(planned.sequence).len() - planned.tokens.len();
        let embedding = self.pool(index, planned, row);
        let active = &mut self.live[index];
        let mut has_started = false;
        if let Some(started) =
            (planned.logits > 0 || embedding.is_some()).then(|| active.start(self.clock.now())).flatten()
        {
            self.counters.prompt_tokens += active.prompt_tokens as u64;
            self.counters.cached_tokens += active.usage.cached_tokens as u64;
            events.push((id, started));
            has_started = true;
        }
        self.counters.reply_tokens += harvest.events.len() as u64;
        events.extend(harvest.events.into_iter().map(|event| (id, event)));
        if let Some(error) = harvest.error {
            return self.fail(id, error, events);
        }
        self.sequences.rewind(planned.sequence, before + used);
        if planned.is_decode {
            let accepted = (used - 1).min(planned.draft_tokens);
            self.speculator.observe(active, planned, accepted);
            self.counters.speculation.add(planned.draft_tokens, accepted);
        }
        self.publish(index);
        if has_started {
            self.checkpoint(index);
        }
        if let Some(embedding) = embedding {
            events.push((id, Event::Embedded(embedding)));
            events.push((id, self.end(index, Finish::Length, None)));
        } else if let Some((finish, token)) = harvest.end {
            events.push((id, self.end(index, finish, token)));
        }
    }

    /// Lets the model predict further ahead, where it can and a request may want that: of every row whose next token is known.
    fn predict(&mut self, plan: &[Planned]) {
        if !self.sequences.predicts() {
            return;
        }
        let start = self.clock.now();
        let wanted = |p: &&Planned| {
            let active = self.live.iter().find(|a| a.id == p.id && a.sequence == Some(p.sequence))?;
            let computed = self.sequences.tokens(p.sequence).len();
            let tokens = active.known.get(p.start + 1..active.known.len().min(computed + 1))?;
            let speculates = active.speculation != Speculation::Off && active.pool.is_none() && !tokens.is_empty();
            let logits = active.known.len() == computed + 1;
            speculates.then_some(Ahead { sequence: p.sequence, tokens, logits })
        };
        let parts: Vec<Ahead<'_>> = plan.iter().filter_map(|p| wanted(&p)).collect();
        // Drafts change no reply; a device that fails says so in the next step.
        if !parts.is_empty() && self.sequences.predict(&parts).is_ok() {
            self.speculator.predicted(self.clock.now().saturating_sub(start));
        }
    }

    /// Adds the rows of a part to the embedding of its request. Gives that, when it is whole.
    fn pool(&mut self, index: usize, planned: &Planned, row: usize) -> Option<Vec<f32>> {
        let active = &mut self.live[index];
        let pool = active.pool.as_mut()?;
        let hidden = self.sequences.config().hidden;
        pool.add(&self.sequences.hidden()[row * hidden..][..planned.tokens.len() * hidden], hidden);
        (self.sequences.tokens(planned.sequence).len() == active.prompt_tokens).then(|| pool.embedding())
    }

    /// Lets others use the full pages of a request.
    fn publish(&mut self, index: usize) {
        let active = &self.live[index];
        let Some(sequence) = active.sequence else { return };
        self.sequences.publish(sequence, self.shared_tokens(active));
    }

    /// Tokens of a request that others may use.
    fn shared_tokens(&self, active: &Active) -> usize {
        if self.options.share_replies { usize::MAX } else { active.prompt_tokens }
    }

    /// Keeps what others need to go on from a request's pages, if the model keeps anything beside these.
    pub(super) fn checkpoint(&mut self, index: usize) {
        let active = &self.live[index];
        let Some(sequence) = active.sequence else { return };
        // Without it they compute anew; and a device that fails says so in the next step.
        let _ = self.sequences.checkpoint(sequence, self.shared_tokens(active));
    }

    /// Keeps what the step cost.
    fn measure(&mut self, plan: &[Planned], rows: usize, drawn: usize, time: Duration) {
        let of_decodes: usize = plan.iter().filter(|p| p.is_decode).map(|p| p.tokens.len()).sum();
        if of_decodes < rows {
            if let Some(plain) = self.decode_costs.at_least(of_decodes).filter(|_| of_decodes > 0) {
                self.pace.observe(rows - of_decodes, time.saturating_sub(Duration::from_secs_f64(plain)));
            }
            return;
        }
        self.decode_costs.observe(rows, time);
        if rows > plan.len() {
            let plain = self.decode_costs.at_least(plan.len()).unwrap_or(0.0);
            self.counters.drafted_time += time + self.speculator.last_time();
            self.counters.undrafted_time += Duration::from_secs_f64(plain * drawn as f64 / plan.len() as f64);
        }
    }

    fn fail(&mut self, id: RequestId, error: Arc<Error>, events: &mut Vec<(RequestId, Event)>) {
        if let Some(index) = self.live.iter().position(|a| a.id == id) {
            self.counters.failed += 1;
            self.remove(index);
            events.push((id, Event::Failed(error)));
        }
    }

    fn end(&mut self, index: usize, finish: Finish, end_token: Option<u32>) -> Event {
        self.counters.finish(finish);
        let mut active = self.remove(index);
        Event::Finished(Box::new(active.outcome(finish, end_token, self.clock.now())))
    }

    fn remove(&mut self, index: usize) -> Active {
        self.checkpoint(index);
        let mut active = self.live.remove(index);
        if let Some(sequence) = active.sequence.take() {
            self.sequences.close(sequence);
        }
        self.speculator.forget(active.id);
        active
    }
}

/// Refuses what can never be served.
pub(super) fn check(job: &Job, context: usize, vocabulary: usize) -> Result<(), Refused> {
    let request = &job.request;
    let tokens = request.prompt.len();
    if tokens == 0 {
        return Err(Refused::EmptyPrompt);
    }
    if tokens > context {
        return Err(Refused::TooLong { tokens, context });
    }
    if let Some(&token) = request.prompt.iter().find(|t| **t as usize >= vocabulary) {
        return Err(Refused::Token { token, vocabulary });
    }
    request.sampling.check()?;
    if let Some(&(token, _)) = request.sampling.logit_bias.iter().find(|(t, _)| *t as usize >= vocabulary) {
        return Err(crate::SamplingError::BiasToken { token, vocabulary }.into());
    }
    if request.stop.iter().any(String::is_empty) {
        return Err(crate::SamplingError::EmptyStopString.into());
    }
    Ok(())
}
