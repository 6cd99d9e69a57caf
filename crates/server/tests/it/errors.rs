//! What cannot be answered is refused by name, in each API's own shape.

use serde_json::{Value, json};

use crate::support::{Running, Tiny, agent, chat, completion, read, start, start_with, with};
use tessera_server::Settings;

/// Posts and gives the message and the field it is about.
fn refused(server: &Running, path: &str, body: &Value) -> (String, String) {
    let reply = server.post(path, body);
    assert_eq!(reply.status, 400, "{body}: {}", reply.text);
    let error = reply.json()["error"].clone();
    assert_eq!(error["type"], "invalid_request_error");
    (error["message"].as_str().unwrap().to_owned(), error["param"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn every_field_that_is_unknown_wrong_or_not_supported_is_named() {
    let server = start();
    let table = [
        (json!({ "temprature": 1 }), "temprature", "unknown field `temprature`"),
        (json!({ "temperature": 3 }), "temperature", "`temperature` is 3; it must be a number from 0 to 2"),
        (json!({ "temperature": "hot" }), "temperature", "it must be a number"),
        (json!({ "top_p": 0 }), "top_p", "`top_p` is 0"),
        (json!({ "n": 0 }), "n", "from 1 to 128"),
        (json!({ "n": 1.5 }), "n", "a whole number"),
        (json!({ "max_tokens": 0 }), "max_tokens", "from 1"),
        (json!({ "seed": "x" }), "seed", "a whole number of 64 bits"),
        (json!({ "stop": [1] }), "stop", "a string or an array of strings"),
        (json!({ "stop": "" }), "stop", "1 to 1024 bytes"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias", "token ids"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias", "from -100 to 100"),
        (json!({ "top_logprobs": 3 }), "top_logprobs", "`logprobs` is not true"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs", "from 0 to 20"),
        (json!({ "store": true }), "store", "keeps no replies"),
        (json!({ "modalities": ["audio"] }), "modalities", "text only"),
        (json!({ "audio": { "voice": "x" } }), "audio", "text only"),
        (json!({ "functions": [] }), "functions", "use `tools`"),
        (json!({ "stream_options": { "include_usage": true } }), "stream_options", "streamed"),
        (json!({ "stream": true, "stream_options": { "odd": 1 } }), "stream_options.odd", "unknown field"),
        (json!({ "response_format": { "type": "yaml" } }), "response_format.type", "one of `text`"),
        (json!({ "response_format": { "type": "json_schema" } }), "response_format.schema", "is missing"),
        (json!({ "tool_choice": "required" }), "tool_choice", "needs `tools`"),
        (json!({ "tools": [{ "type": "web_search" }] }), "tools[0].type", "`function`"),
        (json!({ "messages": [] }), "messages", "is empty"),
        (json!({ "messages": null }), "messages", "is missing"),
        (json!({ "messages": [{ "role": "king", "content": "x" }] }), "messages[0].role", "one of"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content", "is missing"),
        (json!({ "messages": [{ "role": "user", "content": "x", "odd": 1 }] }), "messages[0].odd", "unknown field"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            "messages[0].content[0].type",
            "read text only",
        ),
        (json!({ "speculation": 17 }), "speculation", "from 1 to 16"),
    ];
    for (more, param, message) in table {
        let (said, about) = refused(&server, "/v1/chat/completions", &chat("x", more.clone()));
        assert!(said.contains(message), "{more}: {said}");
        assert_eq!(about, param, "{said}");
    }
    let table = [
        (json!({ "best_of": 2 }), "best_of"),
        (json!({ "echo": true }), "echo"),
        (json!({ "suffix": "x" }), "suffix"),
        (json!({ "prompt": { "a": 1 } }), "prompt"),
        (json!({ "prompt": [1, -1] }), "prompt"),
        (json!({ "prompt": null }), "prompt"),
        (json!({ "messages": [] }), "messages"),
    ];
    for (more, param) in table {
        assert_eq!(refused(&server, "/v1/completions", &completion("x", more)).1, param);
    }
    let table = [
        (json!({ "input": null }), "input"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": [{ "type": "computer_call" }] }), "input[0].type"),
        (json!({ "store": true }), "store"),
        (json!({ "previous_response_id": "resp_1" }), "previous_response_id"),
        (json!({ "include": ["file_search_call.results"] }), "include"),
        (json!({ "truncation": "auto" }), "truncation"),
        (json!({ "max_tokens": 3 }), "max_tokens"),
    ];
    for (more, param) in table {
        let body = with(json!({ "model": "tiny", "input": "x" }), more);
        assert_eq!(refused(&server, "/v1/responses", &body).1, param);
    }
}

#[test]
fn anthropic_has_its_own_shape() {
    let server = start();
    let good = json!({ "model": "tiny", "max_tokens": 3, "messages": [{ "role": "user", "content": "x" }] });
    let table = [
        (json!({ "max_tokens": null }), "`max_tokens` is missing"),
        (json!({ "n": 2 }), "unknown field `n`"),
        (json!({ "temperature": 1.5 }), "from 0 to 1"),
        (json!({ "messages": [] }), "is empty"),
        (json!({ "messages": [{ "role": "system", "content": "x" }] }), "`user`, `assistant`"),
        (
            json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "assistant", "content": [{ "type": "thinking", "thinking": "y" }] }] }),
            "holds more",
        ),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "image", "source": {} }] }] }), "read text only"),
        (json!({ "mcp_servers": [{}] }), "`mcp_servers` is not supported"),
        (json!({ "tool_choice": { "type": "any" } }), "needs `tools`"),
        (
            json!({ "tools": [{ "name": "f", "input_schema": {} }], "tool_choice": { "type": "tool", "name": "g" } }),
            "names `g`",
        ),
    ];
    for (more, message) in table {
        let reply = server.post("/v1/messages", &with(good.clone(), more.clone()));
        let object = reply.json();
        assert_eq!((reply.status, &object["type"]), (400, &json!("error")), "{more}: {object}");
        assert_eq!(object["error"]["type"], "invalid_request_error");
        assert!(object["error"]["message"].as_str().unwrap().contains(message), "{object}");
    }
    let absent = server.post("/v1/messages", &with(good, json!({ "model": "other" })));
    assert_eq!((absent.status, &absent.json()["error"]["type"]), (404, &json!("not_found_error")));
}

