//! The replies to a request as they come from the engine. Dropping the answer ends what is left of them.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use tessera_engine::{
    Finish, Sampled,
    chat::{CallState, LostCall},
    serving::{Event, Job, Outcome, Ticket, Usage},
};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::{
    again::Again,
    catalog::Model,
    conversation::{ChatEvent, Reader, Reply},
    metrics::Metrics,
    problem::{Kind, Problem},
    sampled::SampledCalls,
};

/// What is told of one choice.
#[derive(Debug)]
pub(crate) enum Told {
    /// Its prompt is computed.
    Started { prompt_tokens: usize, cached_tokens: usize },
    /// A token came, and what it made of the reply; without a token, what had waited.
    Piece { events: Vec<ChatEvent>, token: Option<Sampled> },
    /// It is whole.
    Finished(Box<End>),
    /// It broke; nothing more comes of any choice.
    Failed(Problem),
}

/// The end of a choice.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) finish: Finish,
    pub(crate) stop_string: Option<String>,
    pub(crate) usage: Usage,
    /// What came in the place of a reply, if that was asked for.
    pub(crate) embedding: Option<Vec<f32>>,
    /// Tokens that were thoughts.
    pub(crate) reasoning_tokens: usize,
}

/// The replies to a request. Their number is bounded, and each by the context: so is what waits here for a slow client.
pub(crate) struct Answer {
    pub(crate) model: Arc<Model>,
    metrics: Arc<Metrics>,
    sender: UnboundedSender<Sent>,
    events: UnboundedReceiver<Sent>,
    choices: Vec<Choice>,
    /// Choices that have not ended.
    open: usize,
    /// Told next, before any event.
    waiting: VecDeque<(usize, Told)>,
    submitted: Instant,
}

/// An event of a choice, and in which attempt.
type Sent = ((usize, usize), Event);

struct Choice {
    reader: Reader,
    /// How it is drawn again, if it may be and was not yet.
    again: Option<Again>,
    attempt: usize,
    /// Whether it has tools to call.
    may_call: bool,
    last_token: Option<Instant>,
    open: bool,
    /// Tokens of the prompt, and those of them that were in the cache.
    prompt: (usize, usize),
    tokens: usize,
    reasoning_tokens: usize,
    embedding: Option<Vec<f32>>,
    /// What it called.
    calls: Reply,
    ticket: Ticket,
}

impl Choice {
    /// Keeps the calls that ended, as they were sampled.
    fn keep_calls(&mut self, events: &[ChatEvent], kept: &SampledCalls) {
        for event in events {
            match event {
                ChatEvent::Reasoning(_) | ChatEvent::Content(_) => {}
                ChatEvent::ToolCallBegin { .. } | ChatEvent::ToolCallArguments { .. } => self.calls.add(event),
                ChatEvent::ToolCallEnd { index, state, .. } => {
                    self.calls.add(event);
                    let call = self.calls.calls.get(*index).filter(|_| *state == CallState::Whole);
                    call.into_iter().for_each(|call| kept.keep(call));
                }
            }
        }
    }
}

impl Answer {
    /// Hands all jobs to the engine; if it refuses one, it gets none.
    pub(crate) fn submit(
        model: Arc<Model>,
        metrics: Arc<Metrics>,
        jobs: Vec<(Job, Reader, Option<Again>)>,
    ) -> Result<Answer, Problem> {
        let (sender, events) = mpsc::unbounded_channel();
        let submit = |(index, (job, reader, mut again)): (usize, (Job, Reader, Option<Again>))| {
            again.iter_mut().for_each(|again| again.read(None, &[], reader.rest()));
            let may_call = again.is_some();
            let ticket = submitted_as(&model, job, (index, 0), &sender)?;
            Ok::<_, Problem>(Choice {
                reader,
                again,
                attempt: 0,
                may_call,
                last_token: None,
                open: true,
                prompt: (0, 0),
                tokens: 0,
                reasoning_tokens: 0,
                embedding: None,
                calls: Reply::default(),
                ticket,
            })
        };
        let choices = jobs.into_iter().enumerate().map(submit).collect::<Result<Vec<_>, _>>()?;
        let (open, waiting, submitted) = (choices.len(), VecDeque::new(), Instant::now());
        Ok(Answer { model, metrics, sender, events, choices, open, waiting, submitted })
    }

    /// The number of choices.
    pub(crate) fn len(&self) -> usize {
        self.choices.len()
    }

