//! `/v1/responses`.

use serde_json::{Value, json};

use crate::support::{start, with};

fn request(more: Value) -> Value {
    with(
        json!({ "model": "tiny", "input": "Say something", "max_output_tokens": 12, "seed": 4, "ignore_eos": true }),
        more,
    )
}

#[test]
fn a_response_has_all_its_parts() {
    let server = start();
    let object = server.post("/v1/responses", &request(json!({ "metadata": { "a": "b" }, "store": false }))).fine();
    assert_eq!((&object["object"], &object["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(object["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(object["metadata"], json!({ "a": "b" }));
    let item = &object["output"][0];
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(item["content"][0]["type"], "output_text");
    let usage = &object["usage"];
    assert_eq!(usage["output_tokens"], 12);
    assert_eq!(usage["total_tokens"].as_u64().unwrap(), 12 + usage["input_tokens"].as_u64().unwrap());
}

#[test]
fn events_come_in_order_and_join_to_the_response() {
    let server = start();
    let asked = json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 1 });
    let whole = server.post("/v1/responses", &request(asked.clone())).fine();
    let events = server.post("/v1/responses", &with(request(asked), json!({ "stream": true }))).typed();
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    let deltas = kinds.iter().filter(|k| **k == "response.output_text.delta").count();
    assert!(deltas > 1);
    let mut expected =
        vec!["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"];
    expected.extend(std::iter::repeat_n("response.output_text.delta", deltas));
    expected.extend([
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]);
    assert_eq!(kinds, expected);
    let numbers: Vec<u64> = events.iter().map(|e| e["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let text: String = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta")
        .map(|e| e["delta"].as_str().unwrap())
        .collect();
    let (last, part) = (&events.last().unwrap()["response"], &whole["output"][0]["content"][0]);
    assert_eq!(text, part["text"].as_str().unwrap());
    assert_eq!(last["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(last["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    assert!(!part["logprobs"].as_array().unwrap().is_empty());
    let id = &events[2]["item"]["id"];
    assert!(events[3..events.len() - 2].iter().all(|e| e["item_id"] == *id));
}

#[test]
fn items_are_the_same_conversation_as_chat_messages() {
    let server = start();
    let items = json!([
        { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "One" }] },
        { "role": "assistant", "content": [{ "type": "output_text", "text": "Two", "annotations": [] }] },
        { "role": "user", "content": "Three" },
    ]);
    let response =
        json!({ "model": "tiny", "instructions": "Count", "input": items, "seed": 1, "max_output_tokens": 8 });
    let response = server.post("/v1/responses", &response).fine();
    let messages = json!([
        { "role": "system", "content": "Count" },
        { "role": "user", "content": "One" },
        { "role": "assistant", "content": "Two" },
        { "role": "user", "content": "Three" },
    ]);
    let chat = json!({ "model": "tiny", "messages": messages, "seed": 1, "max_tokens": 8 });
    let chat = server.post("/v1/chat/completions", &chat).fine();
    assert_eq!(response["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"]);
    assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
}
