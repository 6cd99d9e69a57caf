//! The first promise, through the socket: a reply depends on its request alone.

use std::thread;

use serde_json::{Value, json};

use crate::support::{Running, Tiny, start, start_with};
use tessera_engine::serving::Options;
use tessera_server::Settings;

/// Different lengths, parameters, and shared beginnings.
fn requests() -> Vec<Value> {
    let long = "a beginning that several have in common ".repeat(8);
    (0..12)
        .map(|i| {
            let text = if i % 3 == 0 { format!("{long}{i}") } else { format!("request {i} {}", "word ".repeat(i * 5)) };
            json!({
                "model": "tiny",
                "messages": [{ "role": "user", "content": text }],
                "max_tokens": 10 + 3 * i,
                "seed": i,
                "ignore_eos": true,
                "temperature": if i % 4 == 0 { 0.0 } else { 0.9 },
                "top_k": if i % 2 == 0 { 0 } else { 20 },
                "logprobs": true,
                "top_logprobs": 1,
            })
        })
        .collect()
}

/// Text and log-probabilities of a reply.
fn told(server: &Running, mut request: Value, stream: bool) -> (String, Vec<Value>) {
    request["stream"] = json!(stream);
    let reply = server.post("/v1/chat/completions", &request);
    if !stream {
        let object = reply.fine();
        let choice = &object["choices"][0];
        let content = choice["message"]["content"].as_str().unwrap();
        return (content.to_owned(), choice["logprobs"]["content"].as_array().unwrap().clone());
    }
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    for chunk in reply.chunks() {
        let choice = &chunk["choices"][0];
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        logprobs.extend(choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
    }
    (text, logprobs)
}

#[test]
fn the_same_alone_and_among_others_streamed_and_not() {
    let requests = requests();
    let alone: Vec<_> = {
        let server = start();
        requests.iter().map(|request| told(&server, request.clone(), false)).collect()
    };
    assert!(alone.iter().enumerate().all(|(i, (text, tokens))| !text.is_empty() && tokens.len() == 10 + 3 * i));
    // A small cache, so that requests are also pre-empted; and few tokens a step.
    let options = Options { slots: 6, step_tokens: 48, ..Options::default() };
    let server = start_with(&["tiny"], Tiny { options, cache: 1024, ..Tiny::default() }, Settings::default());
    for round in 0..2 {
        thread::scope(|scope| {
            for (i, (request, alone)) in requests.iter().zip(&alone).enumerate() {
                let server = &server;
                scope.spawn(move || {
                    let among = told(server, request.clone(), (i + round) % 2 == 0);
                    assert_eq!(&among, alone, "request {i} in round {round}");
                });
            }
        });
    }
    server.wait_idle();
    let engine = server.engine();
    assert!(engine["counters"]["cached_tokens"].as_u64().unwrap() > 0, "{engine}");
}

#[test]
fn without_a_seed_replies_differ() {
    let server = start();
    let mut request = requests()[1].clone();
    request.as_object_mut().unwrap().remove("seed");
    assert_ne!(told(&server, request.clone(), false), told(&server, request, false));
}
