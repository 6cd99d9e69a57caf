//! What the parser makes of replies of every family, good and bad, at every cut.

use tessera_engine::{
    ChatEvent, ReplyParser,
    chat::{LostCall, Rest, Tools},
};

use crate::support::chat::{events, format, joined, parser, told, tools};

/// A family, a reply, and what it tells.
type Case = (&'static str, &'static str, &'static [&'static str]);

/// Reads a reply whole, by characters, and in two pieces at each place.
#[track_caller]
fn check(make: impl Fn() -> ReplyParser, text: &str, expect: &[&str]) {
    let whole = events(make(), [text]);
    assert_eq!(told(&whole), expect, "{text:?}");
    let characters: Vec<&str> = text.split_inclusive(|_: char| true).collect();
    assert_eq!(events(make(), characters), whole, "by characters: {text:?}");
    for (at, _) in text.char_indices() {
        assert_eq!(events(make(), [&text[..at], &text[at..]]), whole, "cut at {at}: {text:?}");
    }
}

#[track_caller]
fn check_all(cases: &[Case]) {
    for (name, text, expect) in cases {
        check(|| parser(name), text, expect);
    }
}

const WELL_FORMED: &[Case] = &[
    ("plain", "Hello <think> {\"name\": 1}\n\n", &["say: Hello <think> {\"name\": 1}\n\n"]),
    ("think", "<think>\nWell.\n\nHm.\n</think>\n\nYes.", &["think: Well.\n\nHm.", "say: Yes."]),
    ("think", "Yes, 1 < 2.\n", &["say: Yes, 1 < 2.\n"]),
    ("qwen3", "<think>\n\n</think>\n\nYes.", &["say: Yes."]),
    (
        "qwen3",
        "<think>\nI ask.\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>",
        &["think: I ask.", "say: Let me see.", "call weather: {\"city\":\"Bern\"}"],
    ),
    (
        "hermes",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"arguments\": {\"a\": [1, {\"b\": null}]}, \"name\": \"f\"}\n</tool_call>",
        &["call now: {}", "call f: {\"a\":[1,{\"b\":null}]}"],
    ),
    // Several in one block; arguments in a text, null, or not at all; another key in between.
    (
        "hermes",
        "<tool_call>{\"name\":\"a\",\"arguments\":\"{\\\"x\\\": 1}\"}\n{\"name\":\"b\",\"arguments\":null},{\"id\":[7],\"name\":\"c\"}</tool_call>",
        &["call a: {\"x\":1}", "call b: {}", "call c: {}"],
    ),
    // Marks inside the texts of a call are text.
    (
        "hermes",
        "<tool_call>{\"name\":\"a\",\"arguments\":{\"x\":\"</tool_call> <tool_call>\"}}</tool_call>",
        &["call a: {\"x\":\"</tool_call> <tool_call>\"}"],
    ),
    ("llama3", "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bern\"}}", &["call weather: {\"city\":\"Bern\"}"]),
    (
        "llama3",
        "<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; {\"name\": \"now\", \"parameters\": {}}",
        &["call f: {}", "call now: {}"],
    ),
    (
        "llama3",
        "Say {\"name\": \"weather\", \"parameters\": {}}",
        &["say: Say {\"name\": \"weather\", \"parameters\": {}}"],
    ),
    ("llama3", "{\"name\": \"nobody\", \"parameters\": {}}", &["say: {\"name\": \"nobody\", \"parameters\": {}}"]),
    ("llama3", "{\"a\": 1}\n", &["say: {\"a\": 1}\n"]),
    (
        "glm4",
        "\n<think>Hm.</think>\nI look.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n<arg_key>days</arg_key>\n<arg_value>12</arg_value>\n</tool_call>",
        &["think: Hm.", "say: I look.", "call weather: {\"city\":\"12\",\"days\":12}"],
    ),
    (
        "glm4",
        "<tool_call>now</tool_call><tool_call>f<arg_key>k</arg_key><arg_value>{\"a\": 1}</arg_value></tool_call>",
        &["call now: {}", "call f: {\"k\":{\"a\":1}}"],
    ),
    // A type that a reference leads to; one in a circle is any.
    (
        "glm4",
        "<tool_call>weather\n<arg_key>scale</arg_key>\n<arg_value>1</arg_value>\n<arg_key>circle</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
        &["call weather: {\"scale\":\"1\",\"circle\":1}"],
    ),
    (
        "qwen3-coder",
        "I look.\n<tool_call>\n<function=weather>\n<parameter=city>\n\nBern\n> 1\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n</function>\n</tool_call>",
        &["say: I look.", "call weather: {\"city\":\"\\nBern\\n> 1\",\"exact\":true}"],
    ),
    ("qwen3-coder", "<function=now>\n</function>\n</tool_call>", &["call now: {}"]),
    // Attributes and the end of a value are escaped; nothing else is.
    (
        "deepseek4",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"a&lt;b\">\n<｜DSML｜parameter name=\"x &amp;lt; &quot;y&quot;\" string=\"true\">1 &lt; 2 &lt;/｜DSML｜parameter></｜DSML｜parameter>\n<｜DSML｜parameter name=\"o\" string=\"false\">{\"t\": \"\\u003c/｜DSML｜parameter>\"}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        &["call a<b: {\"x &lt; \\\"y\\\"\":\"1 &lt; 2 </｜DSML｜parameter>\",\"o\":{\"t\":\"</｜DSML｜parameter>\"}}"],
    ),
    // Thinking holds no calls; ends without beginnings are text.
    (
        "deepseek4",
        "<think>Perhaps <｜DSML｜tool_calls><｜DSML｜invoke name=\"now\"></think>No.</｜DSML｜invoke></｜DSML｜tool_calls>",
        &[
            "think: Perhaps <｜DSML｜tool_calls><｜DSML｜invoke name=\"now\">",
            "say: No.</｜DSML｜invoke></｜DSML｜tool_calls>",
        ],
    ),
    (
        "gemma4",
        "<|channel>thought\nWell.\n<channel|>I look.<|tool_call>call:weather{city:<|\"|>a \"b\" {c}, <d>\n<|\"|>,days:-2.5,exact:true,places:[<|\"|>x<|\"|>,[]],o:{k:null,j:{}}}<tool_call|>",
        &[
            "think: Well.",
            "say: I look.",
            "call weather: {\"city\":\"a \\\"b\\\" {c}, <d>\\n\",\"days\":-2.5,\"exact\":true,\"places\":[\"x\",[]],\"o\":{\"k\":null,\"j\":{}}}",
        ],
    ),
    ("gemma4", "<|channel>thought\n<channel|>Yes.", &["say: Yes."]),
    (
        "gemma4",
        "<|tool_call>call:now{}<tool_call|><|tool_call>call:a.b-c{}<tool_call|>",
        &["call now: {}", "call a.b-c: {}"],
    ),
    // Without its mark, after thinking; only if it names a tool.
    ("gemma4", "<|channel>thought\nHm.<channel|>call:now{}", &["think: Hm.", "call now: {}"]),
    ("gemma4", "call:nobody{}", &["say: call:nobody{}"]),
    ("gemma4", "call me: {x}", &["say: call me: {x}"]),
    // Other quotes, and a text without any.
    (
        "gemma4",
        "<|tool_call>call:f{\"a\":\"b\\n\",<|\"|>c<|\"|>:soon enough}<tool_call|>",
        &["call f: {\"a\":\"b\\n\",\"c\":\"soon enough\"}"],
    ),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>I ask.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Bern\"}<|call|>",
        &["think: I ask.", "say: One moment.", "call weather: {\"city\":\"Bern\"}"],
    ),
    ("gpt-oss", "<|channel|>final<|message|>Yes.<|return|>", &["say: Yes."]),
    ("gpt-oss", " to=functions.now<|channel|>commentary json<|message|>{}", &["call now: {}"]),
    ("gpt-oss", "<|channel|>commentary to=functions.now<|message|><|call|>", &["call now: {}"]),
    ("gpt-oss", "Plain words, to=you.", &["say: Plain words, to=you."]),
];

