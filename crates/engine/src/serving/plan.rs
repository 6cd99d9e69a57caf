//! What the next step computes.

use std::time::Duration;

use tessera_ops::{PAGE_TOKENS, Role};

use super::{
    Engine, RequestId,
    active::Active,
    share,
    speculation::{Guess, Limits},
};
use crate::{SequenceId, Sequences};

/// What a step computes of one request.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) id: RequestId,
    pub(super) sequence: SequenceId,
    /// Tokens before those.
    pub(super) start: usize,
    /// Known tokens, and then drafts.
    pub(super) tokens: Vec<u32>,
    pub(super) role: Role,
    /// Logits of the last so many.
    pub(super) logits: usize,
    /// Whether all that it lacked was one token of the reply.
    pub(super) is_decode: bool,
    /// How many of the tokens are drafts.
    pub(super) draft_tokens: usize,
    /// Where the guess is from, if there was one, tried or not.
    pub(super) source: Option<usize>,
}

impl Planned {
    pub(super) fn drafts(&self) -> &[u32] {
        &self.tokens[self.tokens.len() - self.draft_tokens..]
    }
}

impl Engine {
    /// Gives sequences to those that wait, in the order of rank, while there are slots and pages.
    pub(super) fn admit(&mut self, now: Duration) {
        let mut running = self.live.iter().filter(|a| a.sequence.is_some()).count();
        while running < self.options.slots {
            let Some(index) = self.live.iter().position(|a| a.sequence.is_none()) else { return };
            if running > 0 && !self.has_room_for(&self.live[index]) {
                return;
            }
            let active = &mut self.live[index];
            let sequence = self.sequences.open();
            let known = active.reusable(self.options.share_replies);
            let cached = self.sequences.reuse(sequence, known);
            active.admit(sequence, cached, now);
            running += 1;
        }
    }

    /// Whether the cache has room for all that a request knows, beside what others still need for theirs.
    fn has_room_for(&self, active: &Active) -> bool {
        let (_, held) = self.sequences.reusable_pages(active.reusable(self.options.share_replies));
        let needed = active.known.len().div_ceil(PAGE_TOKENS) - held;
        // Each of the others will also want a page for its reply before long.
        let promised = |a: &Active| {
            let lacking = a.known.len() - self.sequences.tokens(a.sequence?).len();
            Some(self.sequences.pages_to_take(a.sequence?, lacking.max(1)).max(1))
        };
        let promised: usize = self.live.iter().filter_map(promised).sum();
        needed + promised <= self.sequences.free_pages()
    }

    /// Decides what the step computes: first one token of every sequence that decodes, then prompts, then drafts.
    pub(super) fn plan(&mut self) -> Vec<Planned> {
        let mut plan = Vec::new();
        for index in 0..self.live.len() {
            if self.lacking(index) == Some(1) {
                self.plan_tokens(index, 1, &mut plan);
            }
        }
        self.plan_prompts(&mut plan);
        self.plan_drafts(&mut plan);
        plan
    }

    /// Tokens of an admitted request that are to be computed.
    fn lacking(&self, index: usize) -> Option<usize> {
        let active = &self.live[index];
        Some(active.known.len() - self.sequences.tokens(active.sequence?).len())
    }

    fn plan_prompts(&mut self, plan: &mut Vec<Planned>) {
        let lacks_more = |engine: &Engine, i: &usize| engine.lacking(*i).is_some_and(|lacking| lacking > 1);
        let prompts: Vec<usize> = (0..self.live.len()).filter(|i| lacks_more(self, i)).collect();
        for &index in &prompts {
            let active = &mut self.live[index];
            let Some(sequence) = active.sequence else { continue };
            let cached = self.sequences.reuse(sequence, active.reusable(self.options.share_replies));
            active.reused(cached);
        }
        let prompts: Vec<usize> = prompts.into_iter().filter(|i| !self.follows(*i)).collect();
        let decodes = plan.len();
        let plain = self.decode_costs.at_least(decodes);
        let affordable = plain.and_then(|plain| self.pace.rows(plain, self.options.stall));
        let rows = self.options.prompt_rows(decodes, prompts.len(), affordable);
        let wanted: Vec<usize> = prompts.iter().map(|i| self.lacking(*i).unwrap_or(0)).collect();
        let shares = prompts.into_iter().zip(share::evenly(rows, &wanted));
        for (index, rows) in shares.filter(|(_, rows)| *rows > 0) {
            self.plan_tokens(index, rows, plan);
        }
    }

