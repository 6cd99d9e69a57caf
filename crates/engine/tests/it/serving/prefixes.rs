//! What was computed for one request serves others that begin alike.

use std::collections::HashMap;

use tessera_engine::{
    Part, Sequences,
    serving::{Engine, Job, Options, Speculation},
};
use tessera_ops::{PAGE_TOKENS, Role};

use super::{FakeClock, Paged, Told, assert_nothing_leaked, drain, engine, job, step, tokens};

fn cost(rows: usize) -> u64 {
    rows as u64
}

/// Serves one request and gives what came of it.
fn serve(engine: &mut Engine, prompt: &[u32], tokens_max: usize) -> Told {
    let id = engine.submit(Job { speculation: Speculation::Off, ..job(prompt.to_vec(), tokens_max) }).unwrap();
    drain(engine).remove(&id).unwrap()
}

fn cached(told: &Told) -> usize {
    told.outcome.as_ref().unwrap().usage.cached_tokens
}

#[test]
fn whole_pages_of_a_common_prefix_are_not_computed_again() {
    let (mut engine, _) = engine(40, Options::default(), cost);
    let text = tokens(0, 300);
    for (length, expected) in [(300, 0), (300, 256), (257, 256), (256, 192), (200, 192), (65, 64), (64, 0), (10, 0)] {
        let rows = engine.gauges().counters.rows;
        let told = serve(&mut engine, &text[..length], 1);
        assert_eq!((cached(&told), told.started), (expected, Some((length, expected))), "{length} tokens");
        assert_eq!(engine.gauges().counters.rows - rows, (length - expected) as u64);
    }
    let mut other = text.clone();
    other[100] ^= 1;
    assert_eq!(cached(&serve(&mut engine, &other, 1)), 64, "up to the page that differs");
    assert_nothing_leaked(&engine);
}

/// The next turn of a conversation begins with the reply.
#[test]
fn a_reply_is_a_prefix_too_where_both_roles_compute_alike() {
    for (share_replies, expected) in [(true, 192), (false, 64)] {
        let (mut engine, _) = engine(40, Options { share_replies, ..Options::default() }, cost);
        let mut text = tokens(0, 100);
        text.extend(serve(&mut engine, &text, 150).ids());
        assert_eq!(cached(&serve(&mut engine, &text, 1)), expected);
    }
}

/// Eight replies to one prompt compute it once, also where they come together.
#[test]
fn replies_to_one_prompt_share_it() {
    let (mut engine, _) = engine(40, Options { step_tokens: 100, ..Options::default() }, cost);
    let prompt = tokens(0, 640);
    let ids: Vec<_> = (0..8)
        .map(|seed| {
            let mut job = job(prompt.clone(), 3);
            job.request.sampling.seed = seed;
            job.request.sampling.temperature = 2.0;
            engine.submit(job).unwrap()
        })
        .collect();
    let mut told = HashMap::new();
    while step(&mut engine, &mut told) {
        assert!(engine.gauges().pages_held <= 10 + 8);
    }
    let rows = engine.gauges().counters.rows;
    assert!(rows <= 640 + 7 * 64 + 8 * 3, "{rows} rows");
    let mut replies: Vec<_> = ids.iter().map(|id| told[id].ids()).collect();
    replies.sort();
    replies.dedup();
    assert!(replies.len() > 4, "seeds differ");
    assert_nothing_leaked(&engine);
}

#[test]
fn what_was_used_longest_ago_makes_room() {
    let (mut engine, _) = engine(9, Options::default(), cost);
    let texts: Vec<_> = (0..4).map(|i| tokens(i, 3 * PAGE_TOKENS - 5)).collect();
    // Two whole pages stay of each.
    for text in &texts[..3] {
        serve(&mut engine, text, 1);
    }
    assert_eq!(engine.gauges().pages_cached, 6);
    assert_eq!(cached(&serve(&mut engine, &texts[0], 1)), 128);
    // The new one takes the three free pages and keeps two of them; the next, of four, takes the third, and then both of the
    // second text, and the last of the third.
    serve(&mut engine, &texts[3], 1);
    assert_eq!(engine.gauges().pages_cached, 8);
    assert_eq!(cached(&serve(&mut engine, &tokens(9, 4 * PAGE_TOKENS), 1)), 0);
    assert_eq!(engine.gauges().pages_cached, 9);
    let whole = |which: usize| engine.sequences().reusable_pages(&texts[which]).0;
    assert_eq!([0, 1, 2, 3].map(whole), [2, 0, 1, 2]);
}

/// With a hash that is the same for everything, replies and hits are the same.
#[test]
fn a_colliding_hash_is_only_slow() {
    let clock = FakeClock::default();
    let sequences = Sequences::new(Box::new(Paged::new(40, clock.clone(), cost))).with_hash(|_, _| 42);
    let mut colliding = Engine::new(sequences, super::tokenizer(), Options::default(), Box::new(clock));
    let (mut good, _) = engine(40, Options::default(), cost);
    for i in [0, 1, 0, 2, 1, 0] {
        let text = tokens(i, 200);
        let (a, b) = (serve(&mut good, &text, 20), serve(&mut colliding, &text, 20));
        assert_eq!((a.tokens, a.started), (b.tokens, b.started));
    }
    assert!(colliding.gauges().counters.cached_tokens >= 3 * 192);
}

/// A sequence that was rewound into a page that others see goes on in a copy.
#[test]
fn a_published_page_is_never_written_to() {
    let mut many = Sequences::new(Box::new(Paged::new(6, FakeClock::default(), cost)));
    let text = tokens(0, 130);
    let first = many.open();
    many.prefill(first, &text, 512).unwrap();
    many.publish(first, usize::MAX);
    let second = many.open();
    assert_eq!(many.reuse(second, &text), 128);
    assert_eq!((many.free_pages(), many.reusable_pages(&text)), (3, (2, 2)));
    many.rewind(first, 100);
    assert_eq!(many.pages_to_take(first, 1), 1);
    let one_token = [text[100] ^ 1];
    let part = Part { sequence: first, tokens: &one_token, role: Role::Decode, logits: 1 };
    let logits = many.step(&[part]).unwrap().to_vec();
    // The first has its own second page now, and what the second sees is what it was.
    let third = many.open();
    many.prefill(third, &[&text[..100], &one_token].concat(), 512).unwrap();
    assert!(many.logits() == &logits[..]);
    let rest = Part { sequence: second, tokens: &text[128..], role: Role::Prefill, logits: 1 };
    let seen = many.step(&[rest]).unwrap().to_vec();
    for id in [first, second, third] {
        many.close(id);
    }
    let alone = many.open();
    assert!(many.prefill(alone, &text, 512).unwrap() == &seen[..]);
    many.close(alone);
    assert_eq!((many.free_pages(), many.total_pages()), (6, 6));
}
