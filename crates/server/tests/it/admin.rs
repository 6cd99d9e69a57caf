//! Models that come and go, health, metrics, the page, and the view of the engine.

use serde_json::{Value, json};
use tessera_server::Settings;

use crate::support::{Tiny, chat, completion, start, start_with};

#[test]
fn models_load_and_unload_by_name() {
    let server = start_with(&["tiny", "later", "broken"], Tiny::default(), Settings::default());
    let names = || -> Vec<String> {
        let list = server.get("/v1/models").fine();
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(), ["tiny"]);
    assert_eq!(server.get("/v1/models/tiny").fine()["object"], "model");
    assert_eq!(server.get("/v1/models/later").status, 404);
    let change = |what: &str, model: &str| server.post(&format!("/v1/models/{what}"), &json!({ "model": model }));
    assert_eq!(change("load", "later").fine(), json!({ "model": "later", "state": "loaded", "changed": true }));
    assert_eq!(change("load", "later").fine()["changed"], false);
    assert_eq!(names(), ["tiny", "later"]);
    let body = json!({ "model": "later", "prompt": "x", "max_tokens": 1 });
    assert_eq!(server.post("/v1/completions", &body).status, 200);
    assert_eq!(change("unload", "later").fine()["changed"], true);
    assert_eq!(server.post("/v1/completions", &body).status, 404);
    let broken = change("load", "broken");
    assert!(broken.status == 503 && broken.text.contains("its file is damaged"), "{}", broken.text);
    assert_eq!(change("load", "other").status, 404);
    // What did not load can be tried again.
    assert_eq!(change("load", "broken").status, 503);
    assert_eq!(change("unload", "tiny").fine()["replies_cut_off"], 0);
    let health = server.get("/health");
    assert_eq!((health.status, &health.json()["models_loaded"]), (503, &json!(0)));
    assert_eq!(change("load", "tiny").status, 200);
    assert_eq!(server.get("/health").fine()["status"], "ok");
}

#[test]
fn metrics_count_what_happened() {
    let server = start();
    server.post("/v1/chat/completions", &chat("x", json!({ "max_tokens": 5, "ignore_eos": true }))).fine();
    server.post("/v1/chat/completions", &chat("x", json!({ "odd": 5 })));
    server.wait_idle(); // an engine tells of a step when its events are out
    let reply = server.get("/metrics");
    assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let value = |line: &str| {
        let found = reply.text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {line} in\n{}", reply.text)).parse::<f64>().unwrap()
    };
    let route = r#"route="/v1/chat/completions""#;
    assert_eq!(value(&format!(r#"tessera_http_requests_total{{{route},status="200"}}"#)), 1.0);
    assert_eq!(value(&format!(r#"tessera_http_requests_total{{{route},status="400"}}"#)), 1.0);
    assert_eq!(value(r#"tessera_replies_total{model="tiny",finish="length"}"#), 1.0);
    assert_eq!(value(r#"tessera_first_token_seconds_count{model="tiny"}"#), 1.0);
    assert_eq!(value(r#"tessera_between_tokens_seconds_count{model="tiny"}"#), 4.0);
    assert_eq!(value(r#"tessera_reply_tokens_total{model="tiny"}"#), 5.0);
    assert_eq!(value(r#"tessera_submitted_total{model="tiny"}"#), 1.0);
    assert_eq!(value(r#"tessera_cache_pages{model="tiny"}"#), 64.0);
    assert!(reply.text.ends_with("# EOF\n"));
}

#[test]
fn the_engine_shows_itself() {
    let server = start_with(&["slow"], Tiny::default(), Settings::default());
    let body = completion("x", json!({ "model": "slow", "max_tokens": 100, "ignore_eos": true, "stream": true }));
    let reply = server.open("/v1/completions", &body);
    let busy = server.wait_until("computing", |e| e["batch_rows"] == 1);
    assert_eq!((&busy["kernel"], &busy["device"]), (&json!("plain for 1"), &json!("reference")));
    assert_eq!((&busy["cache"]["pages"], &busy["state"]), (&json!(64), &json!("loaded")));
    drop(reply);
    server.wait_idle();
    // The stream of it ends with the server.
    let address = server.address.clone();
    let url = format!("http://{address}/v1/engine/events");
    let response = crate::support::agent().get(url).call().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(response.into_body().into_reader()));
    let mut seen = 0;
    for line in lines {
        let line = line.unwrap();
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let value: Value = serde_json::from_str(data).unwrap();
        assert_eq!(value["models"][0]["name"], "slow");
        seen += 1;
        if seen == 3 {
            server.switch().stop();
        }
        assert!(seen < 10, "it goes on after the stop");
    }
    assert!(seen >= 3);
}

#[test]
fn the_page_and_the_document_are_there() {
    let server = start();
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'self'"));
    assert_eq!(server.get("/static/none.js").status, 404);
    let document = server.get("/openapi.json").fine();
    assert_eq!(document["openapi"], "3.1.0");
}
