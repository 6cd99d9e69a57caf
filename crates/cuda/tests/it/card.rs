//! What only a card can show: every op at every edge, to the last bit.

use tessera_cuda::{Cache, audit};
use tessera_ops::audit::Settings;

#[test]
#[ignore = "needs an NVIDIA card"]
fn a_card_gives_the_reference_s_bits() {
    let variants = audit::variants(0, Cache::default()).unwrap();
    let settings = Settings { edges: audit::all_edges(), ..Settings::default() };
    let report = tessera_ops::audit::audit(&settings, &variants, &mut |_| {});
    for (row, failure) in report.failures() {
        println!("{} {}: {} of {} cases, first {failure:?}", row.op, row.format, row.failed, row.cases);
    }
    println!("{} cases, {} rows compared", report.cases(), report.rows_compared());
    assert!(report.passed());
}
