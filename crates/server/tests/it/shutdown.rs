//! A server that is told to stop finishes what it has, or says that it did not.

use std::{thread, time::Duration};

use serde_json::{Value, json};
use tessera_server::{Closing, Settings};

use crate::support::{Tiny, completion, start, start_with, with};

fn slow(tokens: usize, more: Value) -> Value {
    with(completion("x", json!({ "model": "slow", "max_tokens": tokens, "ignore_eos": true, "seed": 1 })), more)
}

#[test]
fn an_idle_server_stops_at_once() {
    let server = start();
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.stop(), Closing { open: 0, cut_off: 0 });
}

#[test]
fn replies_that_are_begun_are_finished() {
    let server = start_with(&["slow"], Tiny::default(), Settings::default());
    thread::scope(|scope| {
        let whole = scope.spawn(|| server.post("/v1/completions", &slow(20, json!({}))).fine());
        let stream = scope.spawn(|| server.post("/v1/completions", &slow(20, json!({ "stream": true }))).chunks());
        server.wait_until("computing", |e| e["running"] == 2);
        server.switch().stop();
        let whole = whole.join().unwrap();
        assert_eq!(whole["usage"]["completion_tokens"], 20);
        let text: String =
            stream.join().unwrap().iter().map(|c| c["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(whole["choices"][0]["text"], text);
    });
    server.switch().stop(); // a second time does nothing more
    assert_eq!(server.stop(), Closing { open: 2, cut_off: 0 });
}

#[test]
fn what_takes_too_long_is_cut_off_and_says_so() {
    let settings = Settings { grace: Duration::from_millis(200), ..Settings::default() };
    let server = start_with(&["slow"], Tiny::default(), settings);
    thread::scope(|scope| {
        let whole = scope.spawn(|| server.post("/v1/completions", &slow(1500, json!({}))));
        let stream = scope.spawn(|| server.post("/v1/completions", &slow(1500, json!({ "stream": true }))));
        server.wait_until("computing", |e| e["running"] == 2);
        server.switch().stop();
        let whole = whole.join().unwrap();
        assert_eq!((whole.status, &whole.json()["error"]["code"]), (503, &json!("unavailable")));
        let stream = stream.join().unwrap();
        let last = stream.events().pop().unwrap().1;
        assert!(last.contains("cut off"), "{last}");
    });
    assert_eq!(server.stop(), Closing { open: 2, cut_off: 2 });
}
