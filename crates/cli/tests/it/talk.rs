//! Thinking and tools in `run` and `chat`, on tiny random models whose templates begin the thoughts.

use crate::support::{Home, Parts};

/// Thinks if asked to: then all that this model says are thoughts, as it never ends them.
const TEMPLATE: &str = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}\
                        {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        <|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}";

fn model(home: &Home, template: &str) -> String {
    Parts::of("qwen2").set("tokenizer.chat_template", template).write(home, "talk")
}

#[test]
fn thoughts_are_left_out_unless_asked_for() {
    let home = Home::new();
    let model = model(&home, TEMPLATE);
    let run = |flags: &[&str]| home.run(&[&["run", &model, "Hi", "-t", "0", "-n", "8"], flags].concat());
    let plain = run(&["--json"]).json();
    assert!(!plain["text"].as_str().unwrap().is_empty() && plain.get("reasoning").is_none(), "{plain}");
    assert_eq!(run(&["--no-think", "--json"]).json()["text"], plain["text"]);
    let thought = run(&["--think", "--json"]).json();
    let thoughts = thought["reasoning"].as_str().unwrap();
    assert!(thought["text"] == "" && !thoughts.is_empty(), "{thought}");
    assert!(thought["prompt_tokens"].as_u64() > plain["prompt_tokens"].as_u64());
    assert_eq!(run(&["--think"]).good(), "\n");
    assert_eq!(run(&["--think", "--show-thinking"]).good(), format!("{thoughts}\n"));
    // Another way of writing has no such mark.
    let other = run(&["--think", "--chat-format", "plain", "--json"]).json();
    assert!(other.get("reasoning").is_none(), "{other}");
    assert_eq!(run(&["--think", "--no-think"]).code, Some(2));
    assert_eq!(run(&["--raw", "--think"]).code, Some(2));
}

#[test]
fn a_conversation_keeps_the_thoughts() {
    let home = Home::new();
    let model = model(&home, TEMPLATE);
    home.run_with(&["chat", &model, "-t", "0", "-n", "8", "--think"], "Hi\n/save talk.json\n").good();
    let saved = std::fs::read_to_string(home.path().join("talk.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    assert!(saved[1]["content"] == "" && saved[1]["reasoning_content"].is_string(), "{saved}");
}

#[test]
fn what_cannot_be_switched_is_said() {
    let home = Home::new();
    let template = TEMPLATE.replace("{% if enable_thinking %}<think>\n{% endif %}", "").replace("tools or []", "[]");
    let model = model(&home, &template);
    let tools = home.file("tools.json", br#"[{"type": "function", "function": {"name": "f"}}]"#);
    let flags = ["--think", "--tools", tools.to_str().unwrap(), "-n", "1"];
    let ran = home.run(&[&["run", &model, "Hi"], &flags[..]].concat());
    assert!(ran.code == Some(0) && ran.err.contains("no switch") && ran.err.contains("knows no tools"), "{ran:?}");
}

#[test]
fn tools_come_from_a_file() {
    let home = Home::new();
    let model = model(&home, TEMPLATE);
    let run = |file: &str| home.run(&["run", &model, "Hi", "-t", "0", "-n", "4", "--json", "--tools", file]);
    let plain = home.run(&["run", &model, "Hi", "-t", "0", "-n", "4", "--json"]).json();
    home.file("tools.json", br#"[{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]"#);
    let with = run("tools.json").json();
    assert!(with["prompt_tokens"].as_u64() > plain["prompt_tokens"].as_u64(), "{with} {plain}");
    home.file("wrong.json", b"{}");
    run("wrong.json").bad(&["tools"]);
    home.file("nameless.json", b"[{}]");
    run("nameless.json").bad(&["tool 0 has no name"]);
    run("missing.json").bad(&["missing.json"]);
}
