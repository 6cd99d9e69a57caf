//! The highest of a row's scores, on a card or on the emulated one, from as many as are wanted and one to more than a block holds.

use tessera_cuda::measure;
use tessera_ops::latent::select_rows;

#[test]
fn the_highest_scores_are_those_of_the_definition() {
    let Some((_alone, card)) = crate::opened_card() else { return };
    let few = [(2, 1), (513, 512), (514, 3), (1025, 512), (2048, 2047)];
    let many = [(2049, 512), (16384, 512), (16385, 700), (40_000, 512)];
    for (complete, top_k) in few.into_iter().chain(many) {
        // Few values in the first row, so that many are equal, and of both signs; all kinds of numbers in the second; one in the third.
        let value = |i: usize| match (i / complete, i * 7919 % 9973) {
            (0, n) => (n / 600) as f32 - 8.0,
            (1, 0..20) => f32::NAN,
            (1, 20..60) => f32::NEG_INFINITY,
            (1, 60..100) => -0.0,
            (1, n) => (n as f32 - 5000.0) * (i as f32).exp2().min(1e30).recip().max(1e-30),
            _ => 0.25,
        };
        let scores: Vec<f32> = (0..3 * complete).map(value).collect();
        let found = measure::highest(&card, &scores, complete, top_k).unwrap();
        let mut wanted = vec![];
        for (row, found) in scores.chunks_exact(complete).zip(found.chunks_exact(top_k)) {
            select_rows(row, top_k, &mut wanted);
            assert_eq!(found, wanted, "{top_k} of {complete}");
        }
    }
}