    /// The next thing, with its choice; nothing when all is told.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Told)>> {
        loop {
            if let Some(told) = self.waiting.pop_front() {
                return Poll::Ready(Some(told));
            }
            if self.open == 0 {
                return Poll::Ready(None);
            }
            match self.events.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some((from, event))) => self.take(from, event),
                Poll::Ready(None) => self.fail(0, Problem::internal("the engine ended before the reply did")),
            }
        }
    }

    /// As [`Answer::poll_next`].
    pub(crate) async fn next(&mut self) -> Option<(usize, Told)> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    fn fail(&mut self, index: usize, problem: Problem) {
        self.open = 0;
        self.waiting.push_back((index, Told::Failed(problem)));
    }

    fn take(&mut self, (index, attempt): (usize, usize), event: Event) {
        let choice = &mut self.choices[index];
        if !choice.open || attempt != choice.attempt {
            return; // it was cut short, and the engine heard of that later
        }
        let mut events = Vec::new();
        match event {
            Event::Started { .. } if attempt > 0 => {}
            Event::Started { prompt_tokens, cached_tokens } => {
                choice.prompt = (prompt_tokens, cached_tokens);
                self.waiting.push_back((index, Told::Started { prompt_tokens, cached_tokens }));
            }
            Event::Token { sampled, text, held } => {
                let now = Instant::now();
                self.metrics.token(&self.model.name, self.submitted, choice.last_token.replace(now), now);
                choice.reader.read(text, &mut events);
                let lost = choice.reader.take_lost(&events);
                choice.tokens += 1;
                let again = self.tell(index, events, Some((sampled, held)), lost);
                if !again && self.choices[index].reader.is_done() {
                    self.cut(index);
                }
            }
            Event::Embedded(embedding) => choice.embedding = Some(embedding),
            Event::Finished(outcome) => self.finished(index, *outcome),
            Event::Failed(error) => self.fail(index, Problem::internal(format!("the reply failed: {error}"))),
        }
    }

    fn finished(&mut self, index: usize, outcome: Outcome) {
        let choice = &mut self.choices[index];
        let mut events = Vec::new();
        let problem = match outcome.finish {
            Finish::Cancelled => Some(Problem::unavailable("the model is being unloaded; its replies were cut off")),
            Finish::Deadline if choice.last_token.is_none() => {
                Some(Problem::new(Kind::Timeout, "the time was over before the reply began; try again later"))
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return self.fail(index, problem);
        }
        choice.reader.read(outcome.text, &mut events);
        let broken = choice.reader.take_lost(&events);
        choice.reader.finish(&mut events);
        let unfinished = choice.reader.take_lost(&events);
        let lost = if outcome.finish == Finish::EndToken {
            broken.or(unfinished)
        } else {
            // It was cut off in a call of which nothing is known.
            let cut = unfinished.filter(|_| choice.may_call);
            events.truncate(cut.map_or(events.len(), |lost| lost.event));
            None
        };
        if self.tell(index, events, None, lost) {
            return;
        }
        let choice = &self.choices[index];
        let mut usage = outcome.usage;
        if choice.attempt > 0 {
            ((usage.prompt_tokens, usage.cached_tokens), usage.reply_tokens) = (choice.prompt, choice.tokens);
        }
        self.close(index, outcome.finish, outcome.stop_string, usage);
    }

    /// Tells what a token made of a choice, or the end. `held`: text of it is to come yet. Where a call was lost and the choice is
    /// drawn again, which gives true, that is what came before the call.
    fn tell(
        &mut self,
        index: usize,
        mut events: Vec<ChatEvent>,
        token: Option<(Sampled, bool)>,
        lost: Option<LostCall>,
    ) -> bool {
        let choice = &mut self.choices[index];
        let sure = lost.map_or(events.len(), |lost| lost.event);
        let (token, held) = token.map_or((None, false), |(token, held)| (Some(token), held));
        if let Some(again) = &mut choice.again {
            let rest = choice.reader.rest().filter(|_| !held && lost.is_none());
            again.read(token.as_ref().map(|token| token.id), &events[..sure], rest);
        }
        let again = lost.is_some_and(|lost| self.try_again(index, lost));
        let choice = &mut self.choices[index];
        if again {
            events.truncate(sure);
        } else if let Some(again) = &mut choice.again {
            again.read(None, &events[sure..], None);
        }
        choice.keep_calls(&events, &self.model.calls);
        let thought = |event: &ChatEvent| matches!(event, ChatEvent::Reasoning(_));
        let is_thought = token.is_some() && !events.is_empty() && events.iter().all(thought);
        choice.reasoning_tokens += usize::from(is_thought);
        self.waiting.push_back((index, Told::Piece { events, token }));
        again
    }

    /// Lets a choice whose call broke go on from before that, once. False if it cannot: then what broke is content.
    fn try_again(&mut self, index: usize, lost: LostCall) -> bool {
        let choice = &mut self.choices[index];
        let called = choice.reader.has_called();
        // A grammar is made in a moment, and seldom.
        let job = choice.again.as_ref().and_then(|again| again.job(lost, called, &self.model));
        let next = (index, choice.attempt + 1);
        let Some(Ok(ticket)) = job.map(|job| submitted_as(&self.model, job, next, &self.sender)) else { return false };
        std::mem::replace(&mut choice.ticket, ticket).cancel();
        (choice.again, choice.attempt) = (None, next.1);
        choice.reader.restart(lost);
        true
    }

    /// Ends a choice of which nothing more is wanted.
    fn cut(&mut self, index: usize) {
        let choice = &self.choices[index];
        choice.ticket.cancel();
        let ((prompt_tokens, cached_tokens), reply_tokens) = (choice.prompt, choice.tokens);
        let usage = Usage { prompt_tokens, cached_tokens, reply_tokens, ..Usage::default() };
        self.close(index, Finish::EndToken, None, usage);
    }

    fn close(&mut self, index: usize, finish: Finish, stop_string: Option<String>, usage: Usage) {
        let choice = &mut self.choices[index];
        choice.open = false;
        self.open -= 1;
        self.metrics.reply(&self.model.name, self.submitted.elapsed(), finish);
        let (embedding, reasoning_tokens) = (choice.embedding.take(), choice.reasoning_tokens);
        let end = End { finish, stop_string, usage, embedding, reasoning_tokens };
        self.waiting.push_back((index, Told::Finished(Box::new(end))));
    }

    /// All replies, when they are whole.
    pub(crate) async fn whole(mut self) -> Result<Vec<Whole>, Problem> {
        let mut all: Vec<Whole> = (0..self.len()).map(|_| Whole::default()).collect();
        while let Some((index, told)) = self.next().await {
            all[index].add(told)?;
        }
        Ok(all)
    }
}

