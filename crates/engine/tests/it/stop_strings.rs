//! Stop strings, across every cut of the text.

use proptest::prelude::*;
use tessera_engine::{SamplingError, StopStrings};

/// What is given for a text in pieces, and whether it was stopped.
fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
    let mut watch = StopStrings::new(stops.iter().map(|s| (*s).to_owned()).collect()).unwrap();
    let mut out: String = pieces.iter().map(|p| watch.push(p)).collect();
    out += &watch.finish();
    (out, watch.stopped())
}

#[test]
fn a_stop_string_across_pieces_is_never_shown() {
    let cases: [(&[&str], &[&str], &str, bool); 8] = [
        (&["END"], &["one E", "N", "D two"], "one ", true),
        (&["END"], &["one E", "N", "X two"], "one ENX two", false),
        (&["aab"], &["aaa", "ab", "c"], "aa", true),
        (&["\n\nUser:"], &["hi\n", "\nUs", "er", ": x"], "hi", true),
        (&["\n\nUser:"], &["hi\n", "\nUs"], "hi\n\nUs", false),
        (&["xyz", "yz"], &["wxy", "z"], "w", true),
        (&["é"], &["caf", "é!"], "caf", true),
        (&[], &["anything"], "anything", false),
    ];
    for (stops, pieces, expected, stopped) in cases {
        assert_eq!(run(stops, pieces), (expected.to_owned(), stopped), "{stops:?} in {pieces:?}");
    }
}

#[test]
fn what_is_decided_is_given_at_once() {
    let mut watch = StopStrings::new(vec!["STOP".to_owned()]).unwrap();
    assert_eq!(watch.push("go on"), "go on");
    assert_eq!(watch.push(" ST"), " ");
    assert_eq!(watch.push("ART ST"), "START ");
    assert_eq!(watch.push("OP and more"), "");
    assert!(watch.stopped());
    assert_eq!(watch.push("more"), "");
}

#[test]
fn an_empty_stop_string_is_refused() {
    assert_eq!(StopStrings::new(vec![String::new()]).unwrap_err(), SamplingError::EmptyStopString);
}

proptest! {
    #[test]
    fn cuts_do_not_matter(text in "[ab]{0,30}", stops in prop::collection::vec("[ab]{1,4}", 1..3), cut in 1usize..5) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let pieces: Vec<&str> = text.as_bytes().chunks(cut).map(|c| std::str::from_utf8(c).unwrap()).collect();
        // The plain way: the first stop string that is complete ends the text; of those complete together, the one
        // that begins first.
        let ends = |n: &usize| stops.iter().any(|s| text[..*n].ends_with(s));
        let expected = match (0..=text.len()).find(ends) {
            Some(end) if cut == 1 => {
                let start = stops.iter().filter_map(|s| text[..end].find(s)).min().unwrap();
                (text[..start].to_owned(), true)
            }
            Some(_) => {
                let (out, stopped) = run(&stops, &pieces);
                prop_assert!(stopped && text.starts_with(&out) && stops.iter().all(|s| !out.contains(s)));
                return Ok(());
            }
            None => (text.clone(), false),
        };
        prop_assert_eq!(run(&stops, &pieces), expected);
    }
}