#[test]
fn well_formed_replies_are_taken_apart() {
    check_all(WELL_FORMED);
}

const MALFORMED: &[Case] = &[
    ("qwen3", "<think>\nI never", &["think: I never"]),
    (
        "qwen3",
        "<think><tool_call>{\"name\":\"now\"}</tool_call></think>Yes",
        &["think: <tool_call>{\"name\":\"now\"}</tool_call>", "say: Yes"],
    ),
    ("hermes", "<tool_call>nonsense</tool_call> after", &["say: <tool_call>nonsense</tool_call> after"]),
    ("hermes", "<tool_call>{\"name\": \"now\"", &["say: <tool_call>{\"name\": \"now\""]),
    (
        "hermes",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        &["say: <tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>"],
    ),
    ("hermes", "<tool_call>{\"name\": \"now\"</tool_call>.", &["mended now: {}", "say: ."]),
    ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"long te", &["mended f: {\"a\":\"long te\"}"]),
    ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":[1,{\"b\":12", &["mended f: {\"a\":[1,{}]}"]),
    ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1,\"b", &["mended f: {\"a\":1}"]),
    (
        "hermes",
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1,\"b\":2</tool_call>.",
        &["mended f: {\"a\":1,\"b\":2}", "say: ."],
    ),
    ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}</tool_call>", &["mended f: {\"a\":1}"]),
    ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":'x'}}</tool_call>.", &["mended f: {}", "say: 'x'}}."]),
    ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{}}}</tool_call>.", &["call f: {}", "say: }."]),
    ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{}}", &["call f: {}"]),
    (
        "hermes",
        "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>",
        &["say: <tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>"],
    ),
    ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{}}, yes", &["call f: {}", "say: , yes"]),
    ("hermes", "</tool_call> a </tool_call>", &["say: </tool_call> a </tool_call>"]),
    // Line breaks and escapes that are none, half a pair, a comma too many, Python.
    (
        "hermes",
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"x\ny\\d\\ud83d\\u12\",\"b\":[True,None,],}}</tool_call>",
        &["call f: {\"a\":\"x\\ny\\\\d\u{fffd}\\\\u12\",\"b\":[true,null]}"],
    ),
    (
        "hermes",
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"\\ud83d\\ude00\"}}</tool_call>",
        &["call f: {\"a\":\"😀\"}"],
    ),
    ("glm4", "<tool_call>weath", &["say: <tool_call>weath"]),
    ("glm4", "<tool_call></tool_call>", &["say: <tool_call></tool_call>"]),
    ("glm4", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern", &["mended weather: {\"city\":\"Bern\"}"]),
    ("glm4", "<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>12", &["mended weather: {\"days\":12}"]),
    // The end of the call is no text of the value if nothing closes the value, and text if something does.
    (
        "glm4",
        "<tool_call>weather\n<arg_key>city</arg_key><arg_value>Bern</tool_call>\n",
        &["mended weather: {\"city\":\"Bern\"}"],
    ),
    (
        "glm4",
        "<tool_call>weather\n<arg_key>city</arg_key><arg_value>a</tool_call>b</arg_value></tool_call>",
        &["call weather: {\"city\":\"a</tool_call>b\"}"],
    ),
    ("glm4", "<tool_call>weather\n<arg_key>city", &["mended weather: {}"]),
    ("glm4", "<tool_call>weather\nin Bern</tool_call>.", &["mended weather: {}", "say: in Bern."]),
    ("qwen3-coder", "<tool_call>\nnothing\n</tool_call>", &["say: <tool_call>\nnothing\n</tool_call>"]),
    ("qwen3-coder", "<tool_call>\n<function=now>\n</function>", &["call now: {}"]),
    ("qwen3-coder", "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>", &["mended f: {\"a\":1}"]),
    ("gemma4", "<|tool_call>call:f{a:<|\"|>long te", &["mended f: {\"a\":\"long te\"}"]),
    ("gemma4", "<|tool_call>call:f{a:1,b:[2,{c:3", &["mended f: {\"a\":1,\"b\":[2,{}]}"]),
    ("gemma4", "<|tool_call>call:f{a:1,b:2<tool_call|>.", &["mended f: {\"a\":1,\"b\":2}", "say: ."]),
    ("gemma4", "<|tool_call>call:f{a:1]}<tool_call|>.", &["mended f: {\"a\":1}", "say: ]}."]),
    ("gemma4", "<|tool_call>f(1)<tool_call|>", &["say: <|tool_call>f(1)<tool_call|>"]),
    ("gemma4", "<|channel>thought", &[]),
    ("gemma4", "<|channel>though I am no label<channel|>.", &["think: though I am no label", "say: ."]),
    ("gpt-oss", "<|channel|>analysis<|message|>I never", &["think: I never"]),
    ("gpt-oss", "<|channel|>commentary to=functions.f<|message|>{\"a\": \"b", &["mended f: {\"a\":\"b\"}"]),
    (
        "gpt-oss",
        "<|channel|>commentary to=functions.f<|message|>print(1)<|call|>",
        &["say: <|channel|>commentary to=functions.f<|message|>print(1)"],
    ),
    ("gpt-oss", "<|channel|>final<|message|>Yes.<|start|>assis", &["say: Yes."]),
    // Cut off in a mark.
    ("deepseek4", "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n<｜DSML｜par", &["mended now: {}"]),
    (
        "deepseek4",
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML",
        &["call now: {}"],
    ),
    ("qwen3", "<tool_call>{\"name\": \"now\", \"arguments\": {}}\n</tool", &["call now: {}"]),
];

