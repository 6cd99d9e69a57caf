//! What a reply of a script with tools tells, read from streams to their end, by both APIs.

use serde_json::{Value, json};

use crate::{
    script::Script,
    support::{Running, with},
};

/// Whether thinking can be switched off.
fn thinks(model: &str) -> bool {
    !["hermes", "hermes+tokens", "llama3"].contains(&model)
}

/// A reply, whichever API told it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) thoughts: String,
    pub(crate) words: String,
    pub(crate) calls: Vec<(String, Value)>,
    pub(crate) finish: String,
    pub(crate) tokens: u64,
}

pub(crate) fn call(name: &str, arguments: Value) -> (String, Value) {
    (name.to_owned(), arguments)
}

/// The tools: `weather` takes a number of days, `time` takes nothing.
pub(crate) fn tools() -> Vec<(&'static str, Value)> {
    let days = json!({ "type": "object", "properties": { "days": { "type": "integer" } }, "required": ["days"] });
    vec![("weather", days), ("time", json!({ "type": "object", "properties": {} }))]
}

/// As chat completions, streamed; and not, which must be the same.
pub(crate) fn chat(server: &Running, (script, replies): (&Script, &[&str]), model: &str, more: Value) -> Told {
    let tool = |(name, schema): (&str, Value)| json!({ "type": "function", "function": { "name": name, "parameters": schema } });
    let tools: Vec<Value> = tools().into_iter().map(tool).collect();
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "Rain?" }], "max_tokens": 400, "tools": tools,
        "reasoning_effort": if thinks(model) { json!("none") } else { Value::Null } });
    let body = with(body, json!({ "logprobs": true }));
    let body = with(body, more);
    script.say(replies);
    let whole = server.post("/v1/chat/completions", &body).fine();
    let (choice, message) = (&whole["choices"][0], &whole["choices"][0]["message"]);
    let arguments = |text: &Value| serde_json::from_str(text.as_str().unwrap()).unwrap();
    let calls = message["tool_calls"].as_array().into_iter().flatten().map(|c| &c["function"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let at_once = Told {
        thoughts: text(&message["reasoning_content"]),
        words: text(&message["content"]),
        calls: calls.map(|c| (text(&c["name"]), arguments(&c["arguments"]))).collect(),
        finish: text(&choice["finish_reason"]),
        tokens: whole["usage"]["completion_tokens"].as_u64().unwrap(),
    };
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len() as u64, at_once.tokens, "{whole}");
    let attempts = script.attempts();
    server.wait_idle();

    script.say(replies);
    let more = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let mut chunks = server.post("/v1/chat/completions", &with(body, more)).chunks();
    let usage = chunks.pop().unwrap();
    assert_eq!(
        usage["usage"],
        with(whole["usage"].clone(), json!({ "prompt_tokens_details": usage["usage"]["prompt_tokens_details"] }))
    );
    let mut streamed = Told { tokens: usage["usage"]["completion_tokens"].as_u64().unwrap(), ..Told::default() };
    let (mut texts, mut drawn): (Vec<String>, _) = (Vec::new(), 0);
    for chunk in &chunks {
        let (choice, delta) = (&chunk["choices"][0], &chunk["choices"][0]["delta"]);
        streamed.thoughts += &text(&delta["reasoning_content"]);
        streamed.words += &text(&delta["content"]);
        streamed.finish += &text(&choice["finish_reason"]);
        drawn += choice["logprobs"]["content"].as_array().map_or(0, Vec::len);
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            if !call["id"].is_null() {
                assert_eq!(call["index"], texts.len());
                streamed.calls.push((text(&call["function"]["name"]), Value::Null));
                texts.push(String::new());
            }
            texts[call["index"].as_u64().unwrap() as usize] += call["function"]["arguments"].as_str().unwrap();
        }
    }
    streamed.calls.iter_mut().zip(&texts).for_each(|(call, text)| call.1 = serde_json::from_str(text).unwrap());
    assert_eq!((&streamed, drawn as u64, script.attempts()), (&at_once, at_once.tokens, attempts));
    server.wait_idle();
    streamed
}

