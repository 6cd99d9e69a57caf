//! What only a card can show: every op, to the last bit. A machine without one must say so, and what to do.
//! Every width of every edge with TESSERA_SWEEP=1, or by `tessera audit`. `TESSERA_AUDIT_OP` names one op, for a card that is emulated.

use tessera_cuda::{Cache, OpenError, audit};
use tessera_ops::audit::{Op, Settings};

#[test]
fn a_card_gives_the_reference_s_bits_or_is_missed_in_words() {
    let _alone = crate::without_stand_in();
    let variants = match audit::variants(0, Cache::default()) {
        Ok(variants) => variants,
        Err(error) => {
            let is_missing = matches!(error, OpenError::NoDriver | OpenError::NoCompiler | OpenError::NoCard { .. });
            let text = error.to_string();
            assert!(is_missing && text.contains("; ") && !text.contains('\n'), "{text}");
            return;
        }
    };
    let named = std::env::var("TESSERA_AUDIT_OP").ok();
    let op = named.map(|name| Op::ALL.into_iter().find(|op| op.name() == name).expect("an op of this name"));
    let brief = std::env::var_os("TESSERA_SWEEP").is_none();
    let settings = Settings { edges: audit::all_edges(&variants), op, brief, ..Settings::default() };
    let report = tessera_ops::audit::audit(&settings, &variants, &mut |_| {});
    for (row, failure) in report.failures() {
        println!("{} {}: {} of {} cases, first {failure:?}", row.op, row.format, row.failed, row.cases);
    }
    println!("{} cases, {} rows compared", report.cases(), report.rows_compared());
    assert!(report.passed() && report.cases() > 0);
}
