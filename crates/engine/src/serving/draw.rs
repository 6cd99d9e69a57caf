//! Drawing the tokens of a step: from the logits of each part, as long as drafts are right.
//!
//! Parts know nothing of each other, so where many tokens are drawn from large vocabularies, which takes as long as some
//! layers, threads share them. Whichever thread draws a token, it is the same one.

use std::{sync::Arc, thread};

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

/// What drawing needs beside a part.
#[derive(Clone, Copy)]
pub(super) struct Draws<'a> {
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    pub(super) tokenizer: &'a Tokenizer,
    /// Logits from which on threads share the work.
    pub(super) logits_min: usize,
}

/// A part, its request, and the logits that it gave: (rows, vocabulary).
struct Work<'a> {
    part: usize,
    planned: &'a Planned,
    active: &'a mut Active,
    logits: &'a mut [f32],
}

/// Draws for all parts of a plan, in its order, from the step's logits.
pub(super) fn all(live: &mut [Active], plan: &[Planned], logits: &mut [f32], draws: Draws<'_>) -> Vec<Harvest> {
    let mut rest = logits;
    let mut rows: Vec<Option<&mut [f32]>> = Vec::with_capacity(plan.len());
    for p in plan {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(p.logits * draws.vocabulary);
        rows.push(Some(own));
        rest = others;
    }
    let mut work: Vec<Work<'_>> = Vec::with_capacity(plan.len());
    for active in live {
        let Some(part) = plan.iter().position(|p| p.id == active.id) else { continue };
        let logits = rows[part].take().expect("a request is once in a plan");
        work.push(Work { part, planned: &plan[part], active, logits });
    }
    // Taking the highest is no work; a distribution is.
    let is_work = |w: &&Work<'_>| w.active.sampler.params().temperature > 0.0;
    let drawn_from: usize = work.iter().filter(is_work).map(|w| w.logits.len()).sum();
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(work.len());
    let mut harvests: Vec<Harvest> = plan.iter().map(|_| Harvest::default()).collect();
    let run = |work: &mut [Work<'_>]| -> Vec<(usize, Harvest)> {
        work.iter_mut().map(|w| (w.part, one(w.active, w.planned, w.logits, draws))).collect()
    };
    let mut done = Vec::with_capacity(plan.len());
    if threads < 2 || drawn_from < draws.logits_min {
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
fn one(active: &mut Active, planned: &Planned, logits: &mut [f32], draws: Draws<'_>) -> Harvest {
    let mut harvest = Harvest { used: planned.tokens.len(), ..Harvest::default() };
    if logits.is_empty() {
        return harvest;
    }
    if active.reply.is_long_enough() {
        harvest.end = Some((Finish::Length, None)); // a reply of no tokens was asked for
        return harvest;
    }
    for (i, row) in logits.chunks_exact_mut(draws.vocabulary).enumerate() {
        let full = active.known.len() >= draws.context;
        let drawn = match active.draw(row, full, draws.tokenizer) {
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
