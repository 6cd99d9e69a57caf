//! Guessing tokens and verifying several in one step.
//!
//! A step reads each weight once for all of its rows, so 2 to 8 rows of one sequence cost little more than one. Drafts are
//! computed as further rows of the sequence, the sampler draws at each row as it would without drafts, and the reply goes on
//! as long as what it draws *is* the draft. Every token is drawn by the request's own sampler from the logits after its own
//! tokens, so a draft decides how many tokens a step gives and never which.
//!
//! How deep to guess is decided by two estimates: how likely a draft is right, by request and by how it was found
//! ([`acceptance`]), and what a step of so many rows takes, as measured. A draft lengthens the step for all and helps one
//! sequence, so what is made largest is the product of all sequences' tokens a second, and none may lose more than 3 % of its
//! own. One alone gets its most tokens a second. Where no draft helps, nothing is drafted.

pub(super) mod acceptance;
mod draft_model;
pub mod ngram;
mod prediction;

use std::{ops::Range, time::Duration};

pub use draft_model::DraftModel;
pub use ngram::PromptLookup;
pub use prediction::Prediction;

use super::{Clock, RequestId, Speculation, active::Active, costs::Costs, plan::Planned};
use crate::{Error, SamplingParams, SequenceId, Sequences};
use acceptance::Acceptance;

/// The deepest guess: a step verifies 2 to 8 rows of a sequence.
pub const DEPTH_MAX: usize = 7;

/// Kinds of guesses that a drafter may tell apart, because some are right more often than others.
pub const CLASSES: usize = 4;

/// A gain below this, for the average sequence, is not worth its noise.
const GAIN_MIN: f64 = 1.02;

/// No sequence of a step may be expected to fall below this part of its speed without drafts.
const LOSS_MAX: f64 = 0.97;

/// What a plan of drafts is worth: the mean logarithm of the sequences' tokens a second. `tokens` is the sum of the logarithms of
/// the tokens that they are likely to get, `seconds` the time of the step.
fn worth(tokens: f64, decodes: usize, seconds: f64) -> f64 {
    tokens / decodes as f64 - seconds.ln()
}

/// Who guesses.
pub trait Drafter: Send {
    /// For people: `prompt lookup`.
    fn name(&self) -> &'static str;

    /// Whether a guess takes no time to speak of.
    fn is_free(&self) -> bool;

    /// Whether it guesses by what the model itself predicts after each step ([`Sequences::predict`]).
    fn uses_predictions(&self) -> bool {
        false
    }

    /// Guesses what follows each request's tokens, which `sequences` hold; an empty guess is none.
    ///
    /// # Errors
    /// Where it cannot go on: it is not asked again.
    fn draft(&mut self, asks: &[Ask<'_>], sequences: &mut Sequences) -> Result<Vec<Draft>, Error>;

    /// A request has ended.
    fn forget(&mut self, request: RequestId);
}

/// What a drafter is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Whose tokens.
    pub request: RequestId,
    /// Its sequence.
    pub sequence: SequenceId,
    /// Prompt and reply, all that is known.
    pub known: &'a [u32],
    /// How the next tokens are drawn.
    pub sampling: &'a SamplingParams,
    /// Index of the next token in the reply.
    pub index: u64,
    /// The deepest guess that is of use, at least 1.
    pub most: usize,
}

/// A guess.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// At most as many as were asked for.
    pub tokens: Vec<u32>,
    /// How it was found, below [`CLASSES`].
    pub class: usize,
}

/// A guess for one entry of a plan.
#[derive(Debug)]
pub(super) struct Guess {
    pub(super) planned: usize,
    pub(super) tokens: Vec<u32>,
    /// [`GRAMMAR`] or one of [`sources`].
    pub(super) source: usize,
}

/// Where a guess is from, as a number: the request's grammar, or a class of a drafter's guesses.
const GRAMMAR: usize = 0;

/// All sources of a drafter.
fn sources(drafter: usize) -> Range<usize> {
    1 + drafter * CLASSES..1 + (drafter + 1) * CLASSES
}

/// Tokens that a step is likely to give with drafts of this depth, each of which is right with a chance of `likely`.
fn expected_tokens(likely: f64, depth: usize) -> f64 {
    (0..=depth).map(|right| likely.powi(right as i32)).sum()
}

/// Who may be guessed for.
struct Candidate<'a> {
    planned: usize,
    sequence: SequenceId,
    active: &'a Active,
    most: usize,
}

/// What guesses have to fit.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    /// Of the plan without guesses.
    pub(super) rows: usize,
    pub(super) context: usize,
    pub(super) costs: &'a Costs,
}