/// What breaks before a name is known is content; what breaks later is closed.
#[test]
fn malformed_replies_lose_nothing() {
    check_all(MALFORMED);
}

/// Where nobody wants calls there are none, at whatever cut; thoughts are the same, and all else is told to the last character.
#[test]
fn calls_that_nobody_wants_are_content() {
    for (name, text, expect) in WELL_FORMED.iter().chain(MALFORMED) {
        let make = || parser(name).without_calls();
        let words = told(&events(make(), [*text]));
        check(make, text, &words.iter().map(String::as_str).collect::<Vec<_>>());
        let said = words.iter().filter_map(|word| word.strip_prefix("say: ")).collect::<String>();
        let is_thought = |word: &&str| word.starts_with("think: ");
        let thoughts: Vec<_> = words.iter().map(String::as_str).filter(is_thought).collect();
        assert_eq!(thoughts, expect.iter().copied().filter(is_thought).collect::<Vec<_>>(), "{name}: {text:?}");
        assert!(words.iter().all(|word| is_thought(&word.as_str()) || word.starts_with("say: ")), "{name}: {words:?}");
        // Heads of channels and marks of thoughts are not told.
        if *name != "gpt-oss" && !["think>", "channel"].iter().any(|mark| text.contains(mark)) {
            assert_eq!(said, *text, "{name}");
        }
    }
}

