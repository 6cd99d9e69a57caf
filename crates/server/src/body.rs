//! The body of a request: JSON, of bounded length, in bounded time.

use std::{error::Error, time::Duration};

use axum::{
    body::{self, Body},
    extract::Request,
    http::{HeaderMap, header},
};
use serde_json::Value;

use crate::{
    app::App,
    fields::Fields,
    problem::{Kind, Problem},
};

/// A client that sends its request more slowly than this sends none.
const READ_TIME: Duration = Duration::from_secs(60);

/// The object in a request's body.
pub(crate) async fn object(app: &App, request: Request) -> Result<Fields, Problem> {
    let (parts, body) = request.into_parts();
    // A web page can send other types to any server without asking it first.
    if !is_json(&parts.headers) {
        return Err(Problem::new(Kind::MediaType, "the request's content-type must be application/json"));
    }
    let bytes = bytes(app, &parts.headers, body).await?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| {
        let what = if bytes.is_empty() { "the body is empty".to_owned() } else { format!("the body is not JSON: {e}") };
        Problem::invalid(what)
    })?;
    Fields::of(value, "")
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

async fn bytes(app: &App, headers: &HeaderMap, body: Body) -> Result<body::Bytes, Problem> {
    let most = app.settings.body_bytes_max;
    let too_large = || {
        let message = format!("the body is larger than {most} bytes; send less, or raise the server's limit");
        Problem::new(Kind::TooLarge, message)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > most) {
        return Err(too_large());
    }
    let read = tokio::time::timeout(READ_TIME, body::to_bytes(body, most)).await;
    let read = read.map_err(|_| Problem::new(Kind::Timeout, "the body did not come in time"))?;
    read.map_err(|e| {
        let is_limit = |e: &dyn Error| e.to_string().contains("length limit");
        let over = is_limit(&e) || e.source().is_some_and(is_limit);
        if over { too_large() } else { Problem::invalid(format!("the body could not be read: {e}")) }
    })
}
