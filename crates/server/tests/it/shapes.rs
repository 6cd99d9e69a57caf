//! Replies that are held to a shape: the model is random, so what comes out right was made right.

use serde_json::{Value, json};

use crate::support::{Running, chat, start};

fn content(server: &Running, format: Value, seed: u64) -> String {
    let asked = json!({ "response_format": format, "max_tokens": 400, "seed": seed });
    let object = server.post("/v1/chat/completions", &chat("Say it", asked)).fine();
    assert_eq!(object["choices"][0]["finish_reason"], "stop", "{object}");
    object["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "kind": { "enum": ["cat", "dog"] },
            "tags": { "type": "array", "items": { "type": "boolean" }, "minItems": 1, "maxItems": 3 },
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": false,
    })
}

fn assert_fits(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 4, "{text}");
    assert!(value["name"].as_str().unwrap().chars().count() <= 12, "{text}");
    assert!(value["age"].as_u64().unwrap() <= 150, "{text}");
    assert!(["cat", "dog"].contains(&value["kind"].as_str().unwrap()), "{text}");
    assert!((1..=3).contains(&value["tags"].as_array().unwrap().len()), "{text}");
}

#[test]
fn json_fits_its_schema() {
    let server = start();
    for seed in 0..6 {
        let format =
            json!({ "type": "json_schema", "json_schema": { "name": "pet", "strict": true, "schema": schema() } });
        assert_fits(&content(&server, format, seed));
    }
    let response = json!({ "model": "tiny", "input": "x", "seed": 1, "max_output_tokens": 400,
        "text": { "format": { "type": "json_schema", "name": "pet", "schema": schema() } } });
    let response = server.post("/v1/responses", &response).fine();
    assert_eq!(response["status"], "completed");
    assert_fits(response["output"][0]["content"][0]["text"].as_str().unwrap());
    let message = json!({ "model": "tiny", "max_tokens": 400, "messages": [{ "role": "user", "content": "x" }],
        "output_config": { "format": { "type": "json_schema", "schema": schema() } } });
    let message = server.post("/v1/messages", &message).fine();
    assert_eq!(message["stop_reason"], "end_turn");
    assert_fits(message["content"][0]["text"].as_str().unwrap());
}

#[test]
fn expressions_and_grammars_are_kept_to() {
    let server = start();
    for seed in 0..4 {
        let date = content(&server, json!({ "type": "regex", "pattern": "[12][0-9]{3}-(0[1-9]|1[0-2])" }), seed);
        assert!(date.len() == 7 && &date[4..5] == "-" && "12".contains(&date[..1]), "{date}");
        assert!((1..=12).contains(&date[5..].parse::<u32>().unwrap()), "{date}");
        let grammar = "start: sum\nsum: NUMBER (\"+\" NUMBER){1,3}\nNUMBER: /[1-9][0-9]?/\n";
        let sum = content(&server, json!({ "type": "grammar", "syntax": "lark", "grammar": grammar }), seed);
        let parts: Vec<u32> = sum.split('+').map(|part| part.parse().unwrap()).collect();
        assert!((2..=4).contains(&parts.len()) && parts.iter().all(|n| (1..100).contains(n)), "{sum}");
    }
}

#[test]
fn any_object_is_json() {
    let server = start();
    let asked =
        json!({ "response_format": { "type": "json_object" }, "max_tokens": 60, "seed": 2, "temperature": 0.5 });
    let object = server.post("/v1/chat/completions", &chat("Say it", asked)).fine();
    let text = object["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'), "{text}");
    if object["choices"][0]["finish_reason"] == "stop" {
        assert!(serde_json::from_str::<Value>(text).unwrap().is_object());
    }
}

#[test]
fn shapes_that_cannot_be_kept_to_are_refused() {
    let server = start();
    let schema = |schema: Value| json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let table = [
        (schema(json!({ "type": "spaceship" })), "response_format.json_schema.schema"),
        (schema(json!({ "type": "object", "patternProperties": { "(": {} } })), "response_format.json_schema.schema"),
        (schema(json!("text")), "response_format.json_schema.schema"),
        (json!({ "type": "regex", "pattern": "(" }), "response_format.pattern"),
        (json!({ "type": "grammar", "grammar": "no start" }), "response_format.grammar"),
        (json!({ "type": "grammar", "grammar": "start: missing" }), "response_format.grammar"),
    ];
    for (format, param) in table {
        let reply = server.post("/v1/chat/completions", &chat("x", json!({ "response_format": format })));
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(param)), "{}", reply.text);
    }
}

/// A reply that is held to a shape is as exact as any: streamed or not, with whatever beside it.
#[test]
fn the_same_request_gives_the_same_json() {
    let server = start();
    let format = json!({ "type": "json_schema", "json_schema": { "name": "pet", "schema": schema() } });
    let once = content(&server, format.clone(), 9);
    let both = std::thread::scope(|scope| {
        let again: Vec<_> = (0..3).map(|_| scope.spawn(|| content(&server, format.clone(), 9))).collect();
        again.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(both.iter().all(|text| *text == once));
}

/// What a grammar forces is guessed and verified with other tokens; guesses change no byte.
#[test]
fn guesses_change_no_byte_of_what_is_held_to_a_shape() {
    let server = start();
    for seed in 0..4 {
        let told = |speculation: Value| {
            let format = json!({ "type": "json_schema", "json_schema": { "name": "pet", "schema": schema() } });
            let asked = json!({ "response_format": format, "max_tokens": 400, "seed": seed, "speculation": speculation,
                "logprobs": true });
            server.post("/v1/chat/completions", &chat("Say it", asked)).fine()["choices"].clone()
        };
        let without = told(json!("off"));
        for speculation in [json!("auto"), json!(1), json!(4), json!(16)] {
            assert_eq!(told(speculation.clone()), without, "{seed} {speculation}");
        }
    }
    let engine = server.engine();
    let count = |name: &str| engine["counters"][name].as_u64().unwrap();
    assert!(count("drafted") > 0 && count("accepted") > 0, "{engine}");
}
