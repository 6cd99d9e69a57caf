//! Any text of marks and pieces of calls, cut anywhere: the same events, sound arguments, and nothing lost.

use proptest::prelude::*;
use tessera_engine::chat::FAMILIES;

use crate::support::chat::{events, parser, told};

/// Things that stand in calls, and things that spoil them.
const PIECES: [&str; 34] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\",
    "\n",
    " ",
    "name",
    "\"name\": \"now\"",
    "\"arguments\": {",
    "\"parameters\": {",
    "\"a\": ",
    "1",
    "-",
    "true",
    "Null",
    "u00e9",
    "d83d",
    "{\"name\": \"weather\", \"arguments\": {",
    "call:now{",
    "call:weather{city:",
    "thought\n",
    "analysis",
    "final",
    " to=functions.now",
    "assistant",
    "city",
    "days",
    "é",
    "words ",
    "<",
];

/// A text for the family at this place of the table.
fn soup(family: usize) -> impl Strategy<Value = String> {
    let marks = FAMILIES[family].marks.iter().map(|(_, text)| *text);
    let all: Vec<&str> = marks.clone().chain(marks.clone()).chain(marks).chain(PIECES).collect();
    prop::collection::vec(prop::sample::select(all), 0..40).prop_map(|pieces| pieces.concat())
}

fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
    let mut rest = text;
    let mut out = Vec::new();
    for cut in cuts.iter().cycle() {
        let at = rest.char_indices().nth(*cut).map_or(rest.len(), |(at, _)| at);
        out.push(rest[..at].to_owned());
        rest = &rest[at..];
        if rest.is_empty() {
            break;
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn cuts_do_not_matter(
        (family, text) in (0..FAMILIES.len()).prop_flat_map(|f| (Just(f), soup(f))),
        cuts in prop::collection::vec(1usize..12, 1..6),
    ) {
        let make = || parser(FAMILIES[family].name);
        let whole = events(make(), [text.as_str()]);
        told(&whole);
        let cut = pieces(&text, &cuts);
        prop_assert_eq!(events(make(), cut.iter().map(String::as_str)), whole);
    }

    /// Text without marks is content to the last space.
    #[test]
    fn text_without_marks_is_content(text in "[a-zA-Z0-9 \\n.,;:é{}\\[\\]\"]{0,60}", family in 0..FAMILIES.len()) {
        let bare = text.trim_start().starts_with(['{', 'c', 't']);
        prop_assume!(!bare);
        let told = told(&events(parser(FAMILIES[family].name), [text.as_str()]));
        let expect = if text.is_empty() { vec![] } else { vec![format!("say: {text}")] };
        prop_assert_eq!(told, expect);
    }
}
