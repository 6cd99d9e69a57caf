//! Who is computed when: fairness, limits, deadlines, cancels, pre-emption.

use std::{collections::HashMap, time::Duration};

use tessera_engine::{
    Finish, SamplingError,
    serving::{Counters, Job, Options, Refused, Speculation},
};
use tessera_ops::PAGE_TOKENS;

use super::{assert_nothing_leaked, drain, engine, job, request, step, tokens};

/// A step of one row takes a millisecond, and each further one a tenth of it.
fn cost(rows: usize) -> u64 {
    900 + 100 * rows as u64
}

fn plain(prompt: Vec<u32>, tokens_max: usize) -> Job {
    Job { speculation: Speculation::Off, ..job(prompt, tokens_max) }
}

/// While a prompt of 2000 tokens is computed, others get a token in every step, and a step takes at most twice as long,
/// once two steps have shown what rows cost.
#[test]
fn a_long_prompt_stalls_nobody() {
    for running in [1, 3, 8] {
        let (mut engine, clock) = engine(80, Options::default(), cost);
        let ids: Vec<_> = (0..running).map(|i| engine.submit(plain(tokens(i, 10), 600)).unwrap()).collect();
        let mut told = HashMap::new();
        for _ in 0..5 {
            step(&mut engine, &mut told);
        }
        let long = engine.submit(plain(tokens(99, 2000), 4)).unwrap();
        let (mut times, mut steps) = (Vec::new(), 0);
        while told.get(&long).is_none_or(|t| t.started.is_none()) {
            let before: Vec<_> = ids.iter().map(|id| told[id].tokens.len()).collect();
            let start = tessera_engine::serving::Clock::now(&clock);
            step(&mut engine, &mut told);
            times.push(tessera_engine::serving::Clock::now(&clock) - start);
            steps += 1;
            for (id, before) in ids.iter().zip(before) {
                assert_eq!(told[id].tokens.len(), before + 1, "one more token in each step");
            }
        }
        let limit = 2 * Duration::from_micros(cost(running));
        assert!(times[2..].iter().all(|t| *t <= limit), "{times:?} with {running} running");
        // And the prompt gets most of what that leaves: a step's time without it is that of 9 rows and those that run.
        let rows = (9 + running) * 7 / 10;
        assert!(steps <= 5 + 2000 / (rows - 2), "{steps} steps with {running} running");
        for id in ids {
            engine.cancel(id);
        }
        while step(&mut engine, &mut told) {}
        assert_nothing_leaked(&engine);
    }
}

/// Each of P prompts gets its part of every step, so a short one is not behind a long one.
#[test]
fn prompts_share_a_step() {
    let options = Options { step_tokens: 64, ..Options::default() };
    let (mut engine, _) = engine(60, options, cost);
    let long = engine.submit(plain(tokens(0, 3000), 1)).unwrap();
    let mut told = HashMap::new();
    step(&mut engine, &mut told);
    let short = engine.submit(plain(tokens(1, 100), 1)).unwrap();
    // 32 rows each: 100 tokens are four steps.
    for _ in 0..4 {
        step(&mut engine, &mut told);
    }
    assert_eq!(told[&short].finish(), Finish::Length);
    assert!(!told.contains_key(&long));
    let steps = engine.gauges().counters.steps;
    drain(&mut engine);
    let steps = engine.gauges().counters.steps - steps;
    assert!(steps <= 3000_u64.div_ceil(64), "{steps}");
}

