//! A client that goes away leaves no trace.

use std::{io::Write, net::TcpStream};

use serde_json::{Value, json};
use tessera_engine::serving::Options;
use tessera_server::Settings;

use crate::support::{Running, Tiny, completion, start_with, with};

fn server() -> Running {
    let options = Options { slots: 2, ..Options::default() };
    start_with(&["slow"], Tiny { options, ..Tiny::default() }, Settings::default())
}

/// A request that would take half a minute.
fn endless(more: Value) -> Value {
    with(completion("x", json!({ "model": "slow", "max_tokens": 1500, "ignore_eos": true })), more)
}

#[test]
fn a_stream_that_nobody_reads_any_more_frees_its_slot() {
    let server = server();
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"] {
        let body = match path {
            "/v1/completions" => endless(json!({ "stream": true, "n": 2 })),
            "/v1/responses" => json!({ "model": "slow", "input": "x", "stream": true, "ignore_eos": true }),
            // Without an end token among those that may come.
            "/v1/messages" => {
                json!({ "model": "slow", "messages": [{ "role": "user", "content": "x" }], "stream": true,
                "max_tokens": 1500, "output_config": { "format": { "type": "json_schema",
                    "schema": { "type": "string", "minLength": 1500 } } } })
            }
            _ => {
                json!({ "model": "slow", "messages": [{ "role": "user", "content": "x" }], "stream": true, "ignore_eos": true })
            }
        };
        let mut lines = server.open(path, &body);
        assert!(lines.any(|line| line.starts_with("data: ")));
        server.wait_until("computing", |e| e["running"].as_u64().unwrap() >= 1);
        drop(lines);
        server.wait_idle();
    }
    let finished = server.engine()["counters"]["finished"].clone();
    assert_eq!(finished["cancelled"], 5);
}

/// A connection that has asked for a reply, not streamed, which will not end by itself.
fn asking_for_an_endless_reply(address: &str) -> TcpStream {
    let body = endless(json!({})).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all((head + &body).as_bytes()).unwrap();
    socket
}

#[test]
fn a_reply_that_is_not_streamed_ends_with_its_connection() {
    let server = server();
    let socket = asking_for_an_endless_reply(&server.address);
    server.wait_until("computing", |e| e["running"] == 1);
    drop(socket);
    server.wait_idle();
    assert_eq!(server.engine()["counters"]["finished"]["cancelled"], 1);
}

#[test]
fn who_waits_in_the_queue_can_go_too() {
    let server = server();
    let running = server.open("/v1/completions", &endless(json!({ "stream": true, "n": 2 })));
    server.wait_until("computing", |e| e["running"] == 2);
    let socket = asking_for_an_endless_reply(&server.address);
    server.wait_until("waiting", |e| e["waiting"] == 1);
    drop(socket);
    server.wait_until("alone", |e| e["waiting"] == 0);
    drop(running);
    server.wait_idle();
}

/// Halves of requests, noise, and connections that say nothing hold nothing up.
#[test]
fn noise_on_the_socket_does_no_harm() {
    let server = server();
    for noise in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 10\r\n\r\n{",
        b"",
    ] {
        let mut socket = TcpStream::connect(&server.address).unwrap();
        socket.write_all(noise).unwrap();
    }
    assert_eq!(server.get("/health").status, 200);
    server.wait_idle();
}
