//! The engine on its own thread.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use tessera_engine::{
    Finish, LanguageModel, Sequences,
    serving::{Engine, EngineHandle, Event, Gauges, MonotonicClock, Options, Refused},
};

use super::{FakeClock, Paged, Told, drain, engine, job, tokens};

fn start(options: Options) -> EngineHandle {
    let model = Paged::new(40, FakeClock::default(), |_| 0);
    let sequences = Sequences::new(Box::new(model) as Box<dyn LanguageModel>);
    let engine = Engine::new(sequences, super::tokenizer(), options, Box::new(MonotonicClock::default()));
    EngineHandle::start(engine).unwrap()
}

/// Waits until the gauges are as they should be.
fn wait_until(handle: &EngineHandle, so: impl Fn(&Gauges) -> bool) -> Gauges {
    let start = Instant::now();
    loop {
        let gauges = handle.gauges();
        if so(&gauges) {
            return gauges;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{gauges:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The longest job that there is room for.
fn endless(which: usize) -> tessera_engine::serving::Job {
    job(tokens(which, 10), usize::MAX)
}

#[test]
fn many_threads_get_their_own_replies() {
    let handle = start(Options { slots: 4, ..Options::default() });
    let expected = |i: usize| {
        let (mut engine, _) = engine(40, Options::default(), |_| 1);
        let id = engine.submit(job(tokens(i, 70 + i), 40)).unwrap();
        drain(&mut engine).remove(&id).unwrap()
    };
    std::thread::scope(|scope| {
        for i in 0..12 {
            let handle = handle.clone();
            scope.spawn(move || {
                let mut told = Told::default();
                handle.replies(job(tokens(i, 70 + i), 40)).unwrap().for_each(|event| told.take(event));
                let expected = expected(i);
                assert_eq!((&told.tokens, &told.text), (&expected.tokens, &expected.text));
            });
        }
    });
    let gauges = wait_until(&handle, |g| g.running == 0);
    assert_eq!((gauges.counters.submitted, gauges.pages_held, gauges.waiting), (12, 0, 0));
    assert_eq!(handle.stop(Duration::from_secs(5)), Some(0));
    assert!(matches!(handle.replies(job(tokens(0, 3), 1)), Err(Refused::Stopped)));
    assert_eq!(handle.stop(Duration::ZERO), None, "it has ended");
}

#[test]
fn whoever_goes_away_leaves_no_trace() {
    let handle = start(Options { slots: 2, ..Options::default() });
    // One is computed and dropped, one waits and is dropped, one's sink refuses.
    let mut first = handle.replies(endless(0)).unwrap();
    assert!(matches!(first.next(), Some(Event::Started { .. })));
    let (sender, events) = mpsc::channel();
    let refusing = handle.submit(endless(1), move |event| {
        let last = matches!(event, Event::Token { .. });
        sender.send(()).unwrap();
        !last
    });
    events.recv().unwrap();
    let waiting = handle.replies(endless(2)).unwrap();
    drop(waiting);
    drop(first);
    let gauges = wait_until(&handle, |g| g.running + g.waiting == 0);
    assert_eq!((gauges.pages_held, gauges.counters.submitted), (0, 3));
    drop(refusing);
    // And the engine goes on.
    let last = handle.replies(job(tokens(3, 5), 2)).unwrap().last();
    assert!(matches!(last, Some(Event::Finished(outcome)) if outcome.finish == Finish::Length));
}

#[test]
fn a_full_queue_and_nonsense_are_refused_in_the_callers_thread() {
    let handle = start(Options { slots: 1, queue: 2, ..Options::default() });
    let mut running = handle.replies(endless(0)).unwrap();
    running.next();
    wait_until(&handle, |g| g.running == 1);
    let waiting = [handle.replies(endless(1)).unwrap(), handle.replies(endless(2)).unwrap()];
    assert!(matches!(handle.replies(endless(3)), Err(Refused::QueueFull { limit: 2 })));
    let context = handle.context();
    let too_long = handle.replies(job(vec![10; context + 1], 1));
    assert!(matches!(too_long, Err(Refused::TooLong { .. })));
    wait_until(&handle, |g| g.waiting == 2);
    drop(waiting);
    wait_until(&handle, |g| g.waiting == 0);
    let again = handle.replies(endless(4)).unwrap();
    drop((running, again));
    wait_until(&handle, |g| g.running + g.waiting == 0);
}

#[test]
fn a_stop_finishes_or_cuts_off() {
    let handle = start(Options::default());
    let short = handle.replies(job(tokens(0, 5), 50)).unwrap();
    assert_eq!(handle.stop(Duration::from_secs(20)), Some(0));
    let ends = |event: Option<Event>| match event {
        Some(Event::Finished(outcome)) => outcome.finish,
        other => panic!("{other:?}"),
    };
    assert_eq!(ends(short.last()), Finish::Length);
    // A model that takes its time, so that the endless one cannot end by itself.
    struct Slow(Paged);
    impl LanguageModel for Slow {
        fn config(&self) -> &tessera_engine::Config {
            self.0.config()
        }
        fn cache_tokens(&self) -> usize {
            self.0.cache_tokens()
        }
        fn cache_bytes(&self) -> usize {
            self.0.cache_bytes()
        }
        fn forward(&mut self, b: &tessera_ops::Batch, l: &mut Vec<f32>) -> Result<(), tessera_engine::Error> {
            std::thread::sleep(Duration::from_millis(5));
            self.0.forward(b, l)
        }
        fn forward_hidden(
            &mut self,
            b: &tessera_ops::Batch,
            l: &mut Vec<f32>,
            h: &mut Vec<f32>,
        ) -> Result<(), tessera_engine::Error> {
            self.0.forward_hidden(b, l, h)
        }
        fn owner(
            &self,
            identity: &tessera_engine::state::Identity,
        ) -> Result<tessera_engine::state::Owner, tessera_engine::Error> {
            self.0.owner(identity)
        }
        fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<(), tessera_engine::Error> {
            self.0.read_page(page, out)
        }
        fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), tessera_engine::Error> {
            self.0.write_page(page, bytes)
        }
    }
    let sequences = Sequences::new(Box::new(Slow(Paged::new(40, FakeClock::default(), |_| 0))));
    let clock = Box::new(MonotonicClock::default());
    let handle = EngineHandle::start(Engine::new(sequences, super::tokenizer(), Options::default(), clock)).unwrap();
    let long = handle.replies(endless(0)).unwrap();
    assert_eq!(handle.stop(Duration::from_millis(50)), Some(1));
    assert_eq!(ends(long.last()), Finish::Cancelled);
}

/// Without handles and tickets the thread ends by itself.
#[test]
fn the_thread_ends_with_its_last_handle() {
    let handle = start(Options::default());
    let (sender, events) = mpsc::channel();
    let ticket = handle.submit(endless(0), move |event| sender.send(event).is_ok()).unwrap();
    drop(handle);
    drop(ticket);
    let last = events.iter().last();
    assert!(matches!(last, Some(Event::Finished(outcome)) if outcome.finish == Finish::Cancelled));
}

/// A cancel that leaves nothing to do is told at once, not with the next request.
#[test]
fn what_a_cancel_frees_is_told() {
    let handle = start(Options { slots: 1, queue: 1, ..Options::default() });
    let (sender, events) = mpsc::channel();
    let keep = sender.clone();
    let running = handle.submit(endless(0), move |event| keep.send(event).is_ok()).unwrap();
    assert!(matches!(events.recv(), Ok(Event::Started { .. })));
    wait_until(&handle, |g| g.running == 1); // the queue is free again by then
    let waiting = handle.submit(endless(1), move |event| sender.send(event).is_ok()).unwrap();
    waiting.cancel();
    running.cancel();
    let gauges = wait_until(&handle, |g| g.running + g.waiting + g.pages_held == 0);
    assert_eq!(gauges.batch_rows, 0);
    // The queue has its place again.
    let again = handle.replies(endless(2)).unwrap();
    drop(again);
    wait_until(&handle, |g| g.running == 0);
}
