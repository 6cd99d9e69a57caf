//! Server-sent events: an answer told as it comes.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_core::Stream;
use serde_json::Value;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::{
    answer::{Answer, Told},
    app::{App, Open},
    problem::Problem,
};

/// A client, or a proxy between, may give up on a connection that is silent for long.
const IDLE: Duration = Duration::from_secs(10);
/// Bytes that are enough for one write.
const WRITE_BYTES: usize = 16 << 10;

/// Events on their way.
#[derive(Debug, Default)]
pub(crate) struct Lines(String);

impl Lines {
    /// An event without a name.
    pub(crate) fn data(&mut self, value: &Value) {
        self.raw(&format!("data: {value}\n\n")); // JSON has no line breaks of its own
    }

    /// An event with a name.
    pub(crate) fn event(&mut self, name: &str, value: &Value) {
        self.raw(&format!("event: {name}\ndata: {value}\n\n"));
    }

    pub(crate) fn raw(&mut self, text: &str) {
        self.0.push_str(text);
    }
}

/// Tells an answer in the events of an API.
pub(crate) trait Narrator: Send + 'static {
    /// At the beginning, before anything is known.
    fn begin(&mut self, out: &mut Lines);

    /// The next thing.
    fn tell(&mut self, choice: usize, told: Told, out: &mut Lines);

    /// The answer broke; nothing more comes.
    fn broke(&mut self, problem: &Problem, out: &mut Lines);

    /// All is told.
    fn end(&mut self, out: &mut Lines);

    /// Nothing has come for a while.
    fn idle(&mut self, out: &mut Lines) {
        out.raw(": still here\n\n");
    }
}

/// The response that tells an answer.
pub(crate) fn stream(app: &Arc<App>, answer: Answer, mut narrator: impl Narrator + Unpin) -> Response {
    let mut lines = Lines::default();
    narrator.begin(&mut lines);
    let mut idle = interval_at(tokio::time::Instant::now() + IDLE, IDLE);
    idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (answer, open) = (Some(answer), app.enter());
    response(Telling { answer, narrator, lines, idle, _open: open })
}

/// A response of server-sent events.
pub(crate) fn response(stream: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Some proxies would wait for more.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Telling<N> {
    /// None when all is told.
    answer: Option<Answer>,
    narrator: N,
    lines: Lines,
    idle: Interval,
    _open: Open,
}

impl<N: Narrator> Telling<N> {
    /// Tells what is there by now.
    fn gather(&mut self, context: &mut Context<'_>) {
        while self.lines.0.len() < WRITE_BYTES {
            let Some(answer) = &mut self.answer else { return };
            match answer.poll_next(context) {
                Poll::Pending => return,
                Poll::Ready(Some((_, Told::Failed(problem)))) => {
                    self.narrator.broke(&problem, &mut self.lines);
                    self.answer = None;
                }
                Poll::Ready(Some((choice, told))) => {
                    self.idle.reset();
                    self.narrator.tell(choice, told, &mut self.lines);
                }
                Poll::Ready(None) => {
                    self.narrator.end(&mut self.lines);
                    self.answer = None;
                }
            }
        }
    }
}

impl<N: Narrator + Unpin> Stream for Telling<N> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.gather(context);
        if self.lines.0.is_empty() && self.answer.is_some() && self.idle.poll_tick(context).is_ready() {
            let Telling { narrator, lines, idle, .. } = &mut *self;
            narrator.idle(lines);
            idle.reset();
        }
        let text = std::mem::take(&mut self.lines.0);
        match (text.is_empty(), &self.answer) {
            (false, _) => Poll::Ready(Some(Ok(Bytes::from(text)))),
            (true, Some(_)) => Poll::Pending,
            (true, None) => Poll::Ready(None),
        }
    }
}
