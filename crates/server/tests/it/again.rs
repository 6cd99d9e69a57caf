//! Replies whose calls break: repaired, or drawn again from before the call, and what a client that streams hears of it.

use serde_json::json;
use tessera_server::Settings;

use crate::{
    script::Script,
    support::{Running, Tiny, start_with, with},
    told::{Told, both, call, chat, messages, tools},
};

const FAMILIES: [&str; 8] = [
    "deepseek4",
    "deepseek4+tokens",
    "qwen3_coder",
    "qwen3_coder+tokens",
    "hermes",
    "hermes+tokens",
    "llama3",
    "gpt_oss+tokens",
];

fn server() -> (Running, Script) {
    server_of(&FAMILIES)
}

fn server_of(models: &[&str]) -> (Running, Script) {
    let script = Script::default();
    let loader = Tiny { script: Some(script.clone()), ..Tiny::default() };
    (start_with(models, loader, Settings::default()), script)
}

fn dsml(calls: &str) -> String {
    format!("<｜DSML｜tool_calls>\n{calls}</｜DSML｜tool_calls>")
}

const WEATHER: &str = "<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"days\" string=\"false\">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n";
const TIME: &str = "<｜DSML｜invoke name=\"time\">\n</｜DSML｜invoke>\n";

#[test]
fn what_can_be_closed_is_not_drawn_again() {
    let (server, script) = server();
    let begun =
        "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"days\" string=\"false\">";
    let table = [
        // Unterminated: in a value, in a call, in the block.
        (format!("I look.\n\n{begun}2"), vec![call("weather", json!({ "days": 2 }))]),
        (format!("I look.\n\n{begun}2</｜DSML｜parameter>\n"), vec![call("weather", json!({ "days": 2 }))]),
        (format!("I look.\n\n<｜DSML｜tool_calls>\n{WEATHER}"), vec![call("weather", json!({ "days": 2 }))]),
        // The block has its end and the call in it has none.
        (
            format!("I look.\n\n{begun}2</｜DSML｜parameter>\n</｜DSML｜tool_calls>"),
            vec![call("weather", json!({ "days": 2 }))],
        ),
        // More ends than beginnings.
        (
            format!("I look.\n\n{}</｜DSML｜tool_calls></｜DSML｜invoke>", dsml(WEATHER)),
            vec![call("weather", json!({ "days": 2 }))],
        ),
        // It breaks behind its name: what was told is closed where it broke.
        (
            format!("I look.\n\n{begun}2</｜DSML｜parameter>\nOh.\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"),
            vec![call("weather", json!({ "days": 2 }))],
        ),
    ];
    for model in ["deepseek4", "deepseek4+tokens"] {
        for (text, calls) in &table {
            let told = both(&server, (&script, &[text.as_str(), "never"]), model);
            assert_eq!((script.attempts(), &told.calls), (1, calls), "{model}: {text}");
            assert!(told.words.starts_with("I look.") && !told.words.contains("invoke name"), "{told:?}");
            assert_eq!(told.tokens, script.tokens(model, text) as u64, "{model}: {text}");
        }
    }
}

const BROKEN: &str = "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