/// All drafters, and what is known of their guesses.
pub(super) struct Speculator {
    /// None in the place of one that failed.
    drafters: Vec<Option<Box<dyn Drafter>>>,
    /// Over all requests: what a new one begins with.
    prior: Acceptance,
    /// By drafter: seconds of one draft of each of so many sequences.
    draft_costs: Vec<Costs>,
    last_time: Duration,
    /// How long the model predicted after the last step.
    predicted: Duration,
}

impl Speculator {
    pub(super) fn new(drafters: Vec<Box<dyn Drafter>>) -> Speculator {
        let mut speculator = Speculator {
            drafters: Vec::new(),
            prior: Acceptance::default(),
            draft_costs: Vec::new(),
            last_time: Duration::ZERO,
            predicted: Duration::ZERO,
        };
        drafters.into_iter().for_each(|d| speculator.add(d));
        speculator
    }

    pub(super) fn add(&mut self, drafter: Box<dyn Drafter>) {
        self.drafters.push(Some(drafter));
        self.draft_costs.push(Costs::default());
    }

    pub(super) fn forget(&mut self, request: RequestId) {
        self.drafters.iter_mut().flatten().for_each(|d| d.forget(request));
    }

    /// The model predicted for so long.
    pub(super) fn predicted(&mut self, time: Duration) {
        self.predicted = time;
    }

    /// How long guessing took in this step.
    pub(super) fn last_time(&self) -> Duration {
        self.last_time
    }

    /// Guesses for the decodes of a plan of `rows` rows. Each entry of the plan gets at most one guess.
    pub(super) fn guess(
        &mut self,
        live: &mut [Active],
        sequences: &mut Sequences,
        plan: &[Planned],
        limits: Limits<'_>,
        clock: &dyn Clock,
    ) -> Vec<Guess> {
        let Limits { rows, context, costs } = limits;
        self.last_time = std::mem::take(&mut self.predicted);
        let predicted = self.last_time;
        let only_decodes = plan.iter().all(|p| p.is_decode);
        let speculates = |a: &&mut Active| a.speculation != Speculation::Off;
        let forced = |p: &Planned| live.iter_mut().find(|a| a.id == p.id).filter(speculates).map(|a| a.forced());
        let forced: Vec<_> = plan.iter().map(forced).collect();
        let live = &*live;
        let mut candidates: Vec<Candidate<'_>> =
            plan.iter().enumerate().filter_map(|(i, p)| candidate(live, i, p, only_decodes, context)).collect();
        let mut guesses: Vec<(Guess, &Active)> = Vec::new();
        for c in &candidates {
            let mut tokens = forced[c.planned].clone().unwrap_or_default();
            tokens.truncate(c.most);
            if !tokens.is_empty() {
                guesses.push((Guess { planned: c.planned, tokens, source: GRAMMAR }, c.active));
            }
        }
        candidates.retain(|c| guesses.iter().all(|(g, _)| g.planned != c.planned));
        for which in 0..self.drafters.len() {
            let depth = self.depth(which, &candidates, plan.len(), rows, costs);
            let asked: Vec<&Candidate<'_>> = candidates.iter().filter(|c| depth > 0 || is_forced(c.active)).collect();
            let Some(drafter) = self.drafters[which].as_mut().filter(|_| !asked.is_empty()) else { continue };
            let asks: Vec<Ask<'_>> = asked.iter().map(|c| c.ask(depth)).collect();
            let start = clock.now();
            let Ok(drafts) = drafter.draft(&asks, sequences) else {
                self.drafters[which] = None;
                continue;
            };
            let time = clock.now().saturating_sub(start);
            self.last_time += time;
            let time = if drafter.uses_predictions() { time + predicted } else { time };
            if let Some(deepest) = drafts.iter().map(|d| d.tokens.len()).max().filter(|d| *d > 0) {
                self.draft_costs[which].observe(asks.len(), time / deepest as u32);
            }
            let found = asked.iter().zip(drafts).filter(|(_, draft)| !draft.tokens.is_empty());
            guesses.extend(found.map(|(c, Draft { tokens, class })| {
                (Guess { planned: c.planned, tokens, source: sources(which).start + class }, c.active)
            }));
            candidates.retain(|c| guesses.iter().all(|(g, _)| g.planned != c.planned));
        }
        self.choose(guesses, plan.len(), rows, costs)
    }

