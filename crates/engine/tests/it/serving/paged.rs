//! A model whose keys and values are hashes: that of a token depends on all that stand before it in the sequence's pages, and
//! its logits on the last. A page that is wrong, late, shared in error or written twice changes every token after it; and it
//! takes no time, so thousands of histories can be played.

use std::{collections::HashMap, time::Duration};

use tessera_engine::{
    Config, Error, LanguageModel,
    models::{DraftFrom, Rings},
    state::{Identity, Owner},
};
use tessera_ops::{Batch, PAGE_TOKENS, RingPart, Role};

use super::FakeClock;

pub(super) struct Paged {
    config: Config,
    pages: Vec<[u64; PAGE_TOKENS]>,
    clock: FakeClock,
    /// Microseconds of a step by rows.
    cost: fn(usize) -> u64,
    /// Whether the hash of a token depends on its role.
    by_role: bool,
    rings: Option<Kept>,
    predictor: Option<Predictor>,
}

/// Predicts further ahead: what a token likes without the noise of those before it, which is often right. What it is given has to be
/// what a prediction block needs: every row of a sequence, in order, with the token that came after it.
#[derive(Default)]
struct Predictor {
    /// (row) of the last step: its sequence's ring and its position.
    step: Vec<(u32, u32)>,
    /// The same of the last prediction.
    prediction: Vec<(u32, u32)>,
    /// By ring: how many positions were predicted from.
    seen: HashMap<u32, u32>,
}

/// Rings of hashes, each with its position: a token depends on the last `window` of them too.
struct Kept {
    rings: Rings,
    window: usize,
    ring_pages: usize,
    slots: Vec<(u64, u64)>,
}

impl Kept {
    fn slot(&mut self, (page, slot): (u32, usize)) -> &mut (u64, u64) {
        &mut self.slots[page as usize * PAGE_TOKENS + slot]
    }

    /// The slots of a part of a ring.
    fn ring(&self, ring: u32, part: RingPart) -> impl Iterator<Item = usize> + use<> {
        let first = ring as usize * self.ring_pages;
        let runs = part.runs(self.ring_pages).into_iter();
        runs.flat_map(move |run| (first + run.start) * PAGE_TOKENS..(first + run.end) * PAGE_TOKENS)
    }
}

/// What a slot holds before anybody wrote to it.
const UNWRITTEN: u64 = u64::MAX;

impl Paged {
    pub(super) fn new(pages: usize, clock: FakeClock, cost: fn(usize) -> u64) -> Paged {
        let mut config = Config::read(&super::checkpoint("llama")).unwrap();
        config.context = usize::MAX;
        Paged {
            config,
            pages: vec![[UNWRITTEN; PAGE_TOKENS]; pages],
            clock,
            cost,
            by_role: false,
            rings: None,
            predictor: None,
        }
    }

    /// As a device whose roles have arithmetics of their own.
    pub(super) fn by_role(self) -> Paged {
        Paged { by_role: true, ..self }
    }

    /// With so many rings of `ring_pages` pages, of which a token sees the last `window`.
    pub(super) fn in_rings(self, count: usize, window: usize, ring_pages: usize) -> Paged {
        let rings = Rings { count, rows_max: tessera_ops::mask::ring_rows_max(window, ring_pages) };
        let slots = vec![(UNWRITTEN, UNWRITTEN); count * ring_pages * PAGE_TOKENS];
        Paged { rings: Some(Kept { rings, window, ring_pages, slots }), ..self }
    }

    /// With predictions further ahead.
    pub(super) fn predicting(self) -> Paged {
        Paged { predictor: Some(Predictor::default()), ..self }
    }

    /// Logits after `last`: mostly what this token asks for, so that texts repeat, changed by all tokens before.
    fn logits(&self, last: u32, all: u64, out: &mut Vec<f32>) {
        let noise = |seed: u64, i: usize| {
            let mut random = super::Random(seed ^ (i as u64) << 20);
            (random.next() >> 40) as f32 / (1u64 << 24) as f32
        };
        let liked = (last as usize * 31 + 7) % self.config.vocabulary;
        out.extend((0..self.config.vocabulary).map(|i| 4.0 * noise(all, i) + if i == liked { 3.0 } else { 0.0 }));
    }
}

impl LanguageModel for Paged {
    fn config(&self) -> &Config {
        &self.config
    }

    fn cache_tokens(&self) -> usize {
        self.pages.len() * PAGE_TOKENS
    }

    fn cache_bytes(&self) -> usize {
        8 * self.cache_tokens()
    }

    fn roles_agree(&self) -> bool {
        !self.by_role
    }

    fn drafts(&self) -> bool {
        self.predictor.is_some()
    }

