//! `tessera audit`: it passes, and it bites.

use serde_json::Value;

use crate::support::Home;

/// Rows of the report whose variant has `part` in its name.
fn rows<'r>(report: &'r Value, part: &str) -> Vec<&'r Value> {
    let rows = report["rows"].as_array().unwrap().iter();
    rows.filter(|row| row["variant"].as_str().unwrap().contains(part)).collect()
}

#[test]
fn a_sound_machine_passes() {
    let home = Home::new();
    let report = home.run(&["audit", "--format=Q4_K", "--op=dense", "--json"]).json();
    assert_eq!(report["passed"], true);
    let widths: Vec<u64> = report["widths"].as_array().unwrap().iter().map(|w| w.as_u64().unwrap()).collect();
    for width in [0, 1, 15, 16, 17, 32, 33, 63, 64, 65, 511, 513, 1024, 1025] {
        assert!(widths.contains(&width), "{widths:?}");
    }
    for part in ["reference", "portable, 1 thread", "2 threads, split=tokens", "tile=1"] {
        let found = rows(&report, part);
        assert!(!found.is_empty(), "{part} in {report}");
        for row in found {
            assert!(row["cases"].as_u64().unwrap() > 0 && row["failed"] == 0 && row["first"].is_null(), "{row}");
            // Eight-bit activations are seen in the distance from float64, and within its bound.
            let (error, bound) = (row["worst_error"].as_f64().unwrap(), row["bound"].as_f64().unwrap());
            assert!(1e-3 < error && error < bound && bound < 0.1, "{row}");
        }
    }
    let table = home.run(&["audit", "--op=norm"]).good();
    assert!(table.contains("norm ") && table.contains("all equal to the last bit"), "{table}");
}

/// The variant that computes 32 tokens of a pass: the 33rd is the first that is wrong, in the first step that has one.
#[test]
fn a_narrowed_tile_is_caught_at_row_33() {
    let home = Home::new();
    for op in ["dense", "grouped", "routed", "combine"] {
        let args = ["audit", "--kernels=narrowed=32", "--format=Q8_0", "--op", op];
        let ran = home.run(&[&args[..], &["--json"]].concat());
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("error: the audit found something wrong"), "{ran:?}");
        let report: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(report["passed"], false);
        assert!(rows(&report, "reference").iter().all(|row| row["failed"] == 0), "{report}");
        let wrong = rows(&report, "1 thread, narrowed=32");
        assert!(!wrong.is_empty(), "{report}");
        for row in wrong {
            let first = &row["first"];
            assert_eq!((&first["width"], &first["row"], &first["rows_wrong"]), (&33.into(), &33.into(), &1.into()));
            assert_eq!((&first["element"], &first["got"]), (&1.into(), &"NaN".into()));
            assert!(first["cause"].as_str().unwrap().contains("not written"), "{first}");
        }
        let table = home.run(&args);
        assert_eq!(table.code, Some(1), "{table:?}");
        assert!(table.out.contains("FAILED") && table.out.contains("narrowed=32: wrong in"), "{}", table.out);
        if op == "dense" {
            assert!(table.out.contains("33 rows in order: not written"), "{}", table.out);
            assert!(table.out.contains("row 33, element 1: expected "), "{}", table.out);
        }
        // The same without it is right.
        home.run(&["audit", "--kernels=split=tokens", "--format=Q8_0", "--op", op]).good();
    }
}

#[test]
fn what_cannot_be_audited_is_refused() {
    let home = Home::new();
    home.run(&["audit", "--op=norm", "--format=Q8_0"]).bad(&["norm has no weights", "--format"]);
    home.run(&["audit", "--kernels=tile=99"]).bad(&["tile=99", "split=weights|tokens"]);
    assert_eq!(home.run(&["audit", "--op=nonsense"]).code, Some(2));
}
