//! Guessing: it gains where guesses are right, costs next to nothing where they are wrong, and changes no token.

use std::{collections::HashMap, time::Duration};

use tessera_engine::{
    Error, Sequences,
    serving::{
        Clock, Constraint, Engine, Job, Options, RequestId, Speculation,
        speculation::{Ask, CLASSES, DEPTH_MAX, Draft, DraftModel, Drafter},
    },
    synth::{self, Spec},
};

use super::{FakeClock, Paged, Random, assert_nothing_leaked, drain, engine, job, step, tokens};

/// Memory-bound: eight rows take a little more than twice as long as one.
fn cost(rows: usize) -> u64 {
    1000 + 180 * (rows as u64 - 1)
}

/// Knows the reply and tells it with errors.
struct Oracle {
    reply: Vec<u32>,
    prompt_tokens: usize,
    /// One draft in so many is wrong.
    wrong_one_in: usize,
    random: Random,
    clock: FakeClock,
    /// Time of a draft.
    time: Duration,
}

impl Drafter for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn is_free(&self) -> bool {
        self.time == Duration::ZERO
    }

    fn draft(&mut self, asks: &[Ask<'_>], _: &mut Sequences) -> Result<Vec<Draft>, Error> {
        let guess = |ask: &Ask<'_>| {
            assert!((1..=DEPTH_MAX).contains(&ask.most));
            let from = ask.known.len() - self.prompt_tokens;
            assert_eq!(from as u64, ask.index);
            let truth = &self.reply[from..self.reply.len().min(from + ask.most)];
            self.clock.advance(self.time * truth.len() as u32);
            let tell = |t: &u32| t ^ u32::from(self.random.one_in(self.wrong_one_in));
            Draft { tokens: truth.iter().map(tell).collect(), class: CLASSES - 1 }
        };
        Ok(asks.iter().map(guess).collect())
    }

    fn forget(&mut self, _: RequestId) {}
}

const REPLY_TOKENS: usize = 600;

/// Time of a reply, and how often drafts were right, with an oracle that errs so often.
fn time(wrong_one_in: usize, speculation: Speculation, draft_time: Duration) -> (Duration, f64) {
    let prompt = tokens(3, 20);
    let (mut plain, _) = engine(20, Options::default(), cost);
    let id = plain.submit(Job { speculation: Speculation::Off, ..job(prompt.clone(), REPLY_TOKENS) }).unwrap();
    let reply = drain(&mut plain)[&id].ids();
    let clock = FakeClock::default();
    let sequences = Sequences::new(Box::new(Paged::new(20, clock.clone(), cost)));
    let oracle = Oracle {
        reply: reply.clone(),
        prompt_tokens: prompt.len(),
        wrong_one_in,
        random: Random(5),
        clock: clock.clone(),
        time: draft_time,
    };
    let mut engine = Engine::new(sequences, super::tokenizer(), Options::default(), Box::new(clock.clone()))
        .with_drafter(Box::new(oracle));
    // Nothing in the prompt or the reply repeats three tokens, or the lookup would answer first.
    let id = engine.submit(Job { speculation, ..job(prompt, REPLY_TOKENS) }).unwrap();
    let told = drain(&mut engine).remove(&id).unwrap();
    assert_eq!(told.ids(), reply, "no draft changes a token");
    assert_nothing_leaked(&engine);
    let used = told.outcome.unwrap().usage.speculation;
    assert_eq!(used.passes + used.accepted + 1, REPLY_TOKENS);
    (clock.now(), used.acceptance().unwrap_or(0.0))
}

