//! The engines as they are: one object, or one every quarter of a second.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Bytes, extract::State, response::Response};
use futures_core::Stream;
use serde_json::{Map, Value, json};
use tessera_engine::serving::Counters;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{
    app::App,
    catalog::{Model, State as ModelState},
    metrics::finish_name,
    problem::ok,
    sse,
};

/// How often a stream tells.
const EVERY: Duration = Duration::from_millis(250);

/// `GET /v1/engine`
pub(crate) async fn snapshot(State(app): State<Arc<App>>) -> Response {
    ok(&view(&app))
}

/// `GET /v1/engine/events`: snapshots as server-sent events, until the client goes or the server stops.
pub(crate) async fn events(State(app): State<Arc<App>>) -> Response {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    sse::response(Snapshots { app, ticks })
}

struct Snapshots {
    app: Arc<App>,
    ticks: Interval,
}

impl Stream for Snapshots {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.app.closing.load(std::sync::atomic::Ordering::Acquire) {
            return Poll::Ready(None);
        }
        self.ticks.poll_tick(context).map(|_| Some(Ok(Bytes::from(format!("data: {}\n\n", view(&self.app))))))
    }
}

fn view(app: &App) -> Value {
    let models: Vec<Value> = app.catalog.all().iter().map(|(name, state)| model(name, state)).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.started.elapsed().as_secs_f64(),
        "open_requests": app.open(),
        "models": models,
    })
}

fn model(name: &str, state: &ModelState) -> Value {
    let mut object = json!({ "name": name, "state": state.name() });
    if let (ModelState::Loaded(model), Value::Object(map)) = (state, &mut object) {
        map.extend(engine(model));
    }
    object
}

fn engine(model: &Model) -> Map<String, Value> {
    let (gauges, options) = (model.engine().gauges(), model.engine().options());
    let c = &gauges.counters;
    let finished = Counters::FINISHES.iter().zip(c.finished).map(|(why, n)| (finish_name(*why).to_owned(), json!(n)));
    let kernel = (gauges.batch_rows > 0).then(|| (model.loaded.kernel)(gauges.batch_rows));
    let object = json!({
        "device": model.loaded.device,
        "context": model.engine().context(),
        "slots": options.slots,
        "queue": options.queue,
        "step_tokens": options.step_tokens,
        "running": gauges.running,
        "prefilling": gauges.prefilling,
        "waiting": gauges.waiting,
        "batch_rows": gauges.batch_rows,
        "batch_sequences": gauges.batch_sequences,
        "tokens_per_second": gauges.tokens_per_second,
        "kernel": kernel,
        "cache": {
            "pages": gauges.pages,
            "held": gauges.pages_held,
            "reusable": gauges.pages_cached,
            "bytes": gauges.cache_bytes,
        },
        "counters": {
            "steps": c.steps,
            "rows": c.rows,
            "submitted": c.submitted,
            "prompt_tokens": c.prompt_tokens,
            "cached_tokens": c.cached_tokens,
            "reply_tokens": c.reply_tokens,
            "preemptions": c.preemptions,
            "failed": c.failed,
            "finished": Value::Object(finished.collect()),
            "drafted": c.speculation.drafted,
            "accepted": c.speculation.accepted,
            "speculation_gain": c.speculation_gain(),
        },
    });
    match object {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
