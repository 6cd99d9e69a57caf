//! `tessera bench serve`: load on a server over loopback, as clients see it.
//!
//! The server is a process of its own (this binary, or whatever listens at --url), so that neither its threads nor its memory are
//! mixed with those of the load. *Closed* load is a number of users who each ask again as soon as they have their reply; *open*
//! load comes at a rate, whether the server keeps up or not. Requests are greedy and few prompts are asked again and again, so
//! every reply has a known text: one that differs is an error, at any load.

mod client;
mod load;
mod report;
mod server;
mod soak;
mod statistics;

use std::{collections::HashMap, sync::Mutex, time::Duration};

use anyhow::Result;

use self::{
    client::Client,
    load::{Load, Plan},
    report::Report,
    server::Server,
};
use super::args::Serve;
use crate::ui::{self, Failure};

/// Prompts that differ. More than the slots of a server, so that none is only ever asked for beside itself.
const PROMPTS: usize = 24;

/// Measures and prints.
pub(super) fn main(args: &Serve) -> Result<()> {
    let server = Server::start(args)?;
    let client = Client::new(server.url(), args.key.as_deref());
    let model = client.model()?;
    let plan = Plan::new(args, &model);
    let texts = Texts::default();
    let mut report = Report::new(args, &model, &server);
    // One request before anything is timed; it also tells a server that cannot answer.
    let warm = client.complete(&plan.request(0), None);
    warm.text().map_err(|problem| {
        Failure::new(format!("the server does not answer a completion: {problem}"), "see its own messages above")
    })?;
    for load in loads(args) {
        let bar = ui::spinner(&load.label());
        let done = load::run(&client, &plan, load, Duration::from_secs(args.seconds));
        bar.finish_and_clear();
        texts.check(&done)?;
        report.row(load, &done)?;
    }
    if let Some(tokens) = args.intrude {
        let users = args.users.iter().copied().max().unwrap_or(1);
        let bar = ui::spinner(&format!("{users} users and a prompt of {tokens} tokens"));
        let done = load::intruded(&client, &plan, users, tokens, Duration::from_secs(args.seconds));
        bar.finish_and_clear();
        texts.check(&done.others)?;
        report.intruded(users, tokens, &done)?;
    }
    if let Some(minutes) = args.soak {
        soak::run(&client, &plan, args, &server, minutes, &texts, &mut report)?;
    }
    server.stop()
}

/// What is asked for, in order: first the users, then the rates.
fn loads(args: &Serve) -> Vec<Load> {
    let closed = args.users.iter().map(|users| Load::Closed { users: *users });
    closed.chain(args.rate.iter().map(|rate| Load::Open { rate: *rate })).collect()
}

/// The text that each prompt was answered with, first of all and then again.
#[derive(Default)]
struct Texts(Mutex<HashMap<usize, String>>);

impl Texts {
    /// Holds every whole reply against the first to its prompt.
    fn check(&self, done: &[load::Done]) -> Result<()> {
        let mut texts = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for one in done {
            let (prompt, Ok(text)) = (one.prompt, one.outcome.text()) else { continue };
            let first = texts.entry(prompt).or_insert_with(|| text.to_owned());
            if first != text {
                let problem = format!("prompt {prompt} was answered with another text than before");
                let remedy = "the server's replies depend on its load: report this, with the command";
                return Err(Failure::new(problem, remedy).into());
            }
        }
        Ok(())
    }
}