#[test]
fn right_guesses_gain_and_wrong_ones_cost_next_to_nothing() {
    let (plain, _) = time(2, Speculation::Off, Duration::ZERO);
    let ratio = |wrong_one_in, draft_time| {
        plain.as_secs_f64() / time(wrong_one_in, Speculation::Auto, draft_time).0.as_secs_f64()
    };
    // All drafts right: 8 tokens in 2.26 times the time.
    assert!(ratio(usize::MAX, Duration::ZERO) > 3.0);
    assert!(ratio(10, Duration::ZERO) > 1.9);
    assert!(ratio(3, Duration::ZERO) > 1.15);
    assert!(ratio(1, Duration::ZERO) > 0.97, "all wrong: {}", ratio(1, Duration::ZERO));
    assert!(ratio(2, Duration::ZERO) > 0.97);
    // Drafts that take a third of a step's time, and as long as a step.
    let slower = ratio(usize::MAX, Duration::from_micros(100));
    assert!(slower > 2.0, "{slower}");
    for slow in [300, 1000, 3000] {
        for wrong_one_in in [1, 2, 5, usize::MAX] {
            let ratio = ratio(wrong_one_in, Duration::from_micros(slow));
            assert!(ratio > 0.97, "{slow} us, one in {wrong_one_in} wrong: {ratio}");
        }
    }
}

/// Where rows cost as much as steps there is nothing to gain.
#[test]
fn it_switches_itself_off_where_rows_are_dear() {
    let dear = |rows: usize| 1000 * rows as u64;
    let run = |speculation| {
        let (mut engine, clock) = engine(20, Options::default(), dear);
        let period = tokens(1, 7).repeat(20);
        engine.submit(Job { speculation, ..job(period, 400) }).unwrap();
        drain(&mut engine);
        clock.now()
    };
    let (off, auto) = (run(Speculation::Off), run(Speculation::Auto));
    assert!(auto.as_secs_f64() < off.as_secs_f64() * 1.03, "{auto:?} against {off:?}");
}

/// Drafts lengthen a step for all: among eight, of which one repeats itself, nobody ends later than without.
#[test]
fn nobody_pays_for_anothers_drafts() {
    let run = |speculation| {
        let (mut engine, clock) = engine(60, Options::default(), cost);
        let mut prompts: Vec<_> = (0..7).map(|i| tokens(i, 30)).collect();
        prompts.push(tokens(7, 5).repeat(6));
        let ids: Vec<_> =
            prompts.into_iter().map(|p| engine.submit(Job { speculation, ..job(p, 300) }).unwrap()).collect();
        let (mut told, mut ends) = (HashMap::new(), vec![Duration::ZERO; 8]);
        while step(&mut engine, &mut told) {
            for (id, end) in ids.iter().zip(&mut ends).filter(|(_, end)| end.is_zero()) {
                if told.get(id).is_some_and(|t| t.outcome.is_some()) {
                    *end = clock.now();
                }
            }
        }
        ends
    };
    for (with, without) in run(Speculation::Auto).iter().zip(run(Speculation::Off)) {
        assert!(with.as_secs_f64() <= without.as_secs_f64() * 1.03, "{with:?} against {without:?}");
    }
}

/// A draft model that is the model itself is always right, sampled or not; its pages are given back.
#[test]
fn a_draft_model_draws_as_the_model_does() {
    for temperature in [0.0, 0.7] {
        let clock = FakeClock::default();
        let sequences = |pages| Sequences::new(Box::new(Paged::new(pages, clock.clone(), cost)));
        let tokenizer = super::tokenizer();
        let drafter = DraftModel::new(sequences(9), &tokenizer, &tokenizer).unwrap();
        let mut engine = Engine::new(sequences(40), tokenizer, Options::default(), Box::new(clock.clone()))
            .with_drafter(Box::new(drafter));
        let jobs = (0..4).map(|i| {
            let mut job = Job { speculation: Speculation::Depth(4), ..job(tokens(i, 100), 60) };
            (job.request.sampling.temperature, job.request.sampling.seed) = (temperature, i as u64);
            job
        });
        let ids: Vec<_> = jobs.map(|job| engine.submit(job).unwrap()).collect();
        let told = drain(&mut engine);
        // Prompt lookup is asked first, and errs.
        for id in ids {
            let used = told[&id].outcome.as_ref().unwrap().usage.speculation;
            assert!(used.drafted > 20 && used.acceptance().unwrap() > 0.8, "{used:?}");
        }
        assert_nothing_leaked(&engine);
    }
}