#[test]
fn what_can_never_be_served_is_refused_at_once() {
    let (mut engine, _) = engine(3, Options { queue: 2, ..Options::default() }, cost);
    let context = 3 * PAGE_TOKENS;
    assert_eq!(engine.context(), context);
    let refused = engine.submit(job(tokens(0, context + 1), 1));
    assert_eq!(refused, Err(Refused::TooLong { tokens: context + 1, context }));
    assert_eq!(engine.submit(job(Vec::new(), 1)), Err(Refused::EmptyPrompt));
    let vocabulary = engine.sequences().config().vocabulary;
    let refused = engine.submit(job(vec![1, vocabulary as u32], 1));
    assert_eq!(refused, Err(Refused::Token { token: vocabulary as u32, vocabulary }));
    let mut wrong = job(tokens(0, 4), 1);
    wrong.request.sampling.top_p = 2.0;
    assert!(matches!(engine.submit(wrong), Err(Refused::Sampling(SamplingError::Parameter { .. }))));
    let mut wrong = job(tokens(0, 4), 1);
    wrong.request.sampling.logit_bias = vec![(vocabulary as u32, 1.0)];
    assert!(matches!(engine.submit(wrong), Err(Refused::Sampling(SamplingError::BiasToken { .. }))));
    let mut wrong = job(tokens(0, 4), 1);
    wrong.request.stop = vec![String::new()];
    assert!(matches!(engine.submit(wrong), Err(Refused::Sampling(SamplingError::EmptyStopString))));
    // The longest that fits is served, alone or not.
    let a = engine.submit(job(tokens(0, context), 9)).unwrap();
    let b = engine.submit(job(tokens(1, context), 0)).unwrap();
    assert_eq!(engine.submit(job(tokens(2, 4), 1)), Err(Refused::QueueFull { limit: 2 }));
    let told = drain(&mut engine);
    assert_eq!((told[&a].finish(), told[&a].tokens.len()), (Finish::ContextFull, 1));
    assert_eq!((told[&b].finish(), told[&b].tokens.len()), (Finish::Length, 0));
    assert_nothing_leaked(&engine);
}

#[test]
fn a_queue_moves_on_in_order_of_priority_and_arrival() {
    let (mut engine, _) = engine(8, Options { slots: 1, queue: 4, ..Options::default() }, cost);
    let mut submit = |priority| engine.submit(Job { priority, ..plain(tokens(0, 3), 2) }).unwrap();
    let ids = [submit(0), submit(0), submit(5), submit(-1)];
    assert_eq!(engine.queued(), 4);
    let (mut ended, mut events) = (Vec::new(), Vec::new());
    while engine.step(&mut events) {
        let gauges = engine.gauges();
        assert!(gauges.running <= 1 && gauges.running + gauges.waiting + ended.len() <= 4);
        for (id, event) in events.drain(..) {
            if matches!(event, tessera_engine::serving::Event::Finished(_)) {
                ended.push(id);
            }
        }
    }
    assert_eq!(ended, [ids[2], ids[0], ids[1], ids[3]]);
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    let (mut engine, clock) = engine(20, Options { slots: 1, ..Options::default() }, cost);
    let deadline = Some(Duration::from_millis(20));
    let running = engine.submit(Job { deadline, ..plain(tokens(0, 5), 1000) }).unwrap();
    let waiting = engine.submit(Job { deadline, ..plain(tokens(1, 5), 1000) }).unwrap();
    let patient = engine.submit(plain(tokens(2, 5), 3)).unwrap();
    let told = drain(&mut engine);
    assert_eq!([&running, &waiting].map(|id| told[id].finish()), [Finish::Deadline; 2]);
    // The first step has five rows, all others one.
    assert_eq!(told[&running].tokens.len(), 20);
    assert!(told[&waiting].tokens.is_empty() && told[&waiting].started.is_none());
    let usage = &told[&waiting].outcome.as_ref().unwrap().usage;
    assert!(usage.queued >= Duration::from_millis(20) && usage.prefill + usage.decode == Duration::ZERO);
    assert_eq!(told[&patient].finish(), Finish::Length);
    assert!(tessera_engine::serving::Clock::now(&clock) < Duration::from_millis(30));
    assert_nothing_leaked(&engine);
}