/// Hands a job to the engine; its events come with these numbers.
fn submitted_as(
    model: &Model,
    job: Job,
    from: (usize, usize),
    sender: &UnboundedSender<Sent>,
) -> Result<Ticket, Problem> {
    let sender = sender.clone();
    Ok(model.engine().submit(job, move |event| sender.send((from, event)).is_ok())?)
}

/// One reply.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) reply: Reply,
    /// All tokens, with their log-probabilities if these were asked for.
    pub(crate) tokens: Vec<Sampled>,
    pub(crate) end: Option<End>,
}

impl Whole {
    fn add(&mut self, told: Told) -> Result<(), Problem> {
        match told {
            Told::Started { .. } => {}
            Told::Piece { events, token } => {
                events.iter().for_each(|event| self.reply.add(event));
                self.tokens.extend(token);
            }
            Told::Finished(end) => self.end = Some(*end),
            Told::Failed(problem) => return Err(problem),
        }
        Ok(())
    }

    /// Why it ended.
    pub(crate) fn finish(&self) -> Finish {
        self.end.as_ref().map_or(Finish::Cancelled, |end| end.finish)
    }
}

/// What all replies took together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) reply_tokens: usize,
    pub(crate) reasoning_tokens: usize,
}

impl Totals {
    /// Adds a choice. Prompts are counted once, however many replies they have.
    pub(crate) fn add(&mut self, choice: usize, replies: usize, end: &End) {
        let usage = &end.usage;
        self.reasoning_tokens += end.reasoning_tokens;
        if choice.is_multiple_of(replies) {
            self.prompt_tokens += usage.prompt_tokens;
            self.cached_tokens += usage.cached_tokens;
        }
        self.reply_tokens += usage.reply_tokens;
    }

    pub(crate) fn of(all: &[Whole], replies: usize) -> Totals {
        let mut totals = Totals::default();
        for (index, whole) in all.iter().enumerate() {
            whole.end.iter().for_each(|end| totals.add(index, replies, end));
        }
        totals
    }
}