#[test]
fn values_have_the_types_of_the_schema() {
    let call = |key: &str, value: &str| {
        format!("<tool_call>weather<arg_key>{key}</arg_key><arg_value>{value}</arg_value></tool_call>")
    };
    let cases = [
        ("city", "12", "\"12\""),
        ("city", " a\n\"b\"\\ ", "\" a\\n\\\"b\\\"\\\\ \""),
        ("city", "null", "\"null\""),
        ("city", "", "\"\""),
        ("days", " 12 ", "12"),
        ("days", "twelve", "\"twelve\""),
        ("exact", "false", "false"),
        ("exact", "False", "false"),
        ("exact", "0", "\"0\""),
        ("places", "[\"a\", \"b\"]", "[\"a\",\"b\"]"),
        ("places", "[\"a\"", "\"[\\\"a\\\"\""),
        ("note", "null", "null"),
        ("note", "12", "\"12\""),
        ("either", "1.5", "1.5"),
        ("either", "x", "\"x\""),
        ("either", "true", "\"true\""),
        ("unit", "C", "\"C\""),
        ("unknown", "12", "12"),
        ("unknown", "words", "\"words\""),
    ];
    for (key, value, expect) in cases {
        let expect = format!("call weather: {{\"{key}\":{expect}}}");
        check(|| parser("glm4"), &call(key, value), &[&expect]);
    }
    // Nobody says what a tool takes that nobody gave.
    let nobody = call("city", "12").replace("weather", "nobody");
    check(|| parser("glm4"), &nobody, &["call nobody: {\"city\":12}"]);
}

