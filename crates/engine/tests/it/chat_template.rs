//! Chat templates against Python's jinja2 (`tools/make_template_fixtures.py` recorded what it makes of them), and
//! templates that are broken or mean harm.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant, UNIX_EPOCH},
};

use serde::Deserialize;
use tessera_engine::{ChatTemplate, Message, TemplateError, TemplateOptions, Tokenizer, chat_template::BUILT_IN};
use tessera_formats::Gguf;

#[derive(Deserialize)]
struct Renderings {
    now: u64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    /// Not `serde_json::Value`, which would sort the keys.
    messages: minijinja::Value,
    variables: BTreeMap<String, serde_json::Value>,
    add_generation_prompt: bool,
    tools: Option<String>,
    text: Option<String>,
    refused: Option<String>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates")
}

fn tokenizer() -> Tokenizer {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama/model.gguf");
    Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap()
}

fn compile(source: &str) -> Result<ChatTemplate, TemplateError> {
    ChatTemplate::compile("m.gguf", source, "<s>", "</s>")
}

fn render(source: &str) -> Result<String, TemplateError> {
    compile(source)?.render(&[Message::new("user", "Hello")], &TemplateOptions::default())
}

#[test]
fn templates_render_as_in_python() {
    let recorded = fs::read(folder().join("renderings.json")).unwrap();
    let renderings: Renderings = serde_json::from_slice(&recorded).unwrap();
    assert!(renderings.cases.len() > 50);
    for case in renderings.cases {
        let what = format!("{}, {}, tools: {}", case.template, case.conversation, case.tools.is_some());
        let source = fs::read_to_string(folder().join(&case.template).with_extension("jinja")).unwrap();
        let options = TemplateOptions {
            add_generation_prompt: case.add_generation_prompt,
            tools: case.tools,
            now: UNIX_EPOCH + Duration::from_secs(renderings.now),
            variables: case.variables,
        };
        match (compile(&source).unwrap().render(&case.messages, &options), case.text, case.refused) {
            (Ok(found), Some(expect), _) => assert_eq!(found, expect, "{what}"),
            (Err(TemplateError::Refused { message, .. }), _, Some(expect)) => assert_eq!(message, expect, "{what}"),
            // What Python's types do not allow, Jinja's may; but it ends in an answer or an error.
            (_, None, None) => {}
            (found, expect, refused) => panic!("{what}: {found:?} instead of {expect:?} {refused:?}"),
        }
    }
}

#[test]
fn built_in_templates_show_a_whole_conversation() {
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "One?"),
        Message::new("assistant", "1"),
        Message::new("user", "Two?"),
    ];
    let tokenizer = tokenizer();
    for (name, _) in BUILT_IN {
        let template = ChatTemplate::built_in(name, &tokenizer).unwrap();
        let text = template.render(&messages, &TemplateOptions::default()).unwrap();
        let places = messages.each_ref().map(|m| text.find(&m.content).unwrap_or_else(|| panic!("{name}: {text}")));
        assert!(places.is_sorted(), "{name}: {text}");
        let closed = TemplateOptions { add_generation_prompt: false, ..TemplateOptions::default() };
        let shorter = template.render(&messages, &closed).unwrap();
        assert!(text.starts_with(&shorter), "{name}: {text}");
    }
    let unknown = ChatTemplate::built_in("nonsense", &tokenizer).unwrap_err().to_string();
    assert!(unknown.contains("`nonsense`") && unknown.contains("chatml"), "{unknown}");
}

#[test]
fn a_missing_or_broken_template_says_where_and_what_to_do() {
    let missing = ChatTemplate::new("m.gguf", Some(" \n"), &tokenizer()).unwrap_err().to_string();
    assert!(missing.contains("m.gguf: no chat template") && missing.contains("--template"), "{missing}");
    for (source, line) in [("{{ a }}\n{% for x in %}", 2), ("{% if %}", 1), ("{{ 'open", 1)] {
        let error = compile(source).unwrap_err().to_string();
        assert!(error.contains(&format!("broken at line {line}")) && error.contains("--template"), "{error}");
    }
    for source in ["{{ messages.nonsense() }}", "{{ undefined_function() }}", "{{ messages | nonsense }}"] {
        let error = render(source).unwrap_err().to_string();
        assert!(error.contains("m.gguf") && error.contains("broken"), "{error}");
    }
    let refused = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(matches!(&refused, TemplateError::Refused { message, .. } if message == "roles must alternate"));
}

#[test]
fn templates_cannot_run_or_write_without_end() {
    let begin = Instant::now();
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let error = render(endless).unwrap_err().to_string();
    assert!(error.contains("steps"), "{error}");
    let error = render("{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}").unwrap_err().to_string();
    assert!(error.contains("writes more than"), "{error}");
    assert!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").is_err());
    assert!(render("{% include '/etc/passwd' %}").is_err());
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

#[test]
fn tools_must_be_an_array() {
    let template = compile("{{ tools }}").unwrap();
    for tools in ["{}", "nonsense", "3"] {
        let options = TemplateOptions { tools: Some(tools.to_owned()), ..TemplateOptions::default() };
        let error = template.render(&[Message::new("user", "")], &options).unwrap_err();
        assert!(matches!(error, TemplateError::Tools(_)), "{error}");
    }
}