    /// Whether somebody who ranks higher is about to compute the very page that this one needs next: then it waits for it.
    fn follows(&self, index: usize) -> bool {
        let active = &self.live[index];
        let Some(sequence) = active.sequence else { return false };
        let start = self.sequences.tokens(sequence).len();
        let end = start + PAGE_TOKENS;
        let known = active.reusable(self.options.share_replies);
        start.is_multiple_of(PAGE_TOKENS)
            && end < known.len()
            && self.live[..index].iter().any(|leader| {
                let theirs = &leader.known[..leader.known.len().min(self.shared_len(leader))];
                leader.sequence.is_some_and(|s| self.sequences.tokens(s).len() < end)
                    && theirs.get(..end) == Some(&known[..end])
            })
    }

    /// Tokens of a request whose pages others may use.
    fn shared_len(&self, active: &Active) -> usize {
        if self.options.share_replies { active.known.len() } else { active.prompt_tokens }
    }

    /// Plans up to `most` known tokens, at least one, of a request. Where not even one has room, those that rank last lose
    /// their pages.
    fn plan_tokens(&mut self, index: usize, most: usize, plan: &mut Vec<Planned>) {
        loop {
            // It may have lost its own pages to one that ranks higher.
            let active = &self.live[index];
            let (Some(sequence), Some(lacking)) = (active.sequence, self.lacking(index)) else { return };
            let start = active.known.len() - lacking;
            // A part has one role.
            let in_prompt = start < active.prompt_tokens;
            let end = if in_prompt { active.prompt_tokens } else { active.known.len() };
            let rows = most.min(end - start);
            let rows = rows_that_fit(&self.sequences, sequence, rows, self.pages_left(plan));
            if rows > 0 {
                return plan.push(Planned {
                    id: active.id,
                    sequence,
                    start,
                    tokens: active.known[start..start + rows].to_vec(),
                    role: if in_prompt { Role::Prefill } else { Role::Decode },
                    logits: usize::from(start + rows == active.known.len() && active.pool.is_none()),
                    is_decode: !in_prompt && lacking == 1,
                    draft_tokens: 0,
                    source: None,
                });
            }
            let last = self.live.iter().rposition(|a| a.sequence.is_some()).expect("this one is admitted");
            self.preempt(last, plan);
        }
    }

    /// Free pages that the plan does not take.
    fn pages_left(&self, plan: &[Planned]) -> usize {
        let taken: usize = plan.iter().map(|p| self.sequences.pages_to_take(p.sequence, p.tokens.len())).sum();
        self.sequences.free_pages() - taken
    }

    /// Takes a request's pages away. It keeps what it knows and waits to be admitted again.
    fn preempt(&mut self, index: usize, plan: &mut Vec<Planned>) {
        self.checkpoint(index);
        let active = &mut self.live[index];
        let Some(sequence) = active.preempt() else { return };
        self.counters.preemptions += 1;
        plan.retain(|p| p.id != active.id);
        self.sequences.close(sequence);
    }

    /// Adds drafts to the decodes of the plan, where they are likely to gain.
    fn plan_drafts(&mut self, plan: &mut [Planned]) {
        let rows: usize = plan.iter().map(|p| p.tokens.len()).sum();
        let mut rows_left = self.options.step_tokens.saturating_sub(rows);
        let limits = Limits { rows, context: self.context, costs: &self.decode_costs };
        let guesses = self.speculator.guess(&mut self.live, &mut self.sequences, plan, limits, &*self.clock);
        let mut pages = self.pages_left(plan);
        for Guess { planned, tokens, source } in guesses {
            let p = &mut plan[planned];
            let taken = self.sequences.pages_to_take(p.sequence, p.tokens.len());
            let rows = (p.tokens.len() + tokens.len()).min(p.tokens.len() + rows_left);
            let rows = rows_that_fit(&self.sequences, p.sequence, rows, pages + taken);
            let drafts = rows.saturating_sub(p.tokens.len());
            p.tokens.extend_from_slice(&tokens[..drafts]);
            (p.draft_tokens, p.source) = (drafts, Some(source));
            p.logits += drafts;
            rows_left -= drafts;
            pages -= self.sequences.pages_to_take(p.sequence, p.tokens.len()) - taken;
        }
    }
}

/// How many of `rows` rows fit, if `pages` pages are left.
fn rows_that_fit(sequences: &Sequences, sequence: SequenceId, rows: usize, pages: usize) -> usize {
    let rows = rows.min(sequences.rows_max());
    let over = sequences.pages_to_take(sequence, rows).saturating_sub(pages);
    if over == 0 {
        return rows;
    }
    // The end of the last page that is left.
    let end = (sequences.tokens(sequence).len() + rows).next_multiple_of(PAGE_TOKENS) - over * PAGE_TOKENS;
    end.saturating_sub(sequences.tokens(sequence).len())
}