#[test]
fn the_prompt_may_have_begun_the_thoughts() {
    let after = |name: &'static str, prompt: &'static str| move || parser(name).after_prompt(prompt);
    let open = "<|im_start|>assistant\n<think>\n";
    check(after("qwen3", open), "\nHm.\n</think>\n\nYes.", &["think: Hm.", "say: Yes."]);
    check(after("qwen3", "<think>\n\n</think>\n\n"), "Yes.</think>", &["say: Yes.</think>"]);
    check(after("qwen3", "Say <think>!<|im_start|>assistant\n"), "Yes.", &["say: Yes."]);
    check(after("gemma4", "<|turn>model\n<|channel>thought\n"), "Hm.<channel|>Yes.", &["think: Hm.", "say: Yes."]);
    check(after("gemma4", "<|turn>model\n<|channel>thought\n<channel|>"), "Yes.", &["say: Yes."]);
    check(after("gpt-oss", "<|end|><|start|>assistant"), "<|channel|>analysis<|message|>Hm.", &["think: Hm."]);
    check(after("gpt-oss", "<|start|>assistant<|channel|>analysis<|message|>"), "Hm.", &["think: Hm."]);
    check(after("gpt-oss", "<|start|>user<|message|>Hi<|end|>"), "Yes.", &["say: Yes."]);
}

/// Where the vocabulary has a mark as a token, text that spells it is text.
#[test]
fn special_tokens_are_known_from_text() {
    let make = || parser("hermes").with_specials(|text| text == "<tool_call>" || text == "</tool_call>");
    let spelled = "<tool_call>{\"name\":\"now\"}</tool_call>";
    check(make, spelled, &["say: <tool_call>{\"name\":\"now\"}</tool_call>"]);
    let mut parser = make();
    let mut out = Vec::new();
    parser.push("I look. <tool", &mut out);
    assert!(parser.special("<tool_call>", &mut out));
    parser.push("{\"name\":\"f\",\"arguments\":{\"a\":\"</tool_call>", &mut out);
    // Even a token is text inside a text.
    assert!(parser.special("<tool_call>", &mut out));
    parser.push("\"}}", &mut out);
    assert!(parser.special("</tool_call>", &mut out) && !parser.special("<|im_end|>", &mut out));
    parser.finish(&mut out);
    let expect = ["say: I look. <tool", "call f: {\"a\":\"</tool_call><tool_call>\"}"];
    assert_eq!(told(&joined(out)), expect);
}

#[test]
fn what_is_decided_is_told_at_once() {
    let mut parser = parser("qwen3");
    let mut next = |text: &str| {
        let mut out = Vec::new();
        parser.push(text, &mut out);
        out
    };
    let say = |text: &str| vec![ChatEvent::Content(text.to_owned())];
    let more = |json: &str| ChatEvent::ToolCallArguments { index: 0, json: json.to_owned() };
    assert_eq!(next("1 <"), say("1"));
    assert_eq!(next("t"), []);
    assert_eq!(next("a>"), say(" <ta>"));
    assert_eq!(next(" <tool_call>\n{\"name\": \"f\", \"arg"), []);
    let begin = ChatEvent::ToolCallBegin { index: 0, id: "call_0".to_owned(), name: "f".to_owned() };
    assert_eq!(next("uments\": {"), [begin, more("{")]);
    assert_eq!(next("\"a\": "), []);
    assert_eq!(next("\"long "), [more("\"a\": \"long ")]);
    assert_eq!(next("text\\"), [more("text")]);
    assert_eq!(next("n\", \"b\": 1"), [more("\\n\"")]);
    assert_eq!(next("2}"), [more(", \"b\": 12}")]);
    assert_eq!(next("}\n"), []);
    let raw =
        " <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"long text\\n\", \"b\": 12}}\n</tool_call>".to_owned();
    let end = ChatEvent::ToolCallEnd { index: 0, state: tessera_engine::chat::CallState::Whole, raw };
    assert_eq!(next("</tool_call>"), [end]);
}

