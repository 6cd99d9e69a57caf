//! `tokenize`: ids and pieces of hostile texts.

use crate::support::{Home, fixture};

#[test]
fn pieces_put_together_are_the_text() {
    let home = Home::new();
    let texts = [
        "Hello world".to_owned(),
        " leading, and\r\ntwo\tlines ".to_owned(),
        "👩‍👩‍👧‍👦 نص 你好 naïve".to_owned(),
        "<|im_start|> is text here".to_owned(),
        " ".repeat(10_000),
    ];
    for model in ["llama", "qwen2", "qwen3"] {
        let path = fixture(model);
        for text in &texts {
            let object = home.run_with(&["tokenize", path.to_str().unwrap(), "--json"], text).json();
            let tokens = object["tokens"].as_array().unwrap();
            assert_eq!(object["count"], tokens.len());
            assert!(tokens.iter().all(|t| t["special"] == false), "{model} {text:?}: {object}");
            if text.is_ascii() {
                let pieces: String = tokens.iter().map(|t| t["piece"].as_str().unwrap()).collect();
                assert_eq!(&pieces, text, "{model}");
            }
            let ids: Vec<_> = tokens.iter().map(|t| t["id"].clone()).collect();
            assert_eq!(object["ids"], serde_json::Value::Array(ids));
        }
    }
}

#[test]
fn special_tokens_are_taken_where_asked() {
    let home = Home::new();
    let path = fixture("qwen2");
    let model = path.to_str().unwrap();
    let special = home.run(&["tokenize", model, "<|im_end|>", "--special", "--json"]).json();
    assert_eq!(special["tokens"][special["count"].as_u64().unwrap() as usize - 1]["id"], 2);
    let plain = home.run(&["tokenize", model, "<|im_end|>", "--json"]).json();
    assert!(plain["count"].as_u64().unwrap() > 3, "{plain}");
    let lines = home.run(&["tokenize", model, "a b"]).good();
    assert!(lines.lines().all(|line| line.trim_start().split("  ").count() == 2), "{lines}");
    assert_eq!(home.run(&["tokenize", model, "", "--json"]).json()["count"], 0);
}

#[cfg(unix)]
#[test]
fn bytes_that_are_no_text_are_tokens_too() {
    use std::{io::Write, process::Stdio};
    let home = Home::new();
    let path = fixture("llama");
    let mut command = home.command(&["tokenize", path.to_str().unwrap(), "--json"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a\xff\xfe\x80z").unwrap();
    let object = crate::support::Ran::of(child.wait_with_output().unwrap()).json();
    assert!(object["count"].as_u64().unwrap() >= 4, "{object}");
}
