//! Thoughts are kept apart from words, and can be switched where the model has a switch.

use serde_json::{Value, json};
use tessera_server::Settings;

use crate::support::{Running, Tiny, start_with, with};

const TEXT: &str = "<think>\nHm, well.\n</think>\n\nYes.";

fn server() -> Running {
    start_with(&["qwen3", "tiny", "gpt_oss"], Tiny::default(), Settings::default())
}

/// A reply that is exactly this text, by way of a grammar.
fn exactly(text: &str) -> Value {
    json!({ "type": "grammar", "grammar": format!("start: {}\n", json!(text)) })
}

fn chat(model: &str, more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Is it?" }]);
    with(json!({ "model": model, "messages": messages, "max_tokens": 200, "reasoning_effort": "none" }), more)
}

#[test]
fn openai_has_them_beside_the_content() {
    let server = server();
    let body = chat("qwen3", json!({ "response_format": exactly(TEXT) }));
    let whole = server.post("/v1/chat/completions", &body).fine();
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("Hm, well."), &json!("Yes.")));
    assert!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 2, "{whole}");
    let chunks = server.post("/v1/chat/completions", &with(body, json!({ "stream": true }))).chunks();
    let joined =
        |key: &str| -> String { chunks.iter().filter_map(|c| c["choices"][0]["delta"][key].as_str()).collect() };
    assert_eq!((joined("reasoning_content").as_str(), joined("content").as_str()), ("Hm, well.", "Yes."));

    let body = json!({ "model": "qwen3", "input": "Is it?", "reasoning": { "effort": "none" }, "text": { "format": exactly(TEXT) } });
    let whole = server.post("/v1/responses", &body).fine();
    assert_eq!((&whole["output"][0]["type"], &whole["output"][1]["type"]), (&json!("reasoning"), &json!("message")));
    assert_eq!(whole["output"][0]["content"][0]["text"], "Hm, well.");
    let events = server.post("/v1/responses", &with(body, json!({ "stream": true }))).typed();
    let thoughts: String = events
        .iter()
        .filter(|e| e["type"] == "response.reasoning_text.delta")
        .map(|e| e["delta"].as_str().unwrap())
        .collect();
    assert_eq!(thoughts, "Hm, well.");
}

#[test]
fn anthropic_has_them_as_a_block() {
    let server = server();
    // Its API has schemas only, so the text is one that a schema makes.
    let schema = json!({ "const": "Yes." });
    let body = json!({ "model": "qwen3", "max_tokens": 200, "thinking": { "type": "disabled" },
        "messages": [{ "role": "user", "content": "Is it?" }], "output_format": { "type": "json_schema", "schema": schema } });
    let whole = server.post("/v1/messages", &body).fine();
    assert_eq!(whole["content"], json!([{ "type": "text", "text": "\"Yes.\"" }]));
    // Thoughts of turns past are taken, whoever they are from.
    let before = json!([
        { "role": "user", "content": "Is it?" },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": "Hm.", "signature": "x" }, { "type": "text", "text": "Yes." },
        ] },
        { "role": "user", "content": "Sure?" },
    ]);
    let again = server.post("/v1/messages", &with(body, json!({ "messages": before })));
    assert_eq!(again.status, 200, "{}", again.text);
}

