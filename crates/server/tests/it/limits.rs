//! Queues, bodies and times have limits, and each says so by its status.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tessera_engine::serving::Options;
use tessera_server::Settings;

use crate::support::{Running, Tiny, completion, start_with, with};

fn slow(options: Options, settings: Settings) -> Running {
    start_with(&["slow"], Tiny { options, ..Tiny::default() }, settings)
}

/// A request that takes a second at least.
fn long(more: Value) -> Value {
    with(completion("x", json!({ "model": "slow", "max_tokens": 50, "ignore_eos": true })), more)
}

#[test]
fn a_full_queue_is_429_with_a_time_to_retry() {
    let server = slow(Options { slots: 1, queue: 1, ..Options::default() }, Settings::default());
    thread::scope(|scope| {
        let first = scope.spawn(|| server.post("/v1/completions", &long(json!({}))).status);
        server.wait_until("computing", |e| e["running"] == 1);
        let second = scope.spawn(|| server.post("/v1/completions", &long(json!({}))).status);
        server.wait_until("waiting", |e| e["waiting"] == 1);
        for stream in [false, true] {
            let refused = server.post("/v1/completions", &long(json!({ "stream": stream })));
            assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
            assert_eq!(refused.json()["error"]["code"], "queue_full");
        }
        let message = json!({ "model": "slow", "max_tokens": 1, "messages": [{ "role": "user", "content": "x" }] });
        let refused = server.post("/v1/messages", &message);
        assert_eq!((refused.status, &refused.json()["error"]["type"]), (429, &json!("rate_limit_error")));
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (200, 200));
    });
    // A request that is refused in part leaves nothing behind.
    assert_eq!(server.post("/v1/completions", &long(json!({ "n": 8, "max_tokens": 1 }))).status, 429);
    server.wait_idle();
}

/// Somebody who begins a request and does not go on holds nothing for long; nor does one who says nothing.
#[test]
fn connections_without_a_request_are_let_go() {
    let server = slow(Options::default(), Settings { head_time: Duration::from_millis(300), ..Settings::default() });
    for begun in ["", "GET /health HTTP/1.1\r\nhost: x\r\n"] {
        let began = Instant::now();
        let mut socket = TcpStream::connect(&server.address).unwrap();
        socket.write_all(begun.as_bytes()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).unwrap();
        assert!(!said.contains("200") && began.elapsed() > Duration::from_millis(250), "{begun:?}: {said:?}");
    }
    // A reply may take longer than that.
    assert_eq!(server.post("/v1/completions", &long(json!({ "max_tokens": 30 }))).status, 200);
}

#[test]
fn bodies_have_a_largest_size() {
    let server = slow(Options::default(), Settings { body_bytes_max: 1000, ..Settings::default() });
    let over = server.post("/v1/completions", &long(json!({ "prompt": "x".repeat(1000) })));
    assert_eq!((over.status, &over.json()["error"]["code"]), (413, &json!("request_too_large")));
    let anthropic = server.post("/v1/messages", &json!({ "system": "x".repeat(1000) }));
    assert_eq!((anthropic.status, &anthropic.json()["error"]["type"]), (413, &json!("request_too_large")));
    assert_eq!(server.post("/v1/completions", &long(json!({ "max_tokens": 1 }))).status, 200);
}

#[test]
fn more_replies_than_the_server_gives_are_refused() {
    let server = slow(Options::default(), Settings { choices_max: 4, ..Settings::default() });
    let refused = server.post("/v1/completions", &long(json!({ "n": 2, "prompt": ["a", "b", "c"] })));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("n")));
}

#[test]
fn a_deadline_ends_a_reply_where_it_is() {
    let settings = Settings { deadline: Some(Duration::from_millis(400)), ..Settings::default() };
    let server = slow(Options { slots: 1, ..Options::default() }, settings);
    let start = Instant::now();
    thread::scope(|scope| {
        let cut = scope.spawn(|| server.post("/v1/completions", &long(json!({ "max_tokens": 2000 }))).fine());
        server.wait_until("computing", |e| e["running"] == 1);
        // This one waits behind the first, until its own time is over.
        let never = server.post("/v1/completions", &long(json!({ "deadline_ms": 50 })));
        assert_eq!((never.status, &never.json()["error"]["code"]), (504, &json!("timeout")));
        let cut = cut.join().unwrap();
        let tokens = cut["usage"]["completion_tokens"].as_u64().unwrap();
        assert!((1..100).contains(&tokens), "{cut}");
        assert_eq!(cut["choices"][0]["finish_reason"], "length");
    });
    assert!(start.elapsed() < Duration::from_secs(20));
    server.wait_idle();
}
