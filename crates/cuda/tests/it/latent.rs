//! Attention of decoded rows over latent rows, in steps of every number of rows at which a card takes another tile, and over more pages
//! than a launch has blocks for: on a card, or on the emulated one.

use tessera_cuda::measure::{choice::ChoiceSubject, latent_rows::LatentSubject};
use tessera_ops::Role;

#[test]
fn decoded_rows_are_near_float64_and_the_same_alone_in_every_tile() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    // More heads than the narrowest tile has; a page of tokens, a few, one for each block, and more than all have at once.
    let subject = LatentSubject::new(&card, 9, 128).unwrap();
    for (window, rows) in [(1, 1), (70, 2), (450, 1), (1000, 2), (600, 4), (600, 8), (130, 11)] {
        let m = subject.compare(window, rows, Role::Decode).unwrap();
        assert!(m.error < 1e-3 && m.rows_differ == 0, "{window} tokens, {rows} rows: {m:?}");
    }
}

#[test]
fn what_an_indexer_chooses_is_the_definition_s_in_every_tile() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    // Heads that fill no tile of them, and more; so many keys that some blocks of few have some, and all.
    for (heads, head_dim, top_k, tokens, rows) in [(5, 32, 20, 140, 3), (64, 128, 9, 260, 2), (65, 64, 60, 300, 1)] {
        let subject = ChoiceSubject::new(&card, (heads, head_dim), top_k, tokens).unwrap();
        let m = subject.compare(rows).unwrap();
        assert_eq!(m.rows_differ, 0, "{heads} heads of {head_dim}");
    }
}
