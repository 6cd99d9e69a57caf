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
/// Rows of one sequence stand together, in the order of their positions (in a tree, parents before children), and all
/// earlier positions are in the cache. What a row sees, and where that is kept, says [`crate::mask`].
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
    /// The row that each row follows, none where that is the last committed token. Empty: no sequence of the step
    /// branches, and each row follows the one before it.
    pub parents: Vec<Option<u32>>,
    /// For each sequence of the step, the pages of its keys and values: position `p` lies in page
    /// `page_tables[s][p / PAGE_TOKENS]`.
    pub page_tables: Vec<Vec<u32>>,
    /// For each sequence of the step, its ring: what entries that keep the last positions alone have of it ([`crate::mask`]). No two
    /// sequences of a step have one.
    pub rings: Vec<u32>,
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

    /// Takes all rows out, to fill it again.
    pub fn clear(&mut self) {
        let Batch { tokens, positions, sequences, roles, parents, page_tables, rings, logit_rows } = self;
        parents.clear();
        for numbers in [tokens, positions, sequences, rings, logit_rows] {
            numbers.clear();
        }
        roles.clear();
        page_tables.clear();
    }

    /// Adds `tokens` of a new sequence with this page table, the first at position `start`. Its ring is its index in the step,
    /// unless [`Batch::in_ring`] says otherwise. Logits are wanted of the last `logits` rows.
    pub fn push(&mut self, tokens: &[u32], start: usize, pages: &[u32], role: Role, logits: usize) {
        assert!(start + tokens.len() <= pages.len() * PAGE_TOKENS, "the page table ends before the rows do");
        assert!(logits <= tokens.len(), "more logits than rows");
        let sequence = self.page_tables.len() as u32;
        self.page_tables.push(pages.to_vec());
        self.rings.push(sequence);
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((start..start + tokens.len()).map(|p| p as u32));
        self.sequences.extend(tokens.iter().map(|_| sequence));
        self.roles.extend(tokens.iter().map(|_| role));
        if !self.parents.is_empty() {
            let first = self.parents.len();
            self.parents.extend((first..first + tokens.len()).map(|r| (r > first).then(|| r as u32 - 1)));
        }
        let end = self.tokens.len();
        self.logit_rows.extend((end - logits..end).map(|r| r as u32));
    }

    /// The sequence that was added last has this ring.
    ///
    /// # Panics
    /// Where there is no sequence yet.
    pub fn in_ring(&mut self, ring: u32) {
        *self.rings.last_mut().expect("a sequence was added") = ring;
    }

    /// As [`Batch::push`], of drafts that branch: token `i` follows token `parents[i] < i`, or where there is none the
    /// sequence's `start` committed tokens. The page table has room for as many tokens behind these.
    ///
    /// # Panics
    /// Where a parent comes after its child.
    pub fn push_tree(
        &mut self,
        tokens: &[u32],
        parents: &[Option<u32>],
        start: usize,
        pages: &[u32],
        role: Role,
        logits: usize,
    ) {
        assert_eq!(tokens.len(), parents.len(), "each token has a parent or none");
        // Rows so far follow each other, sequence by sequence.
        for row in self.parents.len()..self.len() {
            let follows = row > 0 && self.sequences[row] == self.sequences[row - 1];
            self.parents.push(follows.then(|| row as u32 - 1));
        }
        let first = self.len();
        self.push(tokens, start, pages, role, logits);
        self.parents.truncate(first);
        for (i, parent) in parents.iter().enumerate() {
            assert!(parent.is_none_or(|p| (p as usize) < i), "a token comes after the one that it follows");
            let parent = parent.map(|p| first + p as usize);
            self.positions[first + i] = parent.map_or(start as u32, |p| self.positions[p] + 1);
            self.parents.push(parent.map(|p| p as u32));
        }
    }
}
