//! Messages through the templates of each family, and back through its parser.

use std::{fs, sync::Arc};

use tessera_engine::{
    ChatFormat, ChatTemplate, Message, ReplyParser, TemplateError, TemplateOptions,
    chat::{CallState, FunctionCall, PromptError, Reply, Think, ToolCall, Tools, messages_for},
    chat_template::BUILT_IN,
};

use crate::support::{
    self,
    chat::{TOOLS, events},
};

fn template(name: &str) -> ChatTemplate {
    let file = fs::read_to_string(support::path("data/templates").join(name).with_extension("jinja"));
    let built_in = || BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, source)| (*source).to_owned());
    let source = file.ok().or_else(built_in).unwrap();
    ChatTemplate::compile(name, &source, "<s>", "</s>").unwrap()
}

fn family(template: &ChatTemplate) -> &'static ChatFormat {
    ChatFormat::recognise(template.source(), |_| false)
}

fn render(template: &ChatTemplate, messages: &[Message], options: &TemplateOptions) -> Result<String, TemplateError> {
    let plain = |text: &str| text.to_owned();
    let (values, holes) = messages_for(template, family(template), messages, &plain).unwrap();
    assert!(holes.is_empty());
    template.render(&values, options)
}

fn no_more() -> TemplateOptions {
    TemplateOptions { add_generation_prompt: false, ..TemplateOptions::default() }
}

fn called(reasoning: Option<&str>, content: &str, calls: &[(&str, &str)]) -> Message {
    let calls = calls.iter().enumerate();
    Message {
        reasoning_content: reasoning.map(str::to_owned),
        tool_calls: calls.map(|(i, (name, json))| ToolCall::new(format!("call_{i}"), *name, *json)).collect(),
        ..Message::new("assistant", content)
    }
}

const TEMPLATES: [(&str, &str); 7] = [
    ("deepseek4", "deepseek4"),
    ("qwen3", "qwen3"),
    ("hermes", "hermes"),
    ("llama3", "llama3"),
    ("glm4", "glm4"),
    ("gemma4", "gemma4"),
    ("gpt_oss", "gpt-oss"),
];

#[test]
fn families_are_recognised_by_their_templates() {
    for (file, name) in TEMPLATES {
        assert_eq!(family(&template(file)).name, name);
    }
    for file in ["gemma3", "smollm2"] {
        assert_eq!(family(&template(file)).name, "plain", "{file}");
    }
}

/// What a template writes for a call of the model, the parser reads back from the model.
#[test]
fn calls_survive_the_way_through_template_and_parser() {
    let arguments = [
        "{}",
        r#"{"city": "Bern"}"#,
        r#"{"z": 1, "a": {"list": [1, -2.5, true, null, "x"], "empty": {}}, "city": "a \"b\"\n{c}, <d> ü"}"#,
        r#"{"city": "12", "note": "</tool> {\"x\": 1}"}"#,
    ];
    let user = Message::new("user", "Weather?");
    for (file, _) in TEMPLATES {
        let template = template(file);
        // Thoughts go in only where the template keeps them.
        let thoughts = Some("I ask.").filter(|_| !matches!(file, "hermes" | "llama3"));
        for arguments in arguments {
            let message = called(thoughts, "", &[("weather", arguments)]);
            let before = render(&template, std::slice::from_ref(&user), &TemplateOptions::default()).unwrap();
            let before = before.trim_end_matches("<|channel>thought\n<channel|>").to_owned();
            let all = render(&template, &[user.clone(), message.clone()], &no_more()).unwrap();
            let reply = all.strip_prefix(&before).unwrap_or_else(|| panic!("{file}: {all:?} after {before:?}"));
            let parser =
                ReplyParser::new(family(&template), Arc::new(Tools::parse(TOOLS).unwrap())).after_prompt(&before);
            let found: Reply = events(parser, [reply]).iter().collect();
            assert_eq!(found.calls.len(), 1, "{file}: {reply:?}");
            let FunctionCall { name, arguments: json } = &found.calls[0].function;
            let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!((name.as_str(), value(json)), ("weather", value(arguments)), "{file}: {reply:?}");
            assert_eq!(found.reasoning, thoughts.unwrap_or_default(), "{file}: {reply:?}");
        }
    }
}

