//! Anthropic's `/v1/messages`.

use serde_json::{Value, json};

use tessera_server::Settings;

use crate::support::{Tiny, start, start_with, with};

fn request(more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Say something" }]);
    with(json!({ "model": "tiny", "max_tokens": 12, "messages": messages, "seed": 4 }), more)
}

#[test]
fn a_message_has_all_its_parts() {
    let server = start();
    let object = server.post("/v1/messages", &request(json!({ "metadata": { "user_id": "x" } }))).fine();
    assert!(object["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        (&object["type"], &object["role"], &object["model"]),
        (&json!("message"), &json!("assistant"), &json!("tiny"))
    );
    assert_eq!(object["content"][0]["type"], "text");
    assert_eq!((&object["stop_reason"], &object["stop_sequence"]), (&json!("max_tokens"), &Value::Null));
    assert_eq!(object["usage"]["output_tokens"], 12);
    let counted = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "Say something" }] });
    let counted = server.post("/v1/messages/count_tokens", &counted).fine();
    assert_eq!(object["usage"]["input_tokens"], counted["input_tokens"]);
}

#[test]
fn events_come_in_order_and_join_to_the_message() {
    let server = start();
    let whole = server.post("/v1/messages", &request(json!({}))).fine();
    let events = server.post("/v1/messages", &request(json!({ "stream": true }))).typed();
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).filter(|k| *k != "ping").collect();
    let deltas = kinds.iter().filter(|k| **k == "content_block_delta").count();
    assert!(deltas > 1);
    let mut expected = vec!["message_start", "content_block_start"];
    expected.extend(std::iter::repeat_n("content_block_delta", deltas));
    expected.extend(["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(kinds, expected);
    assert!(events.iter().any(|e| e["type"] == "ping"));
    let text: String = events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
    assert_eq!(text, whole["content"][0]["text"].as_str().unwrap());
    let start = &events[0]["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
    let end = events.iter().find(|e| e["type"] == "message_delta").unwrap();
    assert_eq!((&end["delta"]["stop_reason"], &end["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(12)));
    let input =
        |usage: &Value| usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(input(&start["usage"]), input(&whole["usage"]));
}

#[test]
fn blocks_and_system_texts_are_the_same_conversation_as_chat_messages() {
    let server = start();
    let text = |text: &str| json!([{ "type": "text", "text": text, "cache_control": { "type": "ephemeral" } }]);
    let messages = json!([
        { "role": "user", "content": text("One") },
        { "role": "assistant", "content": "Two" },
        { "role": "user", "content": "Three" },
    ]);
    let asked = json!({ "system": text("Count"), "messages": messages, "model": "tiny", "max_tokens": 8, "seed": 1 });
    let message = server.post("/v1/messages", &asked).fine();
    let messages = json!([
        { "role": "system", "content": "Count" },
        { "role": "user", "content": "One" },
        { "role": "assistant", "content": "Two" },
        { "role": "user", "content": "Three" },
    ]);
    let chat = json!({ "model": "tiny", "messages": messages, "seed": 1, "max_tokens": 8 });
    let chat = server.post("/v1/chat/completions", &chat).fine();
    assert_eq!(message["content"][0]["text"], chat["choices"][0]["message"]["content"]);
}

#[test]
fn a_reply_that_is_begun_goes_on() {
    let server = start();
    let reply = |messages: Value, tokens: usize| {
        let greedy = json!({ "temperature": 0, "max_tokens": tokens, "messages": messages });
        let message = server.post("/v1/messages", &request(greedy)).fine();
        message["content"][0]["text"].as_str().unwrap().to_owned()
    };
    let count = |messages: Value| {
        let counted =
            server.post("/v1/messages/count_tokens", &json!({ "model": "tiny", "messages": messages })).fine();
        counted["input_tokens"].as_u64().unwrap()
    };
    let user = |n: usize| json!({ "role": "user", "content": format!("Say {n}") });
    let begun = |half: &str| json!({ "role": "assistant", "content": half });
    // A text that is cut into the tokens that it was made of.
    let cuts_alike = |(n, half): &(usize, String)| {
        half.is_ascii() && count(json!([user(*n), begun(half)])) == count(json!([user(*n)])) + 2
    };
    let (n, half) = (0..100).map(|n| (n, reply(json!([user(n)]), 2))).find(cuts_alike).expect("one in a hundred");
    let whole = reply(json!([user(n)]), 8);
    assert_eq!(half.clone() + &reply(json!([user(n), begun(&half)]), 6), whole);
    let thought = json!({ "role": "assistant", "content": [{ "type": "thinking", "thinking": "hm" }] });
    for wrong in [json!([begun(&half)]), json!([user(n), thought])] {
        assert_eq!(server.post("/v1/messages", &request(json!({ "messages": wrong }))).status, 400);
    }
}

/// A family that heads the parts of a reply, and one that does not.
#[test]
fn a_reply_that_cannot_be_begun_says_why() {
    let server = start_with(&["gpt_oss", "glm4"], Tiny::default(), Settings::default());
    for (model, why) in [("gpt_oss", "heads each part"), ("glm4", "")] {
        let messages = json!([{ "role": "user", "content": "x" }, { "role": "assistant", "content": "y" }]);
        let reply = server.post("/v1/messages", &request(json!({ "model": model, "messages": messages })));
        let (status, expected) =
            if why.is_empty() { (200, true) } else { (400, reply.json().to_string().contains(why)) };
        assert_eq!((reply.status, expected), (status, true), "{}", reply.json());
    }
}

#[test]
fn stop_sequences_are_named() {
    let server = start();
    let free = server.post("/v1/messages", &request(json!({}))).fine();
    let text = free["content"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(2).collect();
    let cut = server.post("/v1/messages", &request(json!({ "stop_sequences": ["@@@", stop] }))).fine();
    assert_eq!((&cut["stop_reason"], &cut["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    assert_eq!(cut["content"][0]["text"], text.split(&stop).next().unwrap());
}
