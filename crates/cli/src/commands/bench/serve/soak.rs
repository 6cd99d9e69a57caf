//! A soak: users who ask and hang up at random, and then a look at what is left of them.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;

use super::{
    PROMPTS, Texts,
    client::{Client, Ending},
    load::{self, Done, Plan},
    report::Report,
    server::Server,
    statistics::Summary,
};
use crate::{
    commands::bench::{args::Serve, random::Random},
    ui::{self, Failure},
};

/// Before memory is looked at for the first time, for caches and pools to fill.
const WARM_PART: f64 = 0.1;
/// What allocators and caches may add without being a leak.
const GROWTH_BYTES: u64 = 32 << 20;
/// How long a server may take to let go of the last requests.
const IDLE: Duration = Duration::from_secs(30);

/// What a soak left behind.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Soaked {
    pub(super) minutes: f64,
    pub(super) requests: usize,
    pub(super) cut: usize,
    pub(super) refused: usize,
    /// Pages that sequences hold, when nothing runs.
    pub(super) pages_held: u64,
    pub(super) bytes_before: Option<u64>,
    pub(super) bytes_after: Option<u64>,
}

/// Soaks the server, prints what is left, and fails if that is anything.
///
/// # Errors
/// If pages or memory are lost, a request broke, or a reply differs.
pub(super) fn run(
    client: &Client,
    plan: &Plan,
    args: &Serve,
    server: &Server,
    minutes: f64,
    texts: &Texts,
    report: &mut Report,
) -> Result<()> {
    let users = args.users.iter().copied().max().unwrap_or(1);
    let time = Duration::from_secs_f64(60.0 * minutes);
    let bar = ui::spinner(&format!("a soak of {minutes} minutes"));
    let mut done = users_who_hang_up(client, plan, users, time.mul_f64(WARM_PART), args.seed);
    wait_until_idle(client)?;
    let bytes_before = server.resident_bytes();
    done.extend(users_who_hang_up(client, plan, users, time.mul_f64(1.0 - WARM_PART), args.seed + 1));
    let pages_held = wait_until_idle(client)?;
    bar.finish_and_clear();
    texts.check(&done)?;
    let summary = Summary::of(&done);
    let cut = done.iter().filter(|d| matches!(d.outcome.ending, Ending::Cut)).count();
    let (requests, refused) = (summary.requests, summary.refused);
    let bytes_after = server.resident_bytes();
    report.soaked(&Soaked { minutes, requests, cut, refused, pages_held, bytes_before, bytes_after })?;
    let lost = |what: String| Err(Failure::new(what, "this is a leak: report it, with the command").into());
    if let Some(problem) = summary.problem {
        return lost(format!("a request broke: {}", ui::harmless(&problem)));
    }
    if pages_held > 0 {
        return lost(format!("{pages_held} pages of the cache are held at idle"));
    }
    match bytes_before.zip(bytes_after) {
        Some((before, after)) if after > before + GROWTH_BYTES => {
            lost(format!("memory grew by {} bytes", after - before))
        }
        _ => Ok(()),
    }
}

fn users_who_hang_up(client: &Client, plan: &Plan, users: usize, time: Duration, seed: u64) -> Vec<Done> {
    let until = Instant::now() + time;
    load::closed(client, plan, users, &|user, turn| {
        let mut random = Random(seed ^ (user as u64) << 40 ^ (turn as u64) << 16);
        let prompt = random.below(PROMPTS);
        // Half of all hang up, some at once.
        let cut = (random.below(2) == 0).then(|| 1 + random.below(16));
        (Instant::now() < until).then_some((prompt, cut))
    })
}

/// Waits until nothing runs or waits, and gives the pages that are held then.
fn wait_until_idle(client: &Client) -> Result<u64> {
    let until = Instant::now() + IDLE;
    loop {
        let state = client.get("/v1/engine")?;
        let sum = |path: &str| {
            let models = state["models"].as_array().into_iter().flatten();
            models.filter_map(|model| model.pointer(path)?.as_u64()).sum::<u64>()
        };
        let running = sum("/running") + sum("/waiting");
        if running == 0 {
            return Ok(sum("/cache/held"));
        }
        if Instant::now() > until {
            let message = format!("{running} requests still run, though nobody waits for them");
            return Err(Failure::new(message, "this is a leak: report it, with the command").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}
