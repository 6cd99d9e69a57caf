//! `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::support::{chat, start};

/// Puts the pieces of one choice together.
fn joined(chunks: &[Value], index: usize) -> String {
    let of_choice = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index);
    of_choice.filter_map(|c| c["delta"]["content"].as_str()).collect()
}

#[test]
fn a_reply_has_all_its_parts() {
    let server = start();
    let request = chat("Say something", json!({ "max_tokens": 12, "seed": 7, "ignore_eos": true }));
    let reply = server.post("/v1/chat/completions", &request);
    let object = reply.fine();
    assert!(object["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&object["object"], &object["model"]), (&json!("chat.completion"), &json!("tiny")));
    assert!(object["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = &object["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["index"], &choice["logprobs"]),
        (&json!("length"), &json!(0), &Value::Null)
    );
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    let usage = &object["usage"];
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert!(prompt > 10, "{usage}");
    assert_eq!((&usage["completion_tokens"], &usage["total_tokens"]), (&json!(12), &json!(prompt + 12)));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(reply.header("x-request-id").unwrap().starts_with("req_"));
}

#[test]
fn chunks_join_to_the_reply_that_is_not_streamed() {
    let server = start();
    let asked = json!({ "max_completion_tokens": 20, "seed": 3, "n": 3, "logprobs": true, "top_logprobs": 2 });
    let mut request = chat("Tell me", asked);
    let whole = server.post("/v1/chat/completions", &request).fine();
    request["stream"] = json!(true);
    request["stream_options"] = json!({ "include_usage": true });
    let mut chunks = server.post("/v1/chat/completions", &request).chunks();
    let last = chunks.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert!(
        chunks.iter().all(|c| c["usage"].is_null() && c["object"] == "chat.completion.chunk" && c["id"] == last["id"])
    );
    for index in 0..3 {
        let expected = &whole["choices"][index];
        assert_eq!(joined(&chunks, index), expected["message"]["content"].as_str().unwrap());
        let own: Vec<&Value> =
            chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index).collect();
        assert_eq!(own[0]["delta"]["role"], "assistant");
        let reasons: Vec<&Value> = own.iter().map(|c| &c["finish_reason"]).filter(|r| !r.is_null()).collect();
        assert_eq!(reasons, [&expected["finish_reason"]]);
        let logprobs: Vec<&Value> = own.iter().filter_map(|c| c["logprobs"]["content"].as_array()).flatten().collect();
        let all: Vec<&Value> = expected["logprobs"]["content"].as_array().unwrap().iter().collect();
        assert_eq!(logprobs, all);
        assert!(all.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
        assert!(all.iter().all(|token| token["logprob"].as_f64().unwrap() <= 0.0 && token["bytes"].is_array()));
    }
    // Each reply has a seed of its own, and the first the one that was asked for.
    let texts: Vec<&Value> = (0..3).map(|i| &whole["choices"][i]["message"]["content"]).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    let alone = server.post("/v1/chat/completions", &chat("Tell me", json!({ "max_tokens": 20, "seed": 3 }))).fine();
    assert_eq!(&alone["choices"][0]["message"]["content"], texts[0]);
}

#[test]
fn stop_strings_end_a_reply_and_are_no_part_of_it() {
    let server = start();
    let request = |more| server.post("/v1/chat/completions", &chat("Go", more)).fine();
    let free = request(json!({ "max_tokens": 30, "seed": 5, "ignore_eos": true }));
    let text = free["choices"][0]["message"]["content"].as_str().unwrap();
    let middle: String = text.chars().skip(8).take(3).collect();
    assert_eq!(middle.chars().count(), 3, "{text:?}");
    for stop in [json!(middle), json!(["never in any text", middle])] {
        let cut = request(json!({ "max_tokens": 30, "seed": 5, "ignore_eos": true, "stop": stop }));
        let expected = text.split(&middle).next().unwrap();
        assert_eq!(cut["choices"][0]["message"]["content"], expected);
        assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn bias_bans_and_forces_tokens() {
    let server = start();
    let forced = json!({ "max_tokens": 3, "logit_bias": { "65": 100 }, "temperature": 0 });
    let object = server.post("/v1/chat/completions", &chat("Go", forced)).fine();
    assert_eq!(object["choices"][0]["message"]["content"], "AAA");
    let banned = json!({ "max_tokens": 3, "logit_bias": { "65": 100, "66": 60, "67": -100 }, "temperature": 0, "logprobs": true });
    let object = server.post("/v1/chat/completions", &chat("Go", banned)).fine();
    assert_eq!(object["choices"][0]["message"]["content"], "AAA");
}

#[test]
fn a_prompt_that_came_before_is_taken_from_the_cache() {
    let server = start();
    let long = "all the words of a long text ".repeat(20);
    let request = chat(&long, json!({ "max_tokens": 4, "temperature": 0 }));
    let first = server.post("/v1/chat/completions", &request).fine();
    let second = server.post("/v1/chat/completions", &request).fine();
    assert_eq!(first["choices"][0]["message"], second["choices"][0]["message"]);
    let cached = |object: &Value| object["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(&first), 0);
    assert!(cached(&second) >= 64, "{second}");
}

#[test]
fn content_may_come_in_parts_and_null_is_as_good_as_missing() {
    let server = start();
    let text = |messages: Value| {
        let request = json!({
            "model": "tiny", "messages": messages, "max_tokens": 5, "seed": 1, "tools": null, "stop": null, "n": null,
            "user": "somebody", "metadata": { "a": "b" }, "store": false,
        });
        server.post("/v1/chat/completions", &request).fine()["choices"][0]["message"]["content"].clone()
    };
    let parts = json!([{ "type": "text", "text": "Hello " }, { "type": "text", "text": "there" }]);
    let one = text(json!([{ "role": "developer", "content": "Be short" }, { "role": "user", "content": parts }]));
    let other =
        text(json!([{ "role": "system", "content": "Be short" }, { "role": "user", "content": "Hello there" }]));
    assert_eq!(one, other);
}
