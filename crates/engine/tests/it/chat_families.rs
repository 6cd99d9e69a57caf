//! The table of families: sound in itself, and found by what templates and vocabularies hold.

use tessera_engine::{
    ChatFormat,
    chat::{FAMILIES, Mark, Think},
};

#[test]
fn the_table_is_sound() {
    let last = FAMILIES.last().unwrap();
    assert!(last.marks.is_empty() && !last.thinks() && !last.calls_tools(), "the last row has no marks");
    for (index, family) in FAMILIES.iter().enumerate() {
        assert!(FAMILIES[..index].iter().all(|other| other.name != family.name), "{}", family.name);
        assert!(std::ptr::eq(ChatFormat::named(family.name).unwrap(), family));
        for (mark, text) in family.marks {
            // Two marks that count at the same place must not begin alike: the first would hide the other.
            let hides = |(other, longer): &(Mark, &str)| {
                longer.starts_with(text) && longer != text && *mark != Mark::NameEnd && other != mark
            };
            assert!(!text.is_empty() && !family.marks.iter().any(hides), "{}: {text}", family.name);
        }
        let has = |mark| family.marks.iter().any(|(m, _)| *m == mark);
        assert_eq!(has(Mark::ThinkOpen), has(Mark::ThinkClose), "{}", family.name);
        assert_eq!(has(Mark::KeyOpen), has(Mark::ValueClose), "{}", family.name);
        assert!(family.calls_tools() || !has(Mark::CallOpen), "{}", family.name);
    }
    assert!(ChatFormat::named("nonsense").is_none());
}

#[test]
fn families_are_found_by_template_or_tokens() {
    let none = |_: &str| false;
    let cases = [
        ("<|start|>system<|message|>x<|end|><|channel|>final", "gpt-oss"),
        ("<|turn>user\n<turn|>", "gemma4"),
        ("<start_of_turn>user", "plain"),
        ("<think></think><tool_call>f\n<arg_key>k</arg_key>", "glm4"),
        ("<think><｜DSML｜tool_calls>", "deepseek4"),
        ("<tool_call><function=f><parameter=p>", "qwen3-coder"),
        ("<tool_call></tool_call><think></think>", "qwen3"),
        ("<tool_call></tool_call>", "hermes"),
        ("<|start_header_id|>user<|end_header_id|>x<|eot_id|>", "llama3"),
        ("<|User|>x<|Assistant|><think>", "think"),
        ("<|im_start|>user\nx<|im_end|>", "plain"),
        ("", "plain"),
    ];
    for (template, name) in cases {
        assert_eq!(ChatFormat::recognise(template, none).name, name, "{template}");
    }
    let tokens = |known: &'static [&'static str]| move |text: &str| known.contains(&text);
    let cases: [(&'static [&'static str], &str); 5] = [
        (&["<think>", "</think>", "<tool_call>", "</tool_call>"], "qwen3"),
        (&["<tool_call>", "</tool_call>"], "hermes"),
        (&["<|turn>", "<|channel>", "<think>"], "gemma4"),
        (&["<|python_tag|>", "<|eom_id|>"], "llama3"),
        (&["<s>"], "plain"),
    ];
    for (known, name) in cases {
        assert_eq!(ChatFormat::recognise("<|im_start|>", tokens(known)).name, name, "{known:?}");
    }
    // What a template says counts more.
    assert_eq!(ChatFormat::recognise("<|eot_id|><|start_header_id|>", |_| true).name, "llama3");
}

#[test]
fn thinking_is_switched_by_the_variables_of_the_template() {
    let variables = |name: &str, think: Think| {
        let all = ChatFormat::named(name).unwrap().variables(&think);
        serde_json::to_string(&all).unwrap()
    };
    assert_eq!(variables("qwen3", Think::Off), "{\"enable_thinking\":false}");
    assert_eq!(variables("gemma4", Think::On), "{\"enable_thinking\":true}");
    assert_eq!(variables("gpt-oss", Think::Off), "{\"reasoning_effort\":\"low\"}");
    assert_eq!(variables("gpt-oss", Think::Effort("medium".to_owned())), "{\"reasoning_effort\":\"medium\"}");
    assert_eq!(variables("qwen3", Think::Effort("medium".to_owned())), "{\"enable_thinking\":true}");
    assert_eq!(variables("llama3", Think::On), "{}");
}
