//! The page at `/`, and its files under `/static/`, embedded in the binary.

use axum::{
    body::Body,
    extract::Path,
    http::{HeaderValue, header},
    response::Response,
};

use crate::problem::{Dialect, Kind, Problem};

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// What is served at `/`.
const INDEX: &str = include_str!("../page/index.html");

/// What is served under `/static/`: name, type and contents.
const FILES: [(&str, &str, &str); 8] = [
    ("style.css", STYLE, include_str!("../page/style.css")),
    ("icon.svg", IMAGE, include_str!("../page/icon.svg")),
    ("app.js", SCRIPT, include_str!("../page/app.js")),
    ("api.js", SCRIPT, include_str!("../page/api.js")),
    ("conversation.js", SCRIPT, include_str!("../page/conversation.js")),
    ("drawing.js", SCRIPT, include_str!("../page/drawing.js")),
    ("engine.js", SCRIPT, include_str!("../page/engine.js")),
    ("settings.js", SCRIPT, include_str!("../page/settings.js")),
];

/// `GET /`
pub(crate) async fn index() -> Response {
    contents(HTML, INDEX)
}
/// `GET /static/…`
pub(crate) async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => contents(kind, text),
        None => Problem::new(Kind::NotFound, "there is no such file").response(Dialect::OpenAi),
    }
}

fn contents(kind: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // Nothing of the page comes from elsewhere, and nobody else shows it.
    let policy = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
