//! Keys and origins.

use serde_json::json;
use tessera_server::{ApiKeys, Settings};

use crate::support::{Tiny, agent, chat, read, start, start_with};

#[test]
fn only_who_has_a_key_may_ask() {
    let keys = ApiKeys::new(["secret".to_owned()]).unwrap();
    let server = start_with(&["tiny"], Tiny::default(), Settings { keys, ..Settings::default() });
    let body = chat("x", json!({ "max_tokens": 1 }));
    let status = |headers: &[(&str, &str)]| server.post_with("/v1/chat/completions", &body, headers).status;
    assert_eq!(status(&[("authorization", "Bearer secret")]), 200);
    assert_eq!(status(&[("x-api-key", "secret")]), 200);
    assert_eq!((status(&[]), status(&[("authorization", "Bearer other")])), (401, 401));
    let refused = server.post("/v1/messages", &body);
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &json!("authentication_error")));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    for path in ["/v1/models", "/metrics", "/v1/engine", "/v1/engine/events", "/v1/nothing", "/v1/models/tiny"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    for path in ["/health", "/", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn web_pages_of_other_origins_may_ask_where_they_are_named() {
    let named = Settings { cors_origins: vec!["https://page.example".to_owned()], ..Settings::default() };
    let server = start_with(&["tiny"], Tiny::default(), named);
    let preflight = |address: &str, origin: &str| {
        let request = agent().options(format!("http://{address}/v1/chat/completions")).header("origin", origin);
        read(request.header("access-control-request-method", "POST").call())
    };
    let allowed = preflight(&server.address, "https://page.example");
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, Some("https://page.example")));
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("authorization"));
    let asked = server.post_with(
        "/v1/chat/completions",
        &chat("x", json!({ "max_tokens": 1 })),
        &[("origin", "https://page.example")],
    );
    assert_eq!((asked.status, asked.header("access-control-allow-origin")), (200, Some("https://page.example")));
    let other = preflight(&server.address, "https://other.example");
    assert_eq!((other.status, other.header("access-control-allow-origin")), (405, None));
    let closed = start();
    let other = preflight(&closed.address, "https://page.example");
    assert_eq!((other.status, other.header("access-control-allow-origin")), (405, None));
}