/// The new attempt stands behind what was told, and what comes of it is told in place of what broke.
#[test]
fn what_is_beyond_repair_is_drawn_again() {
    let (server, script) = server();
    let weather = dsml(WEATHER);
    let coder = "<tool_call>\n<function=weather>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>";
    let hermes = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"days\": 2}}\n</tool_call>";
    let llama = "{\"name\": \"weather\", \"parameters\": {\"days\": 2}}";
    let oss = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"days\": 2}";
    let thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
    // What comes before; the call, up to where it is known to be lost; more of it; what is said instead.
    let table = [
        ("deepseek4", "I look.\n\n", "<｜DSML｜tool_calls>\nT", "he weather.\n</｜DSML｜tool_calls>", weather.as_str()),
        ("deepseek4", "I look.\n\n", "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"wea", "", weather.as_str()),
        (
            "deepseek4",
            "I look.\n\n",
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"\">",
            "\n</｜DSML｜invoke>",
            weather.as_str(),
        ),
        ("deepseek4", "", "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"\">", "\n</｜DSML｜invoke>", weather.as_str()),
        ("qwen3_coder", "I look.\n\n", "<tool_call>\nw", "eather\n</tool_call>", coder),
        ("hermes", "I look.\n\n", "<tool_call>\nw", "eather\n</tool_call>", hermes),
        ("llama3", "I look.\n\n", "<|python_tag|>w", "eather", llama),
        ("gpt_oss+tokens", "", "<|channel|>commentary to=functions.weather<|message|>t", "wo", oss),
        ("gpt_oss+tokens", thought, "<|channel|>commentary to=functions.weather<|message|>t", "wo", oss),
    ];
    let tokens =
        |model: &str| FAMILIES.contains(&format!("{model}+tokens").as_str()).then(|| format!("{model}+tokens"));
    for (model, before, lost, more, instead) in table {
        for model in [Some(model.to_owned()), tokens(model)].into_iter().flatten() {
            let text = format!("{before}{lost}{more}");
            let told = both(&server, (&script, &[&text, instead, "never"]), &model);
            let words = if before.starts_with('I') { "I look." } else { "" };
            assert_eq!((told.words.as_str(), script.attempts()), (words, 2), "{model}: {text}");
            assert_eq!(told.thoughts, if before == thought { "Hm." } else { "" });
            assert_eq!(told.calls, [call("weather", json!({ "days": 2 }))], "{model}: {text}");
            assert_eq!(script.kept(), script.tokens(&model, before), "{model}: {text}");
            let drawn = script.tokens_with(&model, &text, lost) + script.tokens(&model, instead);
            assert_eq!(told.tokens, drawn as u64, "{model}: {text}");
        }
    }
}

/// Calls that are whole stand. Behind them the reply may go on with another, or end.
#[test]
fn calls_before_the_lost_one_stand() {
    let (server, script) = server();
    let (weather, time) = (call("weather", json!({ "days": 2 })), call("time", json!({})));
    let hermes = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let coder = "<tool_call>\n<function=weather>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>";
    let second = "<tool_call>\n<function=time>\n</function>\n</tool_call>";
    let table = [
        // In one block: the attempt goes on in it.
        (
            "deepseek4",
            format!("<｜DSML｜tool_calls>\n{WEATHER}"),
            "<｜DSML｜invoke name=\"\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>".to_owned(),
            (format!("{TIME}</｜DSML｜tool_calls>"), "</｜DSML｜tool_calls>"),
        ),
        ("deepseek4", dsml(WEATHER) + "\n", BROKEN.to_owned(), (dsml(TIME), "")),
        (
            "hermes",
            hermes("weather", "{\"days\": 2}") + "\n",
            "<tool_call>\ntime".to_owned(),
            (hermes("time", "{}"), ""),
        ),
        ("qwen3_coder", coder.to_owned() + "\n", "<tool_call>\ntime".to_owned(), (second.to_owned(), "")),
        (
            "qwen3_coder",
            coder.strip_suffix("</tool_call>").unwrap().to_owned(),
            "<function=>\n</function>\n</tool_call>".to_owned(),
            (format!("</tool_call>\n{second}"), "</tool_call>"),
        ),
    ];
    for (model, first, lost, (goes_on, ends)) in &table {
        for model in [(*model).to_owned(), format!("{model}+tokens")] {
            for (instead, calls) in
                [(goes_on.as_str(), vec![weather.clone(), time.clone()]), (ends, vec![weather.clone()])]
            {
                let text = format!("I look.\n\n{first}{lost}");
                let told = both(&server, (&script, &[&text, instead, "never"]), &model);
                assert_eq!(
                    (told.words.as_str(), &told.calls, script.attempts()),
                    ("I look.", &calls, 2),
                    "{model}: {text}"
                );
                assert_eq!(script.kept(), script.tokens(&model, &format!("I look.\n\n{first}")), "{model}: {text}");
            }
        }
    }
}

/// It is told as it came, marks and all, where nothing can stand in its place.
#[test]
fn what_cannot_be_drawn_again_is_content() {
    let (server, script) = server_of(&["deepseek4"]);
    let text = format!("I look.\n\n{BROKEN}");
    let replies: (&Script, &[&str]) = (&script, &[&text, &dsml(WEATHER)]);
    let odd = json!({ "type": "object", "properties": { "a": { "type": "spaceship" } } });
    let odd = json!({ "type": "function", "function": { "name": "f", "parameters": odd } });
    // No tool may be called, there is none, or one that no grammar can be made of.
    for more in [json!({ "tool_choice": "none" }), json!({ "tools": null }), json!({ "tools": [odd] })] {
        let told = chat(&server, replies, "deepseek4", more);
        assert_eq!((told.words, told.finish.as_str(), script.attempts()), (text.clone(), "stop", 1));
    }
    let none = json!({ "tool_choice": { "type": "none" } });
    let told = messages(&server, replies, "deepseek4", none);
    assert_eq!((told.words, told.finish.as_str(), script.attempts()), (text.clone(), "end_turn", 1));
    // All tokens are spent where it breaks.
    let lost = "<｜DSML｜invoke name=\"\">";
    let spent = script.tokens_with("deepseek4", &text, lost);
    let told = chat(&server, replies, "deepseek4", json!({ "max_tokens": spent }));
    assert_eq!((told.finish.as_str(), told.tokens, script.attempts()), ("length", spent as u64, 1));
    assert!(told.words.ends_with(lost), "{}", told.words);
    let told = messages(&server, replies, "deepseek4", json!({ "max_tokens": spent }));
    assert_eq!((told.finish.as_str(), told.tokens, script.attempts()), ("max_tokens", spent as u64, 1));
}

/// Where no tool may be called, or none was offered, a sound call is text as well, to the last character.
#[test]
fn a_call_that_nobody_wants_is_content() {
    let (server, script) = server();
    let table = [
        ("deepseek4", dsml(WEATHER)),
        ("hermes", "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"days\": 2}}\n</tool_call>".to_owned()),
        (
            "qwen3_coder",
            "<tool_call>\n<function=weather>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>".to_owned(),
        ),
        ("llama3", "{\"name\": \"weather\", \"parameters\": {\"days\": 2}}".to_owned()),
    ];
    for (model, block) in &table {
        for model in [(*model).to_owned(), format!("{model}+tokens")].iter().filter(|m| FAMILIES.contains(&m.as_str()))
        {
            // A bare call of llama3 is one at the beginning alone.
            for text in [format!("I look.\n\n{block}\n\nSo it is."), block.clone()] {
                unwanted(&server, (&script, &text), model, &text);
            }
        }
    }
    // A message's head says that it is a call; the message is content, as any other's.
    let oss = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"days\": 2}";
    unwanted(&server, (&script, oss), "gpt_oss+tokens", "{\"days\": 2}");
}

fn unwanted(server: &Running, (script, text): (&Script, &str), model: &str, words: &str) {
    let replies: (&Script, &[&str]) = (script, &[text, "never"]);
    let expect = |finish: &str, told: Told| {
        let seen = (told.words.as_str(), told.calls.len(), told.finish.as_str(), script.attempts());
        assert_eq!(seen, (words, 0, finish, 1), "{model}: {text}");
    };
    for more in [json!({ "tool_choice": "none" }), json!({ "tools": null }), json!({ "tools": [] })] {
        expect("stop", chat(server, replies, model, more));
    }
    for more in [json!({ "tool_choice": { "type": "none" } }), json!({ "tools": [] })] {
        expect("end_turn", messages(server, replies, model, more));
    }
}

/// A reply that is cut off in a call without a name ends before it, also in its second attempt, and there is no third.
#[test]
fn a_reply_that_is_cut_off_is_not_drawn_again() {
    let (server, script) = server_of(&["deepseek4"]);
    let (weather, text) = (dsml(WEATHER), format!("I look.\n\n{BROKEN}"));
    let half = script.tokens_with("deepseek4", &weather, "<｜DSML｜invoke name=\"we");
    let sound = format!("I look.\n\n{weather}");
    let before = script.tokens("deepseek4", "I look.\n\n");
    let broken = script.tokens_with("deepseek4", &text, "<｜DSML｜invoke name=\"\">");
    for (replies, most, attempts) in
        [([&sound, &weather, "never"], before + half, 1), ([&text, &weather, "never"], broken + half, 2)]
    {
        let expect = |finish: &str| Told {
            words: "I look.".to_owned(),
            finish: finish.to_owned(),
            tokens: most as u64,
            ..Told::default()
        };
        let told = chat(&server, (&script, &replies), "deepseek4", json!({ "max_tokens": most }));
        assert_eq!((told, script.attempts()), (expect("length"), attempts));
        let told = messages(&server, (&script, &replies), "deepseek4", json!({ "max_tokens": most }));
        assert_eq!((told, script.attempts()), (expect("max_tokens"), attempts));
    }
    // By a stop string: in a call without a name, and behind the name, which is a call.
    for (stop, replies, calls, attempts) in [
        ("name=\"wea", [&sound, &weather, "never"], vec![], 1),
        ("name=\"wea", [&text, &weather, "never"], vec![], 2),
        ("name=\"days", [&text, &weather, "never"], vec![call("weather", json!({}))], 2),
    ] {
        let told = chat(&server, (&script, &replies), "deepseek4", json!({ "stop": stop }));
        assert_eq!((told.words.as_str(), &told.calls, script.attempts()), ("I look.", &calls, attempts), "{stop}");
        let told = messages(&server, (&script, &replies), "deepseek4", json!({ "stop_sequences": [stop] }));
        assert_eq!((told.words.as_str(), &told.calls, script.attempts()), ("I look.", &calls, attempts), "{stop}");
        assert_eq!(told.finish, "stop_sequence");
    }
}

/// A stop string makes text wait, so that it comes with later tokens. The new attempt stands behind all that was told.
#[test]
fn stop_strings_do_not_hide_where_the_call_began() {
    let (server, script) = server_of(&["deepseek4", "deepseek4+tokens"]);
    let (weather, text) = (dsml(WEATHER), format!("I look.\n\n{BROKEN}"));
    for model in ["deepseek4", "deepseek4+tokens"] {
        // The second holds words back until the mark has begun.
        for (stop, kept) in [("\n\nUser:", "I look."), (" look.\n\n<x", "I look."), ("never", "I look.\n\n")] {
            let replies: (&Script, &[&str]) = (&script, &[&text, &weather, "never"]);
            let told = chat(&server, replies, model, json!({ "stop": stop }));
            let calls = [call("weather", json!({ "days": 2 }))];
            assert_eq!(
                (told.words.as_str(), &told.calls[..], told.finish.as_str()),
                ("I look.", &calls[..], "tool_calls")
            );
            assert_eq!((script.attempts(), script.kept()), (2, script.tokens(model, kept)), "{model}: {stop}");
            let drawn = script.tokens_with(model, &text, "<｜DSML｜invoke name=\"\">") + script.tokens(model, &weather);
            assert_eq!(told.tokens, drawn as u64, "{model}: {stop}");
            let told = messages(&server, replies, model, json!({ "stop_sequences": [stop] }));
            assert_eq!(
                (told.words.as_str(), &told.calls[..], told.finish.as_str()),
                ("I look.", &calls[..], "tool_use")
            );
        }
    }
}

/// A block in thoughts is a thought, however it breaks; one behind them is drawn again from behind them.
#[test]
fn thoughts_are_never_drawn_again() {
    let (server, script) = server_of(&["deepseek4", "deepseek4+tokens"]);
    for model in ["deepseek4", "deepseek4+tokens"] {
        let thinks = |replies: &[&str]| {
            let told = chat(&server, (&script, replies), model, json!({ "reasoning_effort": "high" }));
            let attempts = script.attempts();
            let thinking = json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } });
            let other = messages(&server, (&script, replies), model, thinking);
            assert_eq!((&other.thoughts, &other.words, &other.calls), (&told.thoughts, &told.words, &told.calls));
            assert_eq!((other.tokens, script.attempts()), (told.tokens, attempts));
            (told, attempts)
        };
        for end in ["</think>No.", ""] {
            let (told, attempts) = thinks(&[&format!("Hm. {BROKEN}{end}"), &dsml(WEATHER)]);
            assert_eq!((told.thoughts, told.calls.len(), attempts), (format!("Hm. {BROKEN}"), 0, 1));
            assert_eq!(told.words, if end.is_empty() { "" } else { "No." });
        }
        let (told, attempts) = thinks(&[&format!("Hm.</think>\n\n{BROKEN}"), &dsml(WEATHER), "never"]);
        assert_eq!((told.thoughts.as_str(), told.words.as_str(), attempts), ("Hm.", "", 2));
        assert_eq!(told.calls, [call("weather", json!({ "days": 2 }))]);
        assert_eq!(script.kept(), script.tokens(model, "Hm.</think>\n\n"));
    }
}