/// As messages, streamed; and not, which must be the same.
pub(crate) fn messages(server: &Running, (script, replies): (&Script, &[&str]), model: &str, more: Value) -> Told {
    let tool = |(name, schema): (&str, Value)| json!({ "name": name, "input_schema": schema });
    let tools: Vec<Value> = tools().into_iter().map(tool).collect();
    let messages = json!([{ "role": "user", "content": "Rain?" }]);
    let mut body = json!({ "model": model, "messages": messages, "max_tokens": 400, "tools": tools });
    if thinks(model) {
        body["thinking"] = json!({ "type": "disabled" });
    }
    let body = with(body, more);
    script.say(replies);
    let mut whole = server.post("/v1/messages", &body).fine();
    let attempts = script.attempts();
    server.wait_idle();

    script.say(replies);
    let events = server.post("/v1/messages", &with(body, json!({ "stream": true }))).typed();
    let last = events.iter().find(|event| event["type"] == "message_delta").unwrap();
    assert_eq!(last["delta"]["stop_reason"], whole["stop_reason"]);
    let mut told = Told {
        finish: last["delta"]["stop_reason"].as_str().unwrap().to_owned(),
        tokens: last["usage"]["output_tokens"].as_u64().unwrap(),
        ..Told::default()
    };
    let blocks = blocks(&events);
    for block in &blocks {
        match block["type"].as_str().unwrap() {
            "text" => told.words += block["text"].as_str().unwrap(),
            "thinking" => told.thoughts += block["thinking"].as_str().unwrap(),
            _ => told.calls.push(call(block["name"].as_str().unwrap(), block["input"].clone())),
        }
    }
    whole["content"].as_array_mut().unwrap().iter_mut().for_each(without_id);
    assert_eq!(
        (json!(blocks), whole["usage"]["output_tokens"].as_u64()),
        (whole["content"].clone(), Some(told.tokens))
    );
    assert_eq!(script.attempts(), attempts);
    server.wait_idle();
    told
}

/// Ids are fresh in each reply.
fn without_id(block: &mut Value) {
    block.as_object_mut().unwrap().remove("id");
}

/// The blocks of a stream, put together: each is opened, told in pieces and closed before the next.
fn blocks(events: &[Value]) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let (mut open, mut input) = (None, String::new());
    for event in events {
        let index = event["index"].as_u64();
        match event["type"].as_str().unwrap() {
            "message_start" | "ping" | "message_delta" | "message_stop" => assert_eq!(open, None, "{event}"),
            "content_block_start" => {
                assert_eq!((open, index), (None, Some(blocks.len() as u64)), "{event}");
                open = index;
                blocks.push(event["content_block"].clone());
                without_id(blocks.last_mut().unwrap());
            }
            "content_block_delta" => {
                assert_eq!(open, index, "{event}");
                let (block, delta) = (blocks.last_mut().unwrap(), &event["delta"]);
                for key in ["text", "thinking"] {
                    if let Some(text) = delta[key].as_str() {
                        block[key] = json!(block[key].as_str().unwrap().to_owned() + text);
                    }
                }
                input += delta["partial_json"].as_str().unwrap_or_default();
            }
            "content_block_stop" => {
                assert_eq!(open.take(), index, "{event}");
                let block = blocks.last_mut().unwrap();
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&std::mem::take(&mut input)).unwrap();
                }
            }
            other => panic!("{other}"),
        }
    }
    blocks
}

/// By both APIs, which must tell the same, in their own words.
pub(crate) fn both(server: &Running, script: (&Script, &[&str]), model: &str) -> Told {
    let mut one = chat(server, script, model, json!({}));
    let other = messages(server, script, model, json!({}));
    let word = match other.finish.as_str() {
        "tool_use" => "tool_calls",
        "max_tokens" => "length",
        _ => "stop",
    };
    assert_eq!(one, Told { finish: word.to_owned(), ..other });
    one.finish.clear();
    one
}
