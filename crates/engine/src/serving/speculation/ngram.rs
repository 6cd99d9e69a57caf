//! Prompt lookup (Saxena 2023): what followed the last tokens when they stood in the text before. Summaries, edits and code
//! repeat their prompts, and then this is right more often than any small model, for nothing.

use super::{Ask, Draft, Drafter};
use crate::{Error, Sequences, serving::RequestId};

/// Guesses that the text goes on as it did after the same tokens.
#[derive(Clone, Copy, Debug)]
pub struct PromptLookup {
    /// The shortest match, in tokens, at least 1.
    pub match_min: usize,
    /// A match of so many is not looked at further back.
    pub match_max: usize,
}

impl Default for PromptLookup {
    fn default() -> PromptLookup {
        PromptLookup { match_min: 3, match_max: 16 }
    }
}

impl PromptLookup {
    /// What followed the longest match of the end of `known`, the last of several; at most `most` tokens.
    pub fn guess(&self, known: &[u32], most: usize) -> Draft {
        let Some((end, length)) = self.longest_match(known) else { return Draft::default() };
        let mut tokens: Vec<u32> = Vec::with_capacity(most);
        for i in 0..most {
            // What follows may run into the end itself: then the text is periodic, and so is the guess.
            let next = known.get(end + i).copied().unwrap_or_else(|| tokens[end + i - known.len()]);
            tokens.push(next);
        }
        Draft { tokens, class: [4, 6, 10].iter().filter(|longer| length >= **longer).count() }
    }

    /// Where the match ends and how long it is.
    fn longest_match(&self, known: &[u32]) -> Option<(usize, usize)> {
        let last = *known.last()?;
        let mut best = None;
        let mut longest = self.match_min.max(1) - 1;
        for end in (self.match_min.max(1)..known.len()).rev() {
            if known[end - 1] != last {
                continue;
            }
            let back = known[..end].iter().rev().zip(known.iter().rev());
            let length = back.take(self.match_max).take_while(|(a, b)| a == b).count();
            if length > longest {
                (best, longest) = (Some((end, length)), length);
                if length == self.match_max {
                    break;
                }
            }
        }
        best
    }
}

impl Drafter for PromptLookup {
    fn name(&self) -> &'static str {
        "prompt lookup"
    }

    fn is_free(&self) -> bool {
        true
    }

    fn draft(&mut self, asks: &[Ask<'_>], _: &mut Sequences) -> Result<Vec<Draft>, Error> {
        Ok(asks.iter().map(|ask| self.guess(ask.known, ask.most)).collect())
    }

    fn forget(&mut self, _: RequestId) {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOKUP: PromptLookup = PromptLookup { match_min: 3, match_max: 16 };

    #[test]
    fn the_longest_match_counts_and_of_several_the_last() {
        let guess = |known: &[u32]| LOOKUP.guess(known, 2);
        assert_eq!(guess(&[1, 2, 3, 7, 8, 1, 2, 3]), Draft { tokens: vec![7, 8], class: 0 });
        assert_eq!(guess(&[1, 2, 3, 7, 7, 1, 2, 3, 8, 8, 1, 2, 3]).tokens, [8, 8]);
        assert_eq!(guess(&[9, 1, 2, 3, 7, 7, 1, 2, 3, 8, 8, 9, 1, 2, 3]), Draft { tokens: vec![7, 7], class: 1 });
        assert_eq!(guess(&[1, 2, 3, 7, 8, 2, 3]), Draft::default());
        assert_eq!(guess(&[]), Draft::default());
    }

    #[test]
    fn a_period_goes_on() {
        assert_eq!(LOOKUP.guess(&[5, 6, 5, 6, 5, 6, 5], 5).tokens, [6, 5, 6, 5, 6]);
        assert_eq!(LOOKUP.guess(&[4; 20], 3), Draft { tokens: vec![4; 3], class: 3 });
    }

    proptest! {
        /// Guesses are as long as asked for and stand in the text, or there is no match.
        #[test]
        fn a_guess_follows_a_match(known in prop::collection::vec(0u32..3, 0..40), most in 1usize..8) {
            let guess = LOOKUP.guess(&known, most);
            let tail = &known[known.len().saturating_sub(3)..];
            let ends = (3..known.len()).filter(|end| known[end - 3..*end] == *tail);
            let follows: Vec<u32> = ends.map(|end| known[end]).collect();
            if follows.is_empty() {
                prop_assert!(guess.tokens.is_empty());
            } else {
                prop_assert!(guess.tokens.len() == most && follows.contains(&guess.tokens[0]));
            }
        }
    }
}