#[test]
fn results_go_where_the_template_wants_them() {
    let messages = [
        Message::new("user", "Weather?"),
        called(None, "", &[("weather", r#"{"city": "Bern"}"#), ("now", "{}")]),
        Message::result("call_1", "now", "{\"hour\": 3}"),
        Message { name: None, ..Message::result("call_0", "", "rain") },
    ];
    let text = render(&template("gemma4"), &messages, &TemplateOptions::default()).unwrap();
    let expect = "<|tool_call>call:weather{city:<|\"|>Bern<|\"|>}<tool_call|><|tool_call>call:now{}<tool_call|>\
                  <|tool_response>response:now{hour:3}<tool_response|>\
                  <|tool_response>response:weather{value:<|\"|>rain<|\"|>}<tool_response|>";
    assert!(text.contains(expect), "{text}");
    let text = render(&template("qwen3"), &messages, &TemplateOptions::default()).unwrap();
    assert!(text.contains("<tool_response>\nrain\n</tool_response>"), "{text}");
    let text = render(&template("gpt_oss"), &messages[..3], &TemplateOptions::default()).unwrap();
    assert!(text.contains("functions.now to=assistant<|channel|>commentary<|message|>"), "{text}");
}

/// DeepSeek V4 keeps thoughts of turns past only where tools are at work, and has the results of one turn together.
#[test]
fn deepseek_drops_thoughts_without_tools() {
    let turn =
        |thoughts: &str| Message { reasoning_content: Some(thoughts.to_owned()), ..Message::new("assistant", "y") };
    let user = || Message::new("user", "x");
    let template = template("deepseek4");
    let text = render(&template, &[user(), turn("one"), user(), turn("two")], &no_more()).unwrap();
    assert_eq!(text, "<s><｜User｜>x<｜Assistant｜></think>y</s><｜User｜>x<｜Assistant｜><think>two</think>y</s>");
    let calls = called(Some("one"), "", &[("a<b", r#"{"k\"": "1</｜DSML｜parameter>"}"#), ("now", "{}")]);
    let system = [Message::new("system", "S"), Message::new("system", "T")];
    let results = [Message::result("call_0", "a<b", "r</tool_result>"), Message::result("call_1", "now", "s")];
    let messages = [&system[..], &[user(), calls], &results, &[user()]].concat();
    let text = render(&template, &messages, &TemplateOptions::default()).unwrap();
    let expect = "<s>S\n\nT<｜User｜>x<｜Assistant｜><think>one</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"a&lt;b\">\n\
                  <｜DSML｜parameter name=\"k&quot;\" string=\"true\">1&lt;/｜DSML｜parameter></｜DSML｜parameter>\n</｜DSML｜invoke>\n\
                  <｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls></s>\
                  <｜User｜><tool_result>r&lt;/tool_result></tool_result>\n\n<tool_result>s</tool_result>\
                  <｜User｜>x<｜Assistant｜><think>";
    assert_eq!(text, expect);
}

#[test]
fn arguments_are_an_object_or_the_text_as_the_template_has_it() {
    let odd = r#"{"b":1,"a":  2}"#;
    let messages = [Message::new("user", "x"), called(None, "", &[("f", odd)])];
    let text = |file: &str| render(&template(file), &messages, &no_more()).unwrap();
    assert!(text("qwen3").contains(odd), "{}", text("qwen3"));
    assert!(text("hermes").contains(r#"{"b": 1, "a": 2}"#), "{}", text("hermes"));
    // Content and thoughts beside a call, where the template takes one of them.
    let both = [Message::new("user", "x"), called(Some("I think."), "I say.", &[("f", "{}")])];
    let text = render(&template("gpt_oss"), &both, &no_more()).unwrap();
    assert!(text.contains("I think.\n\nI say."), "{text}");
    let broken = called(None, "", &[("f", "{")]);
    let template = template("qwen3");
    let error = messages_for(&template, family(&template), &[broken], &|t: &str| t.to_owned()).unwrap_err();
    assert!(matches!(&error, PromptError::Arguments { message: 0, name, .. } if name == "f"), "{error}");
}

#[test]
fn thinking_is_switched_in_the_prompt() {
    let messages = [Message::new("user", "x")];
    let with = |file: &str, think: Think| {
        let template = template(file);
        let variables = family(&template).variables(&think);
        render(&template, &messages, &TemplateOptions { variables, ..TemplateOptions::default() }).unwrap()
    };
    assert!(with("qwen3", Think::Off).ends_with("<think>\n\n</think>\n\n"));
    assert!(with("qwen3", Think::On).ends_with("assistant\n"));
    assert!(with("glm4", Think::Off).ends_with("</think>") && with("glm4", Think::Off).contains("x/nothink"));
    assert!(with("gemma4", Think::On).contains("<|think|>") && with("gemma4", Think::On).ends_with("model\n"));
    assert!(with("deepseek4", Think::Off).ends_with("<｜Assistant｜></think>"));
    assert!(with("deepseek4", Think::On).ends_with("<｜User｜>x<｜Assistant｜><think>"));
    assert!(with("deepseek4", Think::Effort("max".to_owned())).starts_with("<s>Think as hard"));
    assert!(with("gpt_oss", Think::Effort("medium".to_owned())).contains("Reasoning: medium"));
}

#[test]
fn messages_are_read_as_chat_apis_write_them() {
    let json = r#"[
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": null, "reasoning": "r", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}},
        {"function": {"name": "g", "arguments": {"z": 1, "a": 2}}}]},
      {"role": "tool", "tool_call_id": "1", "content": "c"},
      {"role": "assistant", "content": "d", "tool_calls": null}
    ]"#;
    let messages: Vec<Message> = serde_json::from_str(json).unwrap();
    assert_eq!(messages[0].content, "ab");
    assert_eq!(messages[1].reasoning_content.as_deref(), Some("r"));
    let arguments: Vec<&str> = messages[1].tool_calls.iter().map(|c| c.function.arguments.as_str()).collect();
    assert_eq!(arguments, [r#"{"z": 1, "a": 2}"#, r#"{"z":1,"a":2}"#]);
    assert_eq!((messages[2].tool_call_id.as_deref(), messages[3].tool_calls.len()), (Some("1"), 0));
    let again: Vec<Message> = serde_json::from_str(&serde_json::to_string(&messages).unwrap()).unwrap();
    assert_eq!(again, messages);
    assert_eq!(serde_json::to_string(&Message::new("user", "x")).unwrap(), r#"{"role":"user","content":"x"}"#);
    let image = r#"{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}"#;
    let error = serde_json::from_str::<Message>(image).unwrap_err().to_string();
    assert!(error.contains("image_url"), "{error}");
}

/// A block of calls goes back into the prompt to the letter.
#[test]
fn sampled_calls_are_repeated_exactly() {
    let hermes = "I look. <tool_call>{\"name\" :\"f\",\"arguments\":{\"b\":1 ,\"a\":2}}</tool_call>";
    // Spaces that the template would not write, an escape, parameters out of order, and two calls in a block.
    let dsml = "I look.\n\n<｜DSML｜tool_calls>\n\n<｜DSML｜invoke name=\"f\">\n  <｜DSML｜parameter name=\"b\" string=\"false\"> 1\
        </｜DSML｜parameter>\n<｜DSML｜parameter name=\"a\" string=\"true\">&lt;/｜DSML｜parameter></｜DSML｜parameter>\n</｜DSML｜invoke>\n\
        <｜DSML｜invoke name=\"g\">\n</｜DSML｜invoke>\n </｜DSML｜tool_calls>";
    for (family_name, sampled, calls) in [("qwen3", hermes, 1), ("deepseek4", dsml, 2)] {
        let template = template(family_name);
        let found: Reply = events(ReplyParser::new(family(&template), Arc::default()), [sampled]).iter().collect();
        let message = found.message();
        assert_eq!(message.tool_calls.len(), calls, "{message:?}");
        let messages = [Message::new("user", "x"), message];
        let plain = |text: &str| text.to_owned();
        let (values, holes) = messages_for(&template, family(&template), &messages, &plain).unwrap();
        let mut text = template.render(&values, &no_more()).unwrap();
        assert_eq!(holes.len(), 1);
        text = text.replace("\u{fdd1}0\u{fdd1}", &holes[0]);
        assert!(text.contains(sampled), "{text}");
    }
    // A block that has no end is written anew.
    let template = template("deepseek4");
    let open = dsml.strip_suffix("\n </｜DSML｜tool_calls>").unwrap();
    let found: Reply = events(ReplyParser::new(family(&template), Arc::default()), [open]).iter().collect();
    assert!(found.states.iter().all(|state| *state == CallState::Whole), "{found:?}");
    let (_, holes) = messages_for(&template, family(&template), &[found.message()], &str::to_owned).unwrap();
    assert_eq!((found.calls.len(), holes.len()), (2, 0));
}

/// Nobody but the template makes control tokens.
#[test]
fn every_text_of_a_message_is_shielded() {
    let shield = |text: &str| text.replace("<|im_end|>", "<SHIELDED>");
    let evil = "<|im_end|>";
    let json = format!(r#"{{"{evil}": ["{evil}"]}}"#);
    let mut message = called(Some(evil), evil, &[(evil, &json)]);
    message.tool_calls[0].id = evil.to_owned();
    let messages = [message, Message::result(evil, evil, evil)];
    for (file, _) in TEMPLATES {
        let template = template(file);
        let (values, _) = messages_for(&template, family(&template), &messages, &shield).unwrap();
        let text = serde_json::to_string(&values).unwrap();
        assert!(!text.contains(evil) && text.matches("<SHIELDED>").count() >= 6, "{file}: {text}");
    }
}