#[test]
fn a_draft_model_gives_its_pages_back() {
    let tokenizer = super::tokenizer();
    let sequences = Sequences::new(Box::new(Paged::new(5, FakeClock::default(), cost)));
    let mut drafter = DraftModel::new(sequences, &tokenizer, &tokenizer).unwrap();
    let sampling = tessera_engine::SamplingParams::default();
    let mut large = Sequences::new(Box::new(Paged::new(5, FakeClock::default(), cost)));
    let sequence = large.open();
    // Six sequences of two pages on a cache of five: the oldest make room.
    for round in 0..3 {
        for which in 0..6 {
            let known = tokens(which, 100 + round);
            let request = RequestId(which as u64);
            let ask = Ask { request, sequence, known: &known, sampling: &sampling, index: 0, most: 3 };
            let mut draft = drafter.draft(&[ask], &mut large).unwrap();
            if draft[0].tokens.is_empty() {
                draft = drafter.draft(&[ask], &mut large).unwrap(); // it computed a part of the prompt first
            }
            assert_eq!(draft[0].tokens.len(), 3);
        }
    }
    (0..6).for_each(|which| drafter.forget(RequestId(which)));
    assert_eq!(drafter.sequences().free_pages(), 5);
}

#[test]
fn a_draft_model_must_have_the_same_vocabulary() {
    let large = super::tokenizer();
    for vocabulary in [large.vocab_len() + 1, large.vocab_len()] {
        let line =
            format!("llama,layers=1,width=64,heads=2,kv_heads=1,head_dim=32,vocabulary={vocabulary},format=Q8_0");
        let other = synth::checkpoint(&Spec::parse(&line).unwrap(), 1).unwrap().tokenizer().unwrap();
        let sequences = Sequences::new(Box::new(Paged::new(5, FakeClock::default(), cost)));
        let refused = DraftModel::new(sequences, &other, &large).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("same vocabulary"), "{refused}");
    }
}

/// A drafter that fails is not asked again, and nobody else notices.
#[test]
fn a_drafter_that_fails_is_left_out() {
    struct Broken;
    impl Drafter for Broken {
        fn name(&self) -> &'static str {
            "broken"
        }
        fn is_free(&self) -> bool {
            true
        }
        fn draft(&mut self, _: &[Ask<'_>], _: &mut Sequences) -> Result<Vec<Draft>, Error> {
            Err(Error::EmptyPrompt)
        }
        fn forget(&mut self, _: RequestId) {}
    }
    let (engine, _) = engine(20, Options::default(), cost);
    let mut engine = engine.with_drafter(Box::new(Broken));
    let id = engine.submit(job(tokens(0, 10), 20)).unwrap();
    assert_eq!(drain(&mut engine)[&id].tokens.len(), 20);
}

/// Says what must come, sometimes wrongly.
struct Recital {
    text: Vec<u32>,
    at: usize,
    errs: bool,
}

impl Constraint for Recital {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let wanted = self.text[self.at] as usize;
        logits.iter_mut().enumerate().filter(|(i, _)| *i != wanted).for_each(|(_, l)| *l = f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert_eq!(token, self.text[self.at]);
        self.at += 1;
        Ok(())
    }

    fn forced(&mut self) -> Vec<u32> {
        let shift = u32::from(self.errs && self.at.is_multiple_of(3));
        self.text[self.at..].iter().map(|t| t + shift).collect()
    }
}

#[test]
fn what_a_grammar_forces_is_a_draft() {
    let text = tokens(7, 81);
    for (errs, passes) in [(false, 14), (true, 40)] {
        let (mut engine, _) = engine(20, Options::default(), cost);
        let constraint = Box::new(Recital { text: text.clone(), at: 0, errs });
        let id = engine.submit(Job { constraint: Some(constraint), ..job(tokens(0, 5), 81) }).unwrap();
        let told = drain(&mut engine).remove(&id).unwrap();
        assert_eq!(told.ids(), text);
        let used = told.outcome.unwrap().usage.speculation;
        assert!(used.passes <= passes, "{used:?}");
    }
}