    fn draft(&mut self, from: DraftFrom, rows: &[u32], batch: &Batch, logits: &mut Vec<f32>) -> Result<(), Error> {
        let predictor = self.predictor.as_mut().unwrap();
        assert_eq!(rows.len(), batch.len());
        let places: Vec<(u32, u32)> =
            (0..rows.len()).map(|r| (batch.rings[batch.sequences[r] as usize], batch.positions[r])).collect();
        // Rows that a prediction block has not seen may be anything.
        let mut unsound = false;
        for (row, (ring, position)) in rows.iter().zip(&places) {
            match from {
                DraftFrom::Step => {
                    assert_eq!(predictor.step[*row as usize], (*ring, *position), "the row of that token");
                    let seen = predictor.seen.entry(*ring).or_default();
                    // Where a sequence begins with published pages, the first rows are those after them.
                    let begins = position.is_multiple_of(PAGE_TOKENS as u32);
                    assert!(begins || *position <= *seen, "position {position} after {seen}: one was left out");
                    unsound |= *position > *seen;
                    *seen = position + 1;
                }
                DraftFrom::Draft => {
                    assert_eq!(predictor.prediction[*row as usize], (*ring, *position - 1), "the row before");
                }
            }
        }
        predictor.prediction = places;
        logits.clear();
        for &row in &batch.logit_rows {
            let liked = (batch.tokens[row as usize] as usize * 31 + 7) % self.config.vocabulary;
            let likes = |i| if i == liked { 3.0 } else { 0.0 };
            logits.extend((0..self.config.vocabulary).map(|i| if unsound { f32::NAN } else { likes(i) }));
        }
        Ok(())
    }

    fn rings(&self) -> Option<Rings> {
        self.rings.as_ref().map(|kept| kept.rings)
    }

    /// As a card does: what can be drawn from the likeliest tokens is, and beside others it is drawn from all logits.
    fn ranks(&self) -> bool {
        true
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<(), Error> {
        logits.clear();
        if let Some(predictor) = &mut self.predictor {
            predictor.step =
                (0..batch.len()).map(|r| (batch.rings[batch.sequences[r] as usize], batch.positions[r])).collect();
        }
        self.clock.advance(Duration::from_micros((self.cost)(batch.len())));
        for (row, token) in batch.tokens.iter().enumerate() {
            let at = batch.positions[row] as usize;
            let mut all = u64::from(*token);
            if self.by_role && batch.roles[row] == Role::Decode {
                all ^= 1 << 40;
            }
            for position in 0..at {
                let (page, slot) = batch.slot(row, position, None);
                let before = self.pages[page as usize][slot];
                assert!(before != UNWRITTEN, "position {position} was never computed");
                all = super::Random(all ^ before).next();
            }
            if let Some(kept) = &mut self.rings {
                for position in (at + 1).saturating_sub(kept.window)..at {
                    let (found, hash) = *kept.slot(batch.slot(row, position, Some(kept.ring_pages)));
                    assert_eq!(found, position as u64, "position {position} is no longer in the ring");
                    all = super::Random(all ^ hash).next();
                }
                *kept.slot(batch.slot(row, at, Some(kept.ring_pages))) = (at as u64, super::Random(!all).next());
            }
            let (page, slot) = batch.slot(row, at, None);
            self.pages[page as usize][slot] = super::Random(all).next();
        }
        for &row in &batch.logit_rows {
            let row = row as usize;
            let (page, slot) = batch.slot(row, batch.positions[row] as usize, None);
            self.logits(batch.tokens[row], self.pages[page as usize][slot], logits);
        }
        Ok(())
    }

    /// A row's hidden state is the hash of all tokens up to it.
    fn forward_hidden(&mut self, batch: &Batch, logits: &mut Vec<f32>, hidden: &mut Vec<f32>) -> Result<(), Error> {
        self.forward(batch, logits)?;
        hidden.clear();
        for row in 0..batch.len() {
            let (page, slot) = batch.slot(row, batch.positions[row] as usize, None);
            let mut random = super::Random(self.pages[page as usize][slot]);
            hidden.extend((0..self.config.hidden).map(|_| (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0));
        }
        Ok(())
    }

    fn owner(&self, identity: &Identity) -> Result<Owner, Error> {
        Ok(Owner {
            identity: identity.clone(),
            name: "hashes".to_owned(),
            cache: "hashes".to_owned(),
            page_bytes: 8 * PAGE_TOKENS,
            ring_bytes: self.rings.as_ref().map_or(0, |kept| 16 * PAGE_TOKENS * kept.ring_pages),
            context: self.cache_tokens(),
        })
    }

    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        out.extend(self.pages[page as usize].iter().flat_map(|hash| hash.to_le_bytes()));
        Ok(())
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error> {
        let hashes = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        self.pages[page as usize].iter_mut().zip(hashes).for_each(|(slot, hash)| *slot = hash);
        Ok(())
    }

    fn read_ring(&self, ring: u32, part: RingPart, out: &mut Vec<u8>) -> Result<(), Error> {
        let Some(kept) = &self.rings else { return Ok(()) };
        let slots = kept.ring(ring, part).map(|slot| kept.slots[slot]);
        out.extend(slots.flat_map(|s| [s.0.to_le_bytes(), s.1.to_le_bytes()].concat()));
        Ok(())
    }

    fn write_ring(&mut self, ring: u32, part: RingPart, bytes: &[u8]) -> Result<(), Error> {
        let Some(kept) = &mut self.rings else { return Ok(()) };
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        // What is not written is not as it was in the ring that the part came from.
        let whole: Vec<usize> = kept.ring(ring, RingPart::Whole).collect();
        whole.into_iter().for_each(|slot| kept.slots[slot] = (UNWRITTEN, UNWRITTEN));
        kept.ring(ring, part).zip(words.as_chunks::<2>().0).for_each(|(slot, w)| kept.slots[slot] = (w[0], w[1]));
        Ok(())
    }
}