/// A stream of thoughts is a block that is opened, told in pieces, signed and closed, and then come the words.
#[test]
fn anthropic_streams_them_as_a_block_of_their_own() {
    let server = server();
    let ask = |seed: usize, stream: bool| {
        let messages = json!([{ "role": "user", "content": "Is it?" }]);
        let schema = json!({ "type": "json_schema", "schema": { "const": "Yes." } });
        json!({ "model": "qwen3", "max_tokens": 60, "thinking": { "type": "enabled", "budget_tokens": 1024 },
            "messages": messages, "output_format": schema, "seed": seed, "stream": stream })
    };
    let thinks = |seed: &usize| {
        let whole = server.post("/v1/messages", &ask(*seed, false)).fine();
        whole["content"][0]["type"] == "thinking"
            && whole["content"][0]["thinking"].as_str().is_some_and(|t| t.len() > 8)
    };
    let seed = (0..200).find(thinks).expect("one in two hundred");
    let whole = server.post("/v1/messages", &ask(seed, false)).fine();
    let events = server.post("/v1/messages", &ask(seed, true)).typed();
    let of = |index: usize| events.iter().filter(move |e| e["index"] == index && e["type"] != "ping");
    let kinds: Vec<&str> = of(0).map(|e| e["delta"]["type"].as_str().or(e["type"].as_str()).unwrap()).collect();
    let (first, last) = (kinds[0], kinds[kinds.len() - 1]);
    assert_eq!((first, last), ("content_block_start", "content_block_stop"), "{kinds:?}");
    assert!(kinds.iter().filter(|k| **k == "thinking_delta").count() > 1, "{kinds:?}");
    assert_eq!(of(0).next().unwrap()["content_block"]["type"], "thinking");
    let thoughts: String = of(0).filter_map(|e| e["delta"]["thinking"].as_str()).collect();
    assert_eq!(thoughts, whole["content"][0]["thinking"].as_str().unwrap());
}

#[test]
fn heads_of_messages_are_no_text() {
    let server = server();
    let format = json!({ "type": "regex", "pattern": "(yes|no)" });
    for seed in 0..3 {
        let body = chat("gpt_oss", json!({ "response_format": format, "seed": seed }));
        let object = server.post("/v1/chat/completions", &body).fine();
        let content = object["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(["yes", "no"].contains(&content), "{object}");
    }
}

#[test]
fn thinking_is_switched_in_the_prompt_or_refused() {
    let server = server();
    let tokens = |model: &str, effort: Value| {
        let body = chat(model, json!({ "reasoning_effort": effort, "max_tokens": 1 }));
        let reply = server.post("/v1/chat/completions", &body);
        (reply.status, reply.json()["usage"]["prompt_tokens"].as_u64())
    };
    assert_ne!(tokens("qwen3", json!("none")), tokens("qwen3", Value::Null), "the prompt says so");
    assert_eq!(tokens("tiny", json!("none")).0, 200, "it does not think anyway");
    assert_eq!(tokens("tiny", json!("high")).0, 400);
    assert_ne!(tokens("gpt_oss", json!("low")), (400, None));
    let body = with(
        chat("qwen3", json!({ "chat_template_kwargs": { "enable_thinking": false }, "max_tokens": 1 })),
        json!({ "reasoning_effort": null }),
    );
    let by_variable = server.post("/v1/chat/completions", &body).fine()["usage"]["prompt_tokens"].as_u64();
    assert_eq!((200, by_variable), tokens("qwen3", json!("none")));
}

/// With a shape, thoughts may come before; they are no part of what is held to it, and are no part of the content.
#[test]
fn a_shape_holds_the_words_and_not_the_thoughts() {
    let server = start_with(&["qwen3+tokens", "gpt_oss+tokens"], Tiny::default(), Settings::default());
    let (mut thought, mut direct) = (0, 0);
    for model in ["qwen3+tokens", "gpt_oss+tokens"] {
        for seed in 0..12 {
            let format = json!({ "type": "regex", "pattern": "(yes|no)" });
            // A bias to the marks that end thoughts (the last tokens of the vocabulary), for they are rare words.
            let bias: serde_json::Map<String, Value> = (490..512).map(|id: u32| (id.to_string(), json!(3))).collect();
            let body = json!({ "response_format": format, "seed": seed, "logit_bias": bias, "max_tokens": 900, "reasoning_effort": null });
            let object = server.post("/v1/chat/completions", &chat(model, body)).fine();
            let choice = &object["choices"][0];
            if choice["finish_reason"] == "length" {
                continue; // still thinking
            }
            assert!(["yes", "no"].contains(&choice["message"]["content"].as_str().unwrap()), "{object}");
            match choice["message"]["reasoning_content"].as_str() {
                Some(_) => thought += 1,
                None => direct += 1,
            }
        }
    }
    assert!(thought > 0 && direct > 0, "{thought} {direct}");
}
