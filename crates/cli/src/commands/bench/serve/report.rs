//! Loads on their way out: as a table for people, or as one JSON object a line.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    load::{Done, Intrusion, Load},
    server::Server,
    soak::Soaked,
    statistics::{Percentiles, Summary, gaps, millis},
};
use crate::{commands::bench::args::Serve, machine, ui, ui::Failure};

/// Prints what was measured, as it comes.
pub(super) struct Report {
    json: bool,
    facts: Value,
    heading: Option<String>,
}

impl Report {
    pub(super) fn new(args: &Serve, model: &str, server: &Server) -> Report {
        let (machine, cores) = (machine::name(), machine::cores());
        let flags = args.flags.join(" ");
        let facts = json!({
            "commit": machine::COMMIT, "machine": machine, "cores": cores, "model": model, "test": "serve", "flags": flags,
            "prompt": args.prompt, "tokens_max": args.tokens,
        });
        let shown = if flags.is_empty() { String::new() } else { format!(", serve {flags}") };
        let (model, url) = (ui::harmless(model), server.url());
        let heading = format!(
            "{model} at {url}; prompts of {} words, replies of {} tokens at most{shown}\n{machine}, {cores} cores; commit {}\n\
             {:>14} {:>8} {:>6} {:>7} {:>6} {:>9}   {:>22}   {:>22}",
            args.prompt,
            args.tokens,
            machine::COMMIT,
            "load",
            "requests",
            "whole",
            "refused",
            "failed",
            "tokens/s",
            "first p50 p95 p99 (ms)",
            "between p50 p95 p99",
        );
        Report { json: args.json, facts, heading: Some(heading) }
    }

    /// Prints a load.
    ///
    /// # Errors
    /// If stdout is closed, or requests failed without a status.
    pub(super) fn row(&mut self, load: Load, done: &[Done]) -> Result<()> {
        let summary = Summary::of(done);
        let mut object = serde_json::to_value(&summary)?;
        match load {
            Load::Closed { users } => object["users"] = json!(users),
            Load::Open { rate } => object["rate"] = json!(rate),
        }
        let times = |p: Percentiles| [p.p50, p.p95, p.p99].map(|t| format!("{:>7}", millis(t))).join(" ");
        let line = format!(
            "{:>14} {:>8} {:>6} {:>7} {:>6} {:>9.1}   {:>22}   {:>22}",
            load.label(),
            summary.requests,
            summary.whole,
            summary.refused,
            summary.failed,
            summary.tokens_per_second,
            times(summary.first_seconds),
            times(summary.between_seconds),
        );
        self.print(object, &line)?;
        sound(&summary)
    }

    /// Prints what a long prompt did to the others.
    ///
    /// # Errors
    /// As [`Report::row`].
    pub(super) fn intruded(&mut self, users: usize, tokens: usize, intrusion: &Intrusion) -> Result<()> {
        let (from, to) = (intrusion.long.outcome.began, intrusion.long.outcome.ended);
        let before = Percentiles::of(gaps(&intrusion.others, |at| at < from));
        let during = Percentiles::of(gaps(&intrusion.others, |at| at >= from && at <= to));
        let took = (to - from).as_secs_f64();
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let object = json!({
            "intruder_prompt": tokens, "users": users, "intruder_seconds": took, "before_seconds": before, "during_seconds": during,
        });
        let line = format!(
            "{users} users while a prompt of {tokens} words is computed ({took:.2} s): between p50 {} instead of {} ms ({:.2} x), p95 {} \
             instead of {} ms ({:.2} x)",
            millis(during.p50),
            millis(before.p50),
            ratio(during.p50, before.p50),
            millis(during.p95),
            millis(before.p95),
            ratio(during.p95, before.p95),
        );
        self.print(object, &line)?;
        sound(&Summary::of(&intrusion.others))?;
        intrusion.long.outcome.text().map(|_| ()).map_err(|problem| failed(&problem))
    }

    /// Prints what a soak left behind.
    ///
    /// # Errors
    /// As [`Report::row`].
    pub(super) fn soaked(&mut self, soaked: &Soaked) -> Result<()> {
        let mib = |bytes: Option<u64>| {
            bytes.map_or("unknown".to_owned(), |b| format!("{:.1} MiB", b as f64 / f64::from(1 << 20)))
        };
        let line = format!(
            "soak of {:.1} minutes: {} requests, {} of them cut off, {} refused; pages held at idle {}; memory {} before, {} after",
            soaked.minutes,
            soaked.requests,
            soaked.cut,
            soaked.refused,
            soaked.pages_held,
            mib(soaked.bytes_before),
            mib(soaked.bytes_after),
        );
        self.print(serde_json::to_value(soaked)?, &line)
    }

    fn print(&mut self, mut object: Value, line: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            for (key, value) in self.facts.as_object().into_iter().flatten() {
                object[key] = value.clone();
            }
            writeln!(out, "{object}")?;
        } else {
            if let Some(heading) = self.heading.take() {
                writeln!(out, "{heading}")?;
            }
            writeln!(out, "{line}")?;
        }
        Ok(out.flush()?)
    }
}

/// Refuses a load in which a request got neither a reply nor a status.
fn sound(summary: &Summary) -> Result<()> {
    summary.problem.as_ref().map_or(Ok(()), |problem| Err(failed(problem)))
}

fn failed(problem: &str) -> anyhow::Error {
    let message = format!("a request got neither a reply nor a refusal: {}", ui::harmless(problem));
    Failure::new(message, "see the server's messages").into()
}