#[test]
fn bodies_that_are_no_json_objects_are_refused() {
    let server = start();
    let post = |kind: &str, body: &str| {
        read(agent().post(server.url("/v1/chat/completions")).header("content-type", kind).send(body))
    };
    for body in ["", "{", "[]", "\"x\"", "nul", "{\"model\": \"tiny\"} x"] {
        let reply = post("application/json", body);
        assert_eq!(reply.status, 400, "{body}: {}", reply.text);
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    // Deeper than any sound request: refused, not followed.
    let deep = "[".repeat(100_000);
    assert_eq!(post("application/json", &format!("{{\"messages\": {deep}")).status, 400);
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        assert_eq!(post(kind, "{}").status, 415);
    }
    assert_eq!(post("Application/JSON; charset=utf-8", "{}").json()["error"]["param"], "messages");
}

#[test]
fn wrong_places_and_methods_say_so() {
    let server = start();
    let nowhere = server.get("/v1/nothing");
    assert_eq!((nowhere.status, &nowhere.json()["error"]["code"]), (404, &json!("not_found")));
    let method = server.get("/v1/chat/completions");
    assert_eq!((method.status, &method.json()["error"]["code"]), (405, &json!("method_not_allowed")));
    let anthropic = server.get("/v1/messages");
    assert_eq!((anthropic.status, &anthropic.json()["type"]), (405, &json!("error")));
}

#[test]
fn models_must_be_there_and_able() {
    let server = start_with(&["bare", "tiny", "later"], Tiny::default(), Settings::default());
    let ask = |model: Value| {
        let body = json!({ "model": model, "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 });
        server.post("/v1/chat/completions", &body)
    };
    assert_eq!(ask(json!("tiny")).status, 200);
    let unknown = ask(json!("other"));
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert!(unknown.text.contains("`bare`, `tiny`, `later`"), "{}", unknown.text);
    assert_eq!(ask(json!("later")).status, 404);
    let which = ask(Value::Null);
    assert_eq!((which.status, &which.json()["error"]["param"]), (400, &json!("model")));
    let bare = ask(json!("bare"));
    assert!(bare.status == 400 && bare.text.contains("no chat template"), "{}", bare.text);
    let continued = server.post("/v1/completions", &json!({ "model": "bare", "prompt": "x", "max_tokens": 1 }));
    assert_eq!(continued.status, 200);
    // What does not fit is refused before anything is computed.
    let long = json!({ "model": "tiny", "prompt": vec![10; 3000] });
    let long = server.post("/v1/completions", &long);
    assert_eq!((long.status, &long.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    let odd = server.post("/v1/completions", &json!({ "model": "tiny", "prompt": [512] }));
    assert!(odd.status == 400 && odd.text.contains("token 512 does not exist"), "{}", odd.text);
    let bias = json!({ "model": "tiny", "prompt": "x", "logit_bias": { "512": 1 } });
    assert_eq!(server.post("/v1/completions", &bias).status, 400);
}
