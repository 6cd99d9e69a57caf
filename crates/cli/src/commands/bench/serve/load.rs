//! Load on a server: users who wait for each other's replies no longer than for their own, or requests at a rate.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::{self, ScopedJoinHandle},
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
    speculation: Option<String>,
    seed: u64,
}

impl Plan {
    pub(super) fn new(args: &Serve, model: &str) -> Plan {
        Plan {
            model: model.to_owned(),
            prompt_tokens: args.prompt,
            reply_tokens: args.tokens,
            speculation: args.speculation.clone(),
            seed: args.seed,
        }
    }

    /// The request with the `i`-th prompt.
    pub(super) fn request(&self, i: usize) -> Request {
        self.asked(&self.text(i % PROMPTS, self.prompt_tokens), self.reply_tokens)
    }

    /// A request with a prompt of `tokens` tokens or some more, and a short reply.
    pub(super) fn long_request(&self, tokens: usize) -> Request {
        self.asked(&self.text(PROMPTS, tokens), 1)
    }

    fn asked(&self, prompt: &str, tokens_max: usize) -> Request {
        Request::new(&self.model, prompt, tokens_max, self.speculation.as_deref())
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
    let until = Instant::now() + time;
    match load {
        Load::Closed { users } => closed(client, plan, users, &in_turn(&|| Instant::now() < until)),
        Load::Open { rate } => open(client, plan, rate, until),
    }
}

/// What a user asks for next: which prompt, and after how many pieces to hang up, if at all. None: nothing more.
type Ask = Option<(usize, Option<usize>)>;

/// Users who take prompts in turn, as long as it goes on.
fn in_turn(goes_on: &(dyn Fn() -> bool + Sync)) -> impl Fn(usize, usize) -> Ask + Sync {
    let next = AtomicUsize::new(0);
    move |_, _| goes_on().then(|| (next.fetch_add(1, Ordering::Relaxed) % PROMPTS, None))
}

/// Users who each ask again as soon as they have their reply. `ask` is given the user and the number of earlier requests.
pub(super) fn closed(
    client: &Client,
    plan: &Plan,
    users: usize,
    ask: &(dyn Fn(usize, usize) -> Ask + Sync),
) -> Vec<Done> {
    let one = |user: usize| {
        let client = client.apart();
        let asks = (0..).map_while(move |turn| ask(user, turn));
        asks.map(|(prompt, cut)| Done { prompt, outcome: client.complete(&plan.request(prompt), cut) }).collect()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..users).map(|user| scope.spawn(move || -> Vec<Done> { one(user) })).collect();
        threads.into_iter().flat_map(joined).collect()
    })
}

fn open(client: &Client, plan: &Plan, rate: f64, until: Instant) -> Vec<Done> {
    thread::scope(|scope| {
        let (mut due, mut threads) = (Instant::now(), Vec::new());
        for i in 0.. {
            due += plan.pause(i, rate);
            if due >= until {
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let (client, prompt) = (client.apart(), i % PROMPTS);
            threads.push(scope.spawn(move || Done { prompt, outcome: client.complete(&plan.request(prompt), None) }));
        }
        threads.into_iter().map(joined).collect()
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A long prompt among users.
pub(super) struct Intrusion {
    pub(super) long: Done,
    /// The users' requests, before it and beside it.
    pub(super) others: Vec<Done>,
}

/// Lets a long prompt come among users when they have gone on for half of `time`, and ends when it is answered.
pub(super) fn intruded(client: &Client, plan: &Plan, users: usize, tokens: usize, time: Duration) -> Intrusion {
    let over = AtomicBool::new(false);
    let goes_on = || !over.load(Ordering::Acquire);
    thread::scope(|scope| {
        let others = scope.spawn(|| closed(client, plan, users, &in_turn(&goes_on)));
        thread::sleep(time / 2);
        let outcome = client.apart().complete(&plan.long_request(tokens), None);
        over.store(true, Ordering::Release);
        Intrusion { long: Done { prompt: PROMPTS, outcome }, others: joined(others) }
    })
}
