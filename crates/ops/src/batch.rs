//! What one step computes. The only thing a forward pass gets, in prefill, decode, verification or any mix of them.

use crate::kv::PAGE_TOKENS;

/// Why a row is computed. The role, never the width, may pick the arithmetic (ARCHITECTURE.md, "Numerics").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The token came from the prompt.
    Prefill,
    /// The token was sampled, or is a draft under verification.
    Decode,
}

/// The rows of one step. Row `i` is the token `tokens[i]` of sequence `sequences[i]` at position `positions[i]`.
/// Rows of one sequence stand together, in the order of their positions, and all earlier positions are in the cache.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// (rows) token ids.
    pub tokens: Vec<u32>,
    /// (rows) absolute positions.
    pub positions: Vec<u32>,
    /// (rows) indices into `page_tables`.
    pub sequences: Vec<u32>,
    /// (rows) roles.
    pub roles: Vec<Role>,
    /// For each sequence of the step, the pages of its keys and values: position `p` lies in page
    /// `page_tables[s][p / PAGE_TOKENS]`.
    pub page_tables: Vec<Vec<u32>>,
    /// The rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// Rows in the step.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the step has no rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Where position `position` of row `row`'s sequence lies in the cache: the page and the slot in it.
    pub fn slot(&self, row: usize, position: usize) -> (u32, usize) {
        let table = &self.page_tables[self.sequences[row] as usize];
        (table[position / PAGE_TOKENS], position % PAGE_TOKENS)
    }

    /// Takes all rows out, to fill it again.
    pub fn clear(&mut self) {
        let Batch { tokens, positions, sequences, roles, page_tables, logit_rows } = self;
        for numbers in [tokens, positions, sequences, logit_rows] {
            numbers.clear();
        }
        roles.clear();
        page_tables.clear();
    }

    /// Adds `tokens` of a new sequence with this page table, the first at position `start`.
    /// Logits are wanted of the last `logits` rows.
    pub fn push(&mut self, tokens: &[u32], start: usize, pages: &[u32], role: Role, logits: usize) {
        assert!(start + tokens.len() <= pages.len() * PAGE_TOKENS, "the page table ends before the rows do");
        assert!(logits <= tokens.len(), "more logits than rows");
        let sequence = self.page_tables.len() as u32;
        self.page_tables.push(pages.to_vec());
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((start..start + tokens.len()).map(|p| p as u32));
        self.sequences.extend(tokens.iter().map(|_| sequence));
        self.roles.extend(tokens.iter().map(|_| role));
        let end = self.tokens.len();
        self.logit_rows.extend((end - logits..end).map(|r| r as u32));
    }
}
