//! Streaming text: whole characters only, however the bytes are cut.

use proptest::prelude::*;
use tessera_engine::TextStream;

#[test]
fn characters_come_whole() {
    let mut stream = TextStream::new(false);
    let family = "👩‍👩‍👧".as_bytes();
    let given: Vec<String> = family.iter().map(|b| stream.push(&[*b])).collect();
    assert_eq!(given.concat(), "👩‍👩‍👧");
    assert!(given.iter().all(|t| t.chars().count() <= 1 && !t.contains('\u{fffd}')));
    assert_eq!(stream.finish(), "");
}

#[test]
fn a_character_cut_off_at_the_end_is_replaced_once() {
    for (bytes, expected) in [(&b"\xf0\x9f\x91"[..], "\u{fffd}"), (b"\xe2", "\u{fffd}"), (b"", "")] {
        let mut stream = TextStream::new(false);
        assert_eq!(stream.push(b"a"), "a");
        assert_eq!(stream.push(bytes), "");
        assert_eq!((stream.finish(), stream.finish()), (expected.to_owned(), String::new()));
    }
}

#[test]
fn impossible_bytes_do_not_wait() {
    let mut stream = TextStream::new(false);
    assert_eq!(stream.push(b"\xff"), "\u{fffd}");
    assert_eq!(stream.push(b"\xc0\x80"), "\u{fffd}\u{fffd}");
    // Surrogates are no characters: decided at the second byte.
    assert_eq!(stream.push(b"\xed\xa0"), "\u{fffd}\u{fffd}");
    assert_eq!(stream.push(b"\xe2"), "");
    assert_eq!(stream.push(b"ok"), "\u{fffd}ok");
}

#[test]
fn only_one_space_at_the_very_start_goes() {
    let mut stream = TextStream::new(true);
    assert_eq!(stream.push(b""), "");
    assert_eq!(stream.push(b"  a"), " a");
    assert_eq!(stream.push(b" b"), " b");
    assert_eq!(TextStream::new(false).push(b" a"), " a");
}

proptest! {
    #[test]
    fn cuts_do_not_matter(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"\xe2\x82\xac\xf0\x9f\x98\x80a"[..])], 0..40),
        cut in 1usize..6,
    ) {
        let mut stream = TextStream::new(false);
        let mut text: String = bytes.chunks(cut).map(|c| stream.push(c)).collect();
        text += &stream.finish();
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}
