//! Load on a server: users who wait for each other's replies no longer than for their own, or requests at a rate.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    PROMPTS,
    client::{Client, Outcome, Request},
};
use crate::commands::bench::{args::Serve, random::Random};

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Load {
    /// So many users, each with one request at a time.
    Closed { users: usize },
    /// So many requests a second, at random moments.
    Open { rate: f64 },
}

impl Load {
    /// For people.
    pub(super) fn label(self) -> String {
        match self {
            Load::Closed { users: 1 } => "1 user".to_owned(),
            Load::Closed { users } => format!("{users} users"),
            Load::Open { rate } => format!("{rate} requests/s"),
        }
    }
}

/// What is asked for.
pub(super) struct Plan {
    model: String,
    prompt_tokens: usize,
    reply_tokens: usize,
    seed: u64,
}

impl Plan {
    pub(super) fn new(args: &Serve, model: &str) -> Plan {
        Plan { model: model.to_owned(), prompt_tokens: args.prompt, reply_tokens: args.tokens, seed: args.seed }
    }

    /// The request with the `i`-th prompt.
    pub(super) fn request(&self, i: usize) -> Request {
        Request::new(&self.model, &self.text(i % PROMPTS, self.prompt_tokens), self.reply_tokens)
    }

    /// A request with a prompt of `tokens` tokens or some more, and a short reply.
    pub(super) fn long_request(&self, tokens: usize) -> Request {
        Request::new(&self.model, &self.text(PROMPTS, tokens), 1)
    }

    /// About `tokens` short English words, the same for the same `which`.
    fn text(&self, which: usize, tokens: usize) -> String {
        const WORDS: [&str; 24] = [
            "the", "river", "and", "old", "stone", "house", "where", "light", "falls", "over", "green", "hills", "in",
            "winter", "people", "walk", "to", "market", "with", "bread", "for", "their", "children", "again",
        ];
        let mut random = Random(self.seed ^ (which as u64) << 32);
        let words = (0..tokens).map(|_| WORDS[random.below(WORDS.len())]);
        format!("{which}: {}", words.collect::<Vec<_>>().join(" "))
    }

    /// How long the `i`-th request of an open load comes after the one before: exponential with a mean of `1 / rate`.
    fn pause(&self, i: usize, rate: f64) -> Duration {
        let uniform = (Random(self.seed ^ i as u64).below(1 << 24) as f64 + 0.5) / f64::from(1 << 24);
        Duration::from_secs_f64(-uniform.ln() / rate)
    }
}

/// A request that ended, however.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) prompt: usize,
    pub(super) outcome: Outcome,
}

/// Puts the load on the server for `time`, and then waits for what is under way.
pub(super) fn run(client: &Client, plan: &Plan, load: Load, time: Duration) -> Vec<Done> {
    let all = Mutex::new(Vec::new());
    let add = |done: Done| all.lock().unwrap_or_else(PoisonError::into_inner).push(done);
    let ask =
        |client: &Client, i: usize| Done { prompt: i % PROMPTS, outcome: client.complete(&plan.request(i), None) };
    let (next, until) = (AtomicUsize::new(0), Instant::now() + time);
    thread::scope(|scope| match load {
        Load::Closed { users } => {
            for _ in 0..users {
                let client = client.apart();
                let (add, ask, next) = (&add, &ask, &next);
                scope.spawn(move || {
                    while Instant::now() < until {
                        add(ask(&client, next.fetch_add(1, Ordering::Relaxed)));
                    }
                });
            }
        }
        Load::Open { rate } => {
            let mut due = Instant::now();
            for i in 0.. {
                due += plan.pause(i, rate);
                if due >= until {
                    break;
                }
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let (client, add, ask) = (client.apart(), &add, &ask);
                scope.spawn(move || add(ask(&client, i)));
            }
        }
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A long prompt among users.
pub(super) struct Intrusion {
    pub(super) long: Done,
    /// The users' requests, before it and beside it.
    pub(super) others: Vec<Done>,
}

/// Lets a long prompt come among users when they have gone on for half of `time`, and ends when it is answered.
pub(super) fn intruded(client: &Client, plan: &Plan, users: usize, tokens: usize, time: Duration) -> Intrusion {
    let (over, next, all) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let outcome = thread::scope(|scope| {
        for _ in 0..users {
            let client = client.apart();
            let (over, next, all) = (&over, &next, &all);
            scope.spawn(move || {
                while !over.load(Ordering::Acquire) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let done = Done { prompt: i % PROMPTS, outcome: client.complete(&plan.request(i), None) };
                    all.lock().unwrap_or_else(PoisonError::into_inner).push(done);
                }
            });
        }
        thread::sleep(time / 2);
        let outcome = client.apart().complete(&plan.long_request(tokens), None);
        over.store(true, Ordering::Release);
        outcome
    });
    let others = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    Intrusion { long: Done { prompt: PROMPTS, outcome }, others }
}
