//! Models, health and metrics.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

use crate::{
    app::App,
    body,
    catalog::{Model, State as ModelState},
    problem::{Dialect, Problem, json_response, ok},
};

/// `GET /health`: 200 while requests are taken.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    let all = app.catalog.all();
    let loaded = all.iter().filter(|(_, state)| matches!(state, ModelState::Loaded(_))).count();
    let closing = app.closing.load(Ordering::Acquire);
    let (status, word) = match (closing, loaded) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        (_, 0) => (StatusCode::SERVICE_UNAVAILABLE, "no model is loaded"),
        _ => (StatusCode::OK, "ok"),
    };
    json_response(status, &json!({ "status": word, "models_loaded": loaded }))
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut response = Response::new(Body::from(app.metrics.text()));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// `GET /v1/models`: those that are loaded, in the shapes of both APIs.
pub(crate) async fn models(State(app): State<Arc<App>>) -> Response {
    let data: Vec<Value> = app.catalog.loaded().iter().map(|model| describe(model)).collect();
    let id = |model: Option<&Value>| model.map_or(Value::Null, |m| m["id"].clone());
    ok(&json!({
        "object": "list",
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": false,
        "data": data,
    }))
}

/// `GET /v1/models/{model}`
pub(crate) async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    match app.catalog.find(Some(&name)) {
        Ok(model) => ok(&describe(&model)),
        Err(problem) => problem.response(Dialect::OpenAi),
    }
}

fn describe(model: &Model) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tessera",
        "type": "model",
        "display_name": model.name,
        "created_at": time(model.created),
        "max_model_len": model.engine().context(),
    })
}

/// `POST /v1/models/load` with `{"model"}`: loads one of the models that the server was started with.
pub(crate) async fn load(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let name = named(&app, request).await?;
    let catalog = app.catalog.clone();
    on_thread(move || {
        let fresh = catalog.load(&name)?;
        let state = catalog.all().into_iter().find(|(known, _)| *known == name).map_or("unloaded", |(_, s)| s.name());
        Ok(ok(&json!({ "model": name, "state": state, "changed": fresh })))
    })
    .await
}

/// `POST /v1/models/unload` with `{"model"}`: new requests find it no more at once; answers when its replies are done.
pub(crate) async fn unload(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let name = named(&app, request).await?;
    let (catalog, grace) = (app.catalog.clone(), app.settings.grace);
    on_thread(move || {
        let cut_off = catalog.unload(&name, grace)?;
        let (changed, cut_off) = (cut_off.is_some(), cut_off.unwrap_or(0));
        Ok(ok(&json!({ "model": name, "state": "unloaded", "changed": changed, "replies_cut_off": cut_off })))
    })
    .await
}

async fn named(app: &App, request: Request) -> Result<String, Problem> {
    let mut fields = body::object(app, request).await?;
    let name = fields.text("model")?;
    let name = fields.need("model", name)?;
    fields.finish()?;
    Ok(name)
}

async fn on_thread(work: impl FnOnce() -> Result<Response, Problem> + Send + 'static) -> Result<Response, Problem> {
    let task = tokio::task::spawn_blocking(work);
    task.await.unwrap_or_else(|e| Err(Problem::internal(format!("it failed: {e}"))))
}

/// Seconds since 1970 as RFC 3339 writes them (days to dates as in Hinnant, "chrono-compatible low-level date algorithms").
fn time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_dates() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(time(seconds), text);
        }
    }
}