    /// How deep a drafter that takes time should guess, if all candidates are asked; without a limit where it takes none.
    fn depth(&self, which: usize, candidates: &[Candidate<'_>], decodes: usize, rows: usize, costs: &Costs) -> usize {
        if self.drafters[which].as_ref().is_some_and(|d| d.is_free()) {
            return DEPTH_MAX;
        }
        let asked: Vec<_> = candidates.iter().filter(|c| !is_forced(c.active)).collect();
        let Some(base) = costs.at_least(rows) else { return 0 };
        let draft = self.draft_costs[which].at_least(asked.len()).unwrap_or(0.0);
        let likely: Vec<f64> = asked.iter().map(|c| c.active.acceptance.expect(sources(which), &self.prior)).collect();
        let (mut best, mut best_depth) = (worth(0.0, decodes, base) + GAIN_MIN.ln(), 0);
        for depth in 1..=DEPTH_MAX {
            let tokens = likely.iter().map(|p| expected_tokens(*p, depth).ln()).sum();
            let seconds = costs.at_least(rows + depth * asked.len()).unwrap_or(base) + depth as f64 * draft;
            let least = likely.iter().map(|p| expected_tokens(*p, depth)).fold(f64::INFINITY, f64::min);
            let least = if asked.len() < decodes { 1.0 } else { least };
            if least / seconds >= LOSS_MAX / base && worth(tokens, decodes, seconds) > best {
                (best, best_depth) = (worth(tokens, decodes, seconds), depth);
            }
        }
        best_depth
    }

    /// Cuts the guesses to where they are worth most. Those of requests that want a fixed depth stay.
    fn choose(&self, guesses: Vec<(Guess, &Active)>, decodes: usize, rows: usize, costs: &Costs) -> Vec<Guess> {
        let (mut kept, open): (Vec<_>, Vec<_>) = guesses.into_iter().partition(|(_, active)| is_forced(active));
        let rows = rows + kept.iter().map(|(g, _)| g.tokens.len()).sum::<usize>();
        // Each draft by what it adds: a guess's own are in order then, because each is less likely than the one before.
        let mut drafts: Vec<(f64, usize)> = Vec::new();
        for (i, (guess, active)) in open.iter().enumerate() {
            let likely = active.acceptance.expect(guess.source..guess.source + 1, &self.prior);
            let adds = |depth| expected_tokens(likely, depth) / expected_tokens(likely, depth - 1);
            drafts.extend((1..=guess.tokens.len()).map(|depth| (adds(depth), i)));
        }
        drafts.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut lengths = vec![0; open.len()];
        if let Some(base) = costs.at_least(rows) {
            let mut tokens = 0.0;
            let (mut best, mut count) = (worth(tokens, decodes, base) + GAIN_MIN.ln(), 0);
            // Of each sequence; those without a guess get one.
            let mut each = vec![1.0; decodes];
            for (n, (adds, i)) in drafts.iter().enumerate() {
                tokens += adds.ln();
                each[*i] *= adds;
                let seconds = costs.at_least(rows + n + 1).unwrap_or(base);
                let least = each.iter().copied().fold(f64::INFINITY, f64::min);
                let worth = worth(tokens, decodes, seconds);
                if least / seconds >= LOSS_MAX / base && worth > best {
                    (best, count) = (worth, n + 1);
                }
            }
            drafts[..count].iter().for_each(|(_, i)| lengths[*i] += 1);
        }
        for ((mut guess, active), length) in open.into_iter().zip(lengths) {
            guess.tokens.truncate(length);
            // A guess that is not tried is remembered: what was wrong long ago may be right now.
            kept.push((guess, active));
        }
        kept.into_iter().map(|(guess, _)| guess).collect()
    }

    /// Learns from a step: of a decode's drafts, the first `accepted` were right.
    pub(super) fn observe(&mut self, active: &mut Active, planned: &Planned, accepted: usize) {
        active.usage.speculation.add(planned.draft_tokens, accepted);
        let Some(source) = planned.source else { return };
        active.acceptance.observe(source, planned.draft_tokens, accepted);
        self.prior.observe(source, planned.draft_tokens, accepted);
    }
}

impl<'a> Candidate<'a> {
    fn ask(&self, depth: usize) -> Ask<'a> {
        let active = self.active;
        let most = if is_forced(active) { self.most } else { self.most.min(depth) };
        let (known, sampling) = (&active.known[..], active.sampler.params());
        Ask {
            request: active.id,
            sequence: self.sequence,
            known,
            sampling,
            index: active.reply.tokens().len() as u64,
            most,
        }
    }
}

fn is_forced(active: &Active) -> bool {
    matches!(active.speculation, Speculation::Depth(_))
}

fn candidate<'a>(
    live: &'a [Active],
    planned: usize,
    p: &Planned,
    only_decodes: bool,
    context: usize,
) -> Option<Candidate<'a>> {
    if !p.is_decode {
        return None;
    }
    let active = live.iter().find(|a| a.id == p.id)?;
    let wanted = match active.speculation {
        Speculation::Off => 0,
        // Beside prompts a step is as long as it may be already.
        Speculation::Auto => usize::from(only_decodes) * DEPTH_MAX,
        Speculation::Depth(depth) => depth.min(DEPTH_MAX),
    };
    // Drafts behind the reply's last token are wasted, and the context has no room for more.
    let most = wanted.min(active.reply.tokens_left().saturating_sub(1)).min(context - active.known.len().min(context));
    (most > 0).then_some(Candidate { planned, sequence: p.sequence, active, most })
}
