//! What Prometheus wants to know: requests and their times as they happen, engines as they are when it asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use tessera_engine::{
    Finish,
    serving::{Counters, Gauges},
};

use crate::catalog::Catalog;

type Labels<const N: usize> = [(&'static str, String); N];

/// What is counted.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels<2>, Counter>,
    replies: Family<Labels<2>, Counter>,
    first_token: Family<Labels<1>, Histogram>,
    between_tokens: Family<Labels<1>, Histogram>,
    reply_time: Family<Labels<1>, Histogram>,
}

/// Bounds of times: from 1 ms on, each twice the one before.
fn times() -> Histogram {
    Histogram::new((0..18).map(|n| 0.001 * f64::from(1u32 << n)))
}

impl Metrics {
    pub(crate) fn new(catalog: Arc<Catalog>) -> Metrics {
        let mut registry = Registry::with_prefix("tessera");
        let (requests, replies) = (Family::default(), Family::default());
        let family = || Family::new_with_constructor(times as fn() -> Histogram);
        let (first_token, between_tokens, reply_time) = (family(), family(), family());
        registry.register("http_requests", "Requests, by route and status", requests.clone());
        registry.register("replies", "Replies that ended, by model and why", replies.clone());
        let seconds = || Unit::Seconds;
        registry.register_with_unit("first_token", "From a request to its first token", seconds(), first_token.clone());
        registry.register_with_unit("between_tokens", "Between tokens of a reply", seconds(), between_tokens.clone());
        registry.register_with_unit("reply", "From a request to the end of a reply", seconds(), reply_time.clone());
        registry.register_collector(Box::new(Engines(catalog)));
        Metrics { registry, requests, replies, first_token, between_tokens, reply_time }
    }

    /// A request was answered or refused.
    pub(crate) fn request(&self, route: &str, status: u16) {
        let labels = [("route", route.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    /// A token came; `last` is when the one before it did.
    pub(crate) fn token(&self, model: &str, submitted: Instant, last: Option<Instant>, now: Instant) {
        let (family, since) = match last {
            None => (&self.first_token, submitted),
            Some(last) => (&self.between_tokens, last),
        };
        let labels = [("model", model.to_owned())];
        family.get_or_create(&labels).observe(now.saturating_duration_since(since).as_secs_f64());
    }

    /// A reply ended.
    pub(crate) fn reply(&self, model: &str, time: Duration, finish: Finish) {
        let labels = [("model", model.to_owned()), ("finish", finish_name(finish).to_owned())];
        self.replies.get_or_create(&labels).inc();
        self.reply_time.get_or_create(&[("model", model.to_owned())]).observe(time.as_secs_f64());
    }

    /// All of it, in OpenMetrics' text format.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut out, &self.registry);
        out
    }
}

/// Why a reply ended, in one word.
pub(crate) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::EndToken => "end_token",
        Finish::StopString => "stop_string",
        Finish::Length => "length",
        Finish::ContextFull => "context_full",
        Finish::Cancelled => "cancelled",
        Finish::Deadline => "deadline",
    }
}

/// Asks every engine when it is asked itself.
struct Engines(Arc<Catalog>);

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engines")
    }
}

type Number<T> = (&'static str, &'static str, fn(&T) -> f64);

const GAUGES: [Number<Gauges>; 9] = [
    ("requests_running", "Requests that are computed", |g| g.running as f64),
    ("requests_prefilling", "Those of them whose prompt is not computed yet", |g| g.prefilling as f64),
    ("requests_waiting", "Requests that wait", |g| g.waiting as f64),
    ("cache_pages", "Pages of the cache", |g| g.pages as f64),
    ("cache_pages_held", "Pages that requests hold", |g| g.pages_held as f64),
    ("cache_pages_reusable", "Pages that nobody holds, with prefixes", |g| g.pages_cached as f64),
    ("cache_bytes", "Bytes of the cache, taken at the start", |g| g.cache_bytes as f64),
    ("batch_rows", "Rows of the last step", |g| g.batch_rows as f64),
    ("tokens_per_second", "Tokens drawn over about the last second", |g| g.tokens_per_second),
];

const COUNTERS: [Number<Counters>; 9] = [
    ("steps", "Steps of the model", |c| c.steps as f64),
    ("rows", "Rows of all steps", |c| c.rows as f64),
    ("submitted", "Requests taken", |c| c.submitted as f64),
    ("prompt_tokens", "Tokens of prompts", |c| c.prompt_tokens as f64),
    ("prompt_tokens_cached", "Those of them that were in the cache", |c| c.cached_tokens as f64),
    ("reply_tokens", "Tokens drawn", |c| c.reply_tokens as f64),
    ("preemptions", "Requests whose pages were taken away", |c| c.preemptions as f64),
    ("draft_tokens", "Drafts that were verified", |c| c.speculation.drafted as f64),
    ("draft_tokens_accepted", "Drafts that were right", |c| c.speculation.accepted as f64),
];

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let models = self.0.loaded();
        let engines: Vec<_> = models.iter().map(|m| (m.name.as_str(), m.engine().gauges())).collect();
        for (name, help, value) in GAUGES {
            let kind = ConstGauge::<f64>::new(0.0).metric_type();
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (model, gauges) in &engines {
                ConstGauge::new(value(gauges)).encode(metric.encode_family(&[("model", *model)])?)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let kind = ConstCounter::<f64>::new(0.0).metric_type();
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (model, gauges) in &engines {
                ConstCounter::new(value(&gauges.counters)).encode(metric.encode_family(&[("model", *model)])?)?;
            }
        }
        Ok(())
    }
}
