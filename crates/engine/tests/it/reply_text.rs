//! A reply's tokens as text, with special tokens told apart, before any stop string.

use tessera_engine::{ReplyText, SamplingError, Span, Special, Tokenizer};
use tessera_formats::Gguf;

use crate::support::{self, chat};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::open(&support::path("fixtures/qwen2/model.gguf")).unwrap()).unwrap()
}

/// The pieces of a text in which special tokens are written out, neighbouring texts joined; special ones in brackets.
fn spans(text: &str, stop: &[&str], specials: bool) -> (String, bool) {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode(text, Special::Parse, false).unwrap();
    let mut reply = ReplyText::new(stop.iter().map(|s| (*s).to_owned()).collect(), specials).unwrap();
    let mut out = String::new();
    let mut take = |span: Span<'_>| match span {
        Span::Text(text) => out += text,
        Span::Special { text, shown } => out += &format!("[{text}{}]", if shown { "" } else { "!" }),
    };
    for id in ids {
        reply.push(&tokenizer, id, &mut take);
    }
    reply.finish(&mut take);
    let stopped = reply.stopped();
    (out, stopped)
}

#[test]
fn special_tokens_keep_their_place() {
    let text = "one <|im_start|>two é<|im_start|><|im_start|>";
    let cases: [(&[&str], bool, &str, bool); 8] = [
        (&[], false, "one two é", false),
        (&[], true, "one [<|im_start|>!]two é[<|im_start|>!][<|im_start|>!]", false),
        // Held back beside, before and inside a special token, and let go.
        (
            &["two x", "one <|im_start|>x", "é<|im_start|>x"],
            true,
            "one [<|im_start|>!]two é[<|im_start|>!][<|im_start|>!]",
            false,
        ),
        (&["<|im_start|>x", "start|><|im_end"], true, "one [<|im_start|>!]two é[<|im_start|>!][<|im_start|>!]", false),
        // Stopped before, inside and behind one.
        (&["ne "], true, "o", true),
        (&["<|im_start|>two"], true, "one ", true),
        (&["start|>t"], true, "one <|im_", true),
        (&["é"], true, "one [<|im_start|>!]two ", true),
    ];
    for (stop, specials, expect, stopped) in cases {
        assert_eq!(spans(text, stop, specials), (expect.to_owned(), stopped), "{stop:?}, {specials}");
    }
    assert_eq!(ReplyText::new(vec![String::new()], true).unwrap_err(), SamplingError::EmptyStopString);
}

/// Special tokens go through a text and come out as such; a text without any is itself.
#[test]
fn marked_text_can_be_split_again() {
    let special = |text, shown| Span::Special { text, shown };
    let cases = [
        vec![Span::Text("only text")],
        vec![special("<a>", true), Span::Text("b"), special("<c>", false), special("<d>", false)],
        vec![Span::Text("é\u{fdd4}"), special("<a>", false)],
        vec![],
    ];
    for spans in cases {
        let (mut text, mut found) = (String::new(), Vec::new());
        spans.iter().for_each(|span| span.write(&mut text));
        let mut rest = text.as_str();
        while let Some((span, after)) = Span::split(rest) {
            found.push(span);
            rest = after;
        }
        assert_eq!(found, spans, "{text:?}");
    }
    // Half a mark is text.
    assert_eq!(Span::split("\u{fdd2}<a"), Some((Span::Text("\u{fdd2}<a"), "")));
}

#[test]
fn a_parser_reads_marked_text() {
    let mut parser = chat::parser("qwen3").with_specials(|text| text == "<think>");
    let (mut text, mut events) = (String::new(), Vec::new());
    let marked = |text, shown| Span::Special { text, shown };
    // `<think>` counts as a token only; what the family does not know is shown or not.
    for span in
        [Span::Text("<think>"), marked("<b>", true), marked("<c>", false), marked("<think>", true), Span::Text("Hm.")]
    {
        span.write(&mut text);
    }
    parser.read(&text, &mut events);
    parser.finish(&mut events);
    assert_eq!(chat::told(&events), ["say: <think><b>", "think: Hm."]);
}
