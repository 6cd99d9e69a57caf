//! Drawing the tokens of a step: from the logits of each part, as long as drafts are right.
//!
//! Parts know nothing of each other, so where many tokens are drawn from large vocabularies, which takes as long as some
//! layers, threads share them. Whichever thread draws a token, it is the same one.

use std::{sync::Arc, thread};

use tessera_ops::Candidate;

use super::{Event, active::Active, plan::Planned};
use crate::{Error, Finish, Tokenizer};

/// What came of a part of a step.
#[derive(Default)]
pub(super) struct Harvest {
    /// Rows whose tokens are part of the sequence.
    pub(super) used: usize,
    pub(super) events: Vec<Event>,
    /// Why the reply ends, and the token that ended it.
    pub(super) end: Option<(Finish, Option<u32>)>,
    pub(super) error: Option<Arc<Error>>,
}

/// What tokens are drawn from: of each row its logits, or its likeliest tokens where these decide.
pub(super) enum Rows<'a> {
    /// (rows, vocabulary)
    Logits { all: &'a mut [f32], vocabulary: usize },
    /// (rows, each)
    Best { all: &'a [Candidate], each: usize },
}

/// One of them.
pub(super) enum Row<'a> {
    Logits(&'a mut [f32]),
    Best(&'a [Candidate]),
}

impl<'a> Rows<'a> {
    /// The first so many rows, and the rest.
    fn split(self, rows: usize) -> (Rows<'a>, Rows<'a>) {
        match self {
            Rows::Logits { all, vocabulary } => {
                let (first, rest) = all.split_at_mut(rows * vocabulary);
                (Rows::Logits { all: first, vocabulary }, Rows::Logits { all: rest, vocabulary })
            }
            Rows::Best { all, each } => {
                let (first, rest) = all.split_at(rows * each);
                (Rows::Best { all: first, each }, Rows::Best { all: rest, each })
            }
        }
    }

    /// Numbers that a draw may have to look at.
    fn len(&self) -> usize {
        match self {
            Rows::Logits { all, .. } => all.len(),
            Rows::Best { all, .. } => all.len(),
        }
    }

    fn row(&mut self, index: usize) -> Row<'_> {
        match self {
            Rows::Logits { all, vocabulary } => Row::Logits(&mut all[index * *vocabulary..][..*vocabulary]),
            Rows::Best { all, each } => Row::Best(&all[index * *each..][..*each]),
        }
    }
}

/// What drawing needs beside a part.
#[derive(Clone, Copy)]
pub(super) struct Draws<'a> {
    pub(super) context: usize,
    pub(super) tokenizer: &'a Tokenizer,
    /// Logits from which on threads share the work.
    pub(super) logits_min: usize,
}

/// A part, its request, and what its tokens are drawn from.
struct Work<'a> {
    part: usize,
    planned: &'a Planned,
    active: &'a mut Active,
    rows: Rows<'a>,
}

/// Draws for all parts of a plan, in its order, from the step's rows.
pub(super) fn all(live: &mut [Active], plan: &[Planned], of_step: Rows<'_>, draws: Draws<'_>) -> Vec<Harvest> {
    let mut rest = of_step;
    let mut rows: Vec<Option<Rows<'_>>> = Vec::with_capacity(plan.len());
    for p in plan {
        let (own, others) = rest.split(p.logits);
        rows.push(Some(own));
        rest = others;
    }
    let mut work: Vec<Work<'_>> = Vec::with_capacity(plan.len());
    for active in live {
        let Some(part) = plan.iter().position(|p| p.id == active.id) else { continue };
        let rows = rows[part].take().expect("a request is once in a plan");
        work.push(Work { part, planned: &plan[part], active, rows });
    }
    // Taking the highest is no work; a distribution is.
    let is_work = |w: &&Work<'_>| w.active.sampler.params().temperature > 0.0;
    let drawn_from: usize = work.iter().filter(is_work).map(|w| w.rows.len()).sum();
    let is_shared = work.len() > 1 && drawn_from >= draws.logits_min;
    // To ask the system for their number takes it tens of microseconds.
    let most = if is_shared { thread::available_parallelism().map_or(1, |n| n.get()) } else { 1 };
    let threads = most.min(work.len());
    let mut harvests: Vec<Harvest> = plan.iter().map(|_| Harvest::default()).collect();
    let run = |work: &mut [Work<'_>]| -> Vec<(usize, Harvest)> {
        work.iter_mut().map(|w| (w.part, one(w.active, w.planned, &mut w.rows, draws))).collect()
    };
    let mut done = Vec::with_capacity(plan.len());
    if threads < 2 {
        done = run(&mut work);
    } else {
        let size = work.len().div_ceil(threads);
        let (own, others) = work.split_at_mut(size);
        thread::scope(|scope| {
            let handles: Vec<_> = others.chunks_mut(size).map(|part| scope.spawn(|| run(part))).collect();
            done.extend(run(own));
            for handle in handles {
                done.extend(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
        });
    }
    for (part, harvest) in done {
        harvests[part] = harvest;
    }
    harvests
}

/// Draws for one part.
fn one(active: &mut Active, planned: &Planned, rows: &mut Rows<'_>, draws: Draws<'_>) -> Harvest {
    let mut harvest = Harvest { used: planned.tokens.len(), ..Harvest::default() };
    if planned.logits == 0 {
        return harvest;
    }
    if active.reply.is_long_enough() {
        harvest.end = Some((Finish::Length, None)); // a reply of no tokens was asked for
        return harvest;
    }
    for i in 0..planned.logits {
        let full = active.known.len() >= draws.context;
        let drawn = match active.draw(rows.row(i), full, draws.tokenizer) {
            Ok(drawn) => drawn,
            Err(error) => {
                harvest.error = Some(Arc::new(error));
                return harvest;
            }
        };
        harvest.used = planned.tokens.len() - planned.logits + i + 1;
        harvest.events.extend(drawn.event);
        if let Some(finish) = drawn.finish {
            harvest.end = Some((finish, (finish == Finish::EndToken).then_some(drawn.token)));
            break;
        }
        if planned.drafts().get(i) != Some(&drawn.token) {
            break;
        }
    }
    harvest
}