/// Where a reply can be cut is known after each piece, and a call of which nothing is known can be taken back.
#[test]
fn a_lost_call_can_be_taken_back() {
    let mut parser = parser("deepseek4");
    let mut all = Vec::new();
    let mut read = |parser: &mut ReplyParser, text: &str| {
        let mut out = Vec::new();
        parser.push(text, &mut out);
        let lost = parser.take_lost();
        all.extend(out.drain(..lost.map_or(out.len(), |lost| lost.event)));
        (parser.rest(), lost.map(|lost| (lost, out)))
    };
    let content = |spaces| (Some(Rest::Content { spaces }), None);
    assert_eq!(read(&mut parser, "I look."), content(0));
    assert_eq!(read(&mut parser, "\n\n"), content(2));
    assert_eq!(read(&mut parser, "<｜DSML｜tool_"), (None, None));
    // What came before in the same piece stands apart from it.
    assert_eq!(read(&mut parser, "x. <｜DSML｜tool_calls>\n"), (None, None));
    let (_, lost) = read(&mut parser, "<｜DSML｜invoke name=\"\">\n");
    let raw = ChatEvent::Content(" <｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"\">".to_owned());
    assert_eq!(lost, Some((LostCall { event: 0, in_block: false }, vec![raw])));
    parser.restart(LostCall { event: 0, in_block: false });
    // Behind a whole call the block goes on.
    assert_eq!(read(&mut parser, "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"now\">\n"), (None, None));
    assert_eq!(read(&mut parser, "</｜DSML｜invoke>\n"), (Some(Rest::Block), None));
    let (_, lost) = read(&mut parser, "<｜DSML｜invoke name=\"\">");
    let lost = lost.unwrap().0;
    assert_eq!(lost, LostCall { event: 1, in_block: true }); // the end of the first call comes before it
    parser.restart(lost);
    assert_eq!(read(&mut parser, "<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n"), (Some(Rest::Block), None));
    assert_eq!(read(&mut parser, "</｜DSML｜tool_calls>"), content(0));
    parser.finish(&mut all);
    assert_eq!(told(&joined(all)), ["say: I look.\n\n<｜DSML｜tool_x.", "call now: {}", "call now: {}"]);
}

#[test]
fn depth_and_tools_have_bounds() {
    let deep = format!("<tool_call>{{\"name\":\"f\",\"arguments\":{{\"a\":{}", "[".repeat(100_000));
    let events = events(ReplyParser::new(format("hermes"), tools()), [deep.as_str()]);
    assert!(matches!(&events[2], ChatEvent::ToolCallEnd { .. }) && told(&events)[1].len() > 90_000);
    for bad in ["{}", "nonsense", "[3]", "[{}]", "[{\"name\": \"\"}]", "[{\"function\": {}}]"] {
        assert!(Tools::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn markup_with_attributes_is_read_at_every_cut() {
    let make = || parser("deepseek4").after_prompt("<｜Assistant｜><think>");
    let one = "<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">1 > \"2\"</｜DSML｜parameter>\n\
               <｜DSML｜parameter name=\"days\" string=\"false\">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n";
    let two = "<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n";
    let all = format!("Hm.</think>I look.\n\n<｜DSML｜tool_calls>\n{one}{two}</｜DSML｜tool_calls>");
    let first = "call weather: {\"city\":\"1 > \\\"2\\\"\",\"days\":[1]}";
    check(make, &all, &["think: Hm.", "say: I look.", first, "call now: {}"]);
    let raws: String = events(make(), [all.as_str()])
        .iter()
        .filter_map(|event| match event {
            ChatEvent::ToolCallEnd { raw, .. } => Some(raw.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(format!("Hm.</think>I look.{raws}"), all, "nothing of the calls is missing");
    // Cut anywhere, it is a call as soon as its name is known.
    for (at, _) in all.char_indices() {
        let events = events(make(), [&all[..at]]);
        let known = all[..at].contains("weather\">");
        assert_eq!(events.iter().any(|e| matches!(e, ChatEvent::ToolCallBegin { .. })), known, "{at}");
        told(&events);
    }
}
