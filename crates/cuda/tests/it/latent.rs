//! Attention of decoded rows over latent rows, in steps of every number of rows at which a card takes another tile, and over more pages
//! than a launch has blocks for: on a card, or on the emulated one.

use tessera_cuda::measure::latent_rows::LatentSubject;
use tessera_ops::Role;

#[test]
fn decoded_rows_are_near_float64_and_the_same_alone_in_every_tile() {
    let Some((card, _alone)) = crate::opened_card() else { return };
    // More heads than the narrowest tile has; a page of tokens, a few, one for each block, and more than all have at once.
    let subject = LatentSubject::new(&card, 9, 128).unwrap();
    for (window, rows) in [(1, 1), (70, 2), (450, 1), (1000, 2), (600, 4), (600, 8), (130, 11)] {
        let m = subject.compare(window, rows, Role::Decode).unwrap();
        assert!(m.error < 1e-3 && m.rows_differ == 0, "{window} tokens, {rows} rows: {m:?}");
    }
}
