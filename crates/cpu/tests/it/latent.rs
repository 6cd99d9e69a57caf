//! Compressed rows, their choice, and attention over latent rows: the audit's subjects, on every instruction set. All of them,
//! not a few of each kind, where `TESSERA_SWEEP` is set.

use tessera_cpu::audit::variants;
use tessera_ops::audit::{Op, Settings, audit};

fn audited(op: Op) {
    let sweeps = std::env::var_os("TESSERA_SWEEP").is_some();
    let settings = Settings { op: Some(op), brief: !sweeps, ..Settings::default() };
    let report = audit(&settings, &variants(false, None), &mut |_| {});
    assert!(report.cases() > 10, "{op} is audited");
    let wrong: Vec<_> = report.failures().collect();
    assert!(report.passed(), "{wrong:#?}");
}

#[test]
fn rows_are_compressed_as_the_reference_does() {
    audited(Op::Compress);
}

#[test]
fn rows_are_chosen_as_the_reference_does() {
    audited(Op::Select);
}

#[test]
fn latent_rows_are_attended_as_the_reference_does() {
    audited(Op::Latent);
}