#[test]
fn a_cancel_frees_pages_at_once() {
    let (mut engine, _) = engine(20, Options::default(), cost);
    let a = engine.submit(plain(tokens(0, 300), 1000)).unwrap();
    let b = engine.submit(plain(tokens(1, 300), 1000)).unwrap();
    let mut told = HashMap::new();
    for _ in 0..3 {
        step(&mut engine, &mut told);
    }
    let held = engine.gauges().pages_held;
    assert_eq!(held, 10);
    told.entry(a).or_default().take(engine.cancel(a).unwrap());
    assert_eq!(engine.gauges().pages_held, 5);
    assert_eq!(told[&a].finish(), Finish::Cancelled);
    assert!(engine.cancel(a).is_none(), "it has ended");
    engine.cancel(b).unwrap();
    assert!(!step(&mut engine, &mut told));
    assert_nothing_leaked(&engine);
    let counters = engine.gauges().counters;
    let cancelled = Counters::FINISHES.iter().position(|f| *f == Finish::Cancelled).unwrap();
    assert_eq!(counters.finished[cancelled], 2);
}

/// Six requests that grow to three pages each on a cache of seven: some are pre-empted, all give what they give alone.
#[test]
fn a_full_cache_takes_turns_and_loses_nothing() {
    let mut expected = Vec::new();
    for i in 0..6 {
        let (mut engine, _) = engine(7, Options::default(), cost);
        let id = engine.submit(plain(tokens(i, 40), 120)).unwrap();
        expected.push(drain(&mut engine)[&id].ids());
    }
    let (mut engine, _) = engine(7, Options::default(), cost);
    let ids: Vec<_> = (0..6).map(|i| engine.submit(plain(tokens(i, 40), 120)).unwrap()).collect();
    let told = drain(&mut engine);
    for (i, id) in ids.iter().enumerate() {
        assert!(told[id].ids() == expected[i], "request {i}");
    }
    let preempted = |id| told[id].outcome.as_ref().unwrap().usage.preemptions;
    let total: usize = ids.iter().map(preempted).sum();
    assert!(total > 0 && preempted(&ids[0]) == 0, "the first is never pre-empted, the last are");
    assert_eq!(engine.gauges().counters.preemptions, total as u64);
    assert_nothing_leaked(&engine);
}

/// A prompt that waits for pages is admitted before smaller ones behind it.
#[test]
fn nobody_is_overtaken_for_ever() {
    let (mut engine, _) = engine(6, Options::default(), cost);
    let first = engine.submit(plain(tokens(0, 150), 40)).unwrap();
    let mut told = HashMap::new();
    step(&mut engine, &mut told);
    let large = engine.submit(plain(tokens(1, 300), 5)).unwrap();
    let small = engine.submit(plain(tokens(2, 5), 5)).unwrap();
    while told.get(&first).is_none_or(|t| t.outcome.is_none()) {
        step(&mut engine, &mut told);
        assert!(!told.contains_key(&small), "there would be room for it");
    }
    let told = drain(&mut engine);
    assert_eq!([&large, &small].map(|id| told[id].finish()), [Finish::Length; 2]);
}

/// A request without a limit ends where the context does; one whose grammar fails, fails alone.
#[test]
fn one_request_may_fail_and_the_others_go_on() {
    struct Broken;
    impl tessera_engine::serving::Constraint for Broken {
        fn mask(&mut self, _: &mut [f32]) -> Result<(), String> {
            Err("no such rule".to_owned())
        }
        fn accept(&mut self, _: u32) -> Result<(), String> {
            Ok(())
        }
    }
    let (mut engine, _) = engine(10, Options { context: Some(100), ..Options::default() }, cost);
    let mut endless = request(tokens(0, 30), 0);
    endless.tokens_max = None;
    let endless = engine.submit(Job::new(endless)).unwrap();
    let broken = Job { constraint: Some(Box::new(Broken)), ..job(tokens(1, 30), 5) };
    let broken = engine.submit(broken).unwrap();
    let told = drain(&mut engine);
    assert_eq!((told[&endless].finish(), told[&endless].tokens.len()), (Finish::ContextFull, 71));
    assert!(told[&broken].failed.as_ref().unwrap().contains("no such rule"));
    assert_eq!(engine.gauges().counters.failed, 1);
    assert_nothing_leaked(&engine);
}