/// Who goes away while a reply is drawn again leaves nothing behind.
#[test]
fn a_new_attempt_ends_with_its_client() {
    let (server, script) = server_of(&["deepseek4+slow"]);
    let long = dsml(&WEATHER.replace('2', &"2".repeat(600)));
    let text = format!("I look.\n\n{BROKEN}");
    let tools = tools();
    let function = json!({ "name": tools[0].0, "parameters": tools[0].1 });
    let body = json!({ "model": "deepseek4+slow", "messages": [{ "role": "user", "content": "Rain?" }], "max_tokens": 900, "stream": true });
    let openai = json!({ "tools": [{ "type": "function", "function": function }], "reasoning_effort": "none" });
    let anthropic =
        json!({ "tools": [{ "name": tools[0].0, "input_schema": tools[0].1 }], "thinking": { "type": "disabled" } });
    for (times, (path, more)) in [("/v1/chat/completions", openai), ("/v1/messages", anthropic)].into_iter().enumerate()
    {
        script.say(&[&text, &long, "never"]);
        let mut lines = server.open(path, &with(body.clone(), more));
        assert!(lines.any(|line| line.contains("\"weather\"")));
        assert_eq!(script.attempts(), 2);
        server.wait_until("computing the new attempt alone", |e| e["running"] == 1);
        drop(lines);
        server.wait_idle();
        // The first attempt, and the second.
        assert_eq!(server.engine()["counters"]["finished"]["cancelled"], 2 * (times + 1));
        assert_eq!(script.attempts(), 2);
    }
}

/// The third API has it from the same place.
#[test]
fn responses_tell_the_new_attempt_in_place_of_the_lost_call() {
    let (server, script) = server_of(&["deepseek4"]);
    script.say(&[&format!("I look.\n\n{BROKEN}"), &dsml(WEATHER), "never"]);
    let tools = tools();
    let tool = json!({ "type": "function", "name": tools[0].0, "parameters": tools[0].1 });
    let body = json!({ "model": "deepseek4", "input": "Rain?", "tools": [tool], "reasoning": { "effort": "none" }, "stream": true });
    let events = server.post("/v1/responses", &body).typed();
    let last = events.last().unwrap();
    assert_eq!((&last["type"], script.attempts()), (&json!("response.completed"), 2));
    let output = last["response"]["output"].as_array().unwrap();
    assert_eq!((output.len(), &output[0]["content"][0]["text"]), (2, &json!("I look.")));
    assert_eq!((&output[1]["name"], &output[1]["arguments"]), (&json!("weather"), &json!("{\"days\": 2}")));
    let said =
        events.iter().filter(|e| e["type"] == "response.output_text.delta").map(|e| e["delta"].as_str().unwrap());
    assert_eq!(said.collect::<String>(), "I look.");
}
