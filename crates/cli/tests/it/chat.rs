//! `chat` where stdin is no terminal: a turn a line, commands, and signals.

use crate::support::{Home, Parts};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        <|im_start|>assistant\n";

fn model(home: &Home) -> String {
    Parts::of("qwen3").set("tokenizer.chat_template", TEMPLATE).write(home, "chat")
}

#[test]
fn turns_are_remembered_cleared_and_saved() {
    let home = Home::new();
    let model = model(&home);
    let chat = |input: &str| home.run_with(&["chat", &model, "-t", "0", "-n", "8", "--system", "S"], input);
    let alone = chat("Hi\n").good();
    assert!(alone.ends_with('\n'));
    let both = chat("Hi\nAnd now?\n").good();
    assert!(both.starts_with(&alone) && both.len() > alone.len(), "{both:?}");
    // After /clear the first answer comes again.
    assert_eq!(chat("Hi\n/clear\nHi\n").good(), alone.repeat(2));
    assert_eq!(chat("Hi\n/exit\nnot read\n").good(), alone);
    chat("Hi\n/save talk.json\n").good();
    let saved = std::fs::read_to_string(home.path().join("talk.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    let roles: Vec<_> = saved.as_array().unwrap().iter().map(|turn| turn["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(saved[2]["content"].as_str().unwrap(), alone.trim_end_matches('\n'));
    assert_eq!(saved[0]["content"], "S");
}

#[test]
fn commands_are_answered_on_stderr() {
    let home = Home::new();
    let model = model(&home);
    let ran = home.run_with(&["chat", &model], "/help\n/nonsense\n/save /none/x.json\n\n");
    assert!(ran.err.contains("/clear") && ran.err.contains("no command /nonsense"), "{ran:?}");
    assert!(ran.err.contains("cannot write /none/x.json"), "{ran:?}");
    assert_eq!(ran.good(), "");
}

#[test]
fn a_model_without_a_template_says_so() {
    let home = Home::new();
    let model = Parts::of("llama").write(&home, "plain");
    home.run_with(&["chat", &model], "Hi\n").bad(&["template"]);
}

#[test]
fn a_full_context_ends_the_conversation() {
    let home = Home::new();
    let model = model(&home);
    let ran = home.run_with(&["chat", &model, "--context", "64"], &"word ".repeat(100));
    ran.bad(&["64"]);
}

/// Ctrl-C stops the reply; the next line is answered.
#[cfg(unix)]
#[test]
fn an_interrupt_stops_the_reply_only() {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        process::Stdio,
    };
    let home = Home::new();
    // A model that never ends by itself: no token ends a reply.
    let model = model(&home);
    let flags = ["--logit-bias", "0=-inf", "--logit-bias", "1=-inf", "--logit-bias", "2=-inf", "-n", "1900", "-t", "0"];
    let mut command = home.command(&[&["chat", &model], &flags[..]].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(b"Hi\n").unwrap();
    assert!(!out.fill_buf().unwrap().is_empty(), "the reply has begun");
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    // It goes on to the next line, which leaves.
    stdin.write_all(b"/help\n/exit\n").unwrap();
    drop(stdin);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(err.contains("/clear"), "the help was printed after the interrupt: {err}");
}
