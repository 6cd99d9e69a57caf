//! What every request passes through: keys, origins, counting.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};

use crate::{
    app::{App, fresh_id},
    problem::{Dialect, Kind, Problem},
    routes,
};

/// Lets a request through, or not.
pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let (dialect, route) = (Dialect::of(&path), routes::known(&path));
    let origin = allowed_origin(&app, request.headers());
    let id = fresh_id("req_");
    let mut response = if origin.is_some() && is_preflight(&request) {
        preflight()
    } else if app.closing.load(Ordering::Acquire) {
        Problem { retry_after: Some(5), ..Problem::unavailable("the server is being stopped") }.response(dialect)
    } else if route.is_none_or(|r| !r.open) && !app.settings.keys.admit(request.headers()) {
        Problem::new(Kind::Key, "no valid API key; send `Authorization: Bearer KEY` or `x-api-key: KEY`")
            .response(dialect)
    } else {
        let _open = app.enter();
        next.run(request).await
    };
    app.metrics.request(route.map_or("other", |r| r.path), response.status().as_u16());
    let headers = response.headers_mut();
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("request-id, x-request-id, retry-after"),
        );
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        // By either API's name.
        headers.insert("x-request-id", id.clone());
        headers.insert("request-id", id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The origin of a web page that may ask.
fn allowed_origin(app: &App, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let allowed = |known: &String| known == "*" || known.as_bytes() == origin.as_bytes();
    app.settings.cors_origins.iter().any(allowed).then(|| origin.clone())
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    let allowed = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access";
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Where nothing is.
pub(crate) async fn nowhere(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(100).collect();
    let message = format!("there is nothing at {path}; /openapi.json lists the routes");
    Problem::new(Kind::NotFound, message).response(Dialect::of(&path))
}

/// Where something is, but not by this method.
pub(crate) async fn other_method(request: Request) -> Response {
    let (path, method) = (request.uri().path(), request.method());
    let allowed = routes::known(path).map_or("another method", |r| r.method);
    Problem::new(Kind::Method, format!("{path} takes {allowed}, not {method}")).response(Dialect::of(path))
}
