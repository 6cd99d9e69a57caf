//! Replies from a tiny model: what ends them, what they reuse, and that nothing but the request decides them.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tessera_engine::{
    Checkpoint, Error, Event, Finish, LoadOptions, Outcome, Request, SamplingParams, Session, Special, Tokenizer,
    generate, models,
};
use tessera_ops::reference::ReferenceDevice;

const CONTEXT: usize = 64;

fn open(chunk: usize) -> (Session, Tokenizer) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama/model.gguf");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let options = LoadOptions { context: Some(CONTEXT), ..LoadOptions::default() };
    let model = models::load(&checkpoint, Arc::new(ReferenceDevice), &options, &mut |_| {}).unwrap();
    (Session::new(model, chunk), checkpoint.tokenizer().unwrap())
}

fn request(tokenizer: &Tokenizer, text: &str, tokens_max: usize) -> Request {
    Request {
        prompt: tokenizer.encode(text, Special::Plain, true).unwrap(),
        sampling: SamplingParams::default(),
        stop: Vec::new(),
        tokens_max: Some(tokens_max),
        ignore_end: true,
        specials: false,
    }
}

fn run(session: &mut Session, tokenizer: &Tokenizer, request: &Request) -> (Outcome, String) {
    let mut text = String::new();
    let outcome = generate(session, tokenizer, request, &AtomicBool::new(false), &mut |event| {
        if let Event::Text(t) = event {
            text.push_str(t);
        }
    });
    (outcome.unwrap(), text)
}

#[test]
fn the_request_alone_decides_the_reply() {
    let (mut session, tokenizer) = open(512);
    let mut sampled = request(&tokenizer, "Hello there, world", 12);
    sampled.sampling = SamplingParams { temperature: 1.5, seed: 7, top_p: 0.9, ..SamplingParams::default() };
    let (first, text) = run(&mut session, &tokenizer, &sampled);
    assert_eq!((first.tokens.len(), first.finish), (12, Finish::Length));
    for chunk in [1, 7] {
        let (mut session, _) = open(chunk);
        let (again, same) = run(&mut session, &tokenizer, &sampled);
        assert_eq!((again.tokens, same), (first.tokens.clone(), text.clone()));
    }
    sampled.sampling.seed = 8;
    assert_ne!(run(&mut session, &tokenizer, &sampled).0.tokens, first.tokens, "another seed, another reply");
}

#[test]
fn a_prompt_that_continues_reuses_what_was_computed() {
    let (mut session, tokenizer) = open(512);
    let mut turn = request(&tokenizer, "Hello there", 5);
    let (first, _) = run(&mut session, &tokenizer, &turn);
    assert_eq!(first.reused_tokens, 0);
    turn.prompt.extend(&first.tokens);
    let (second, _) = run(&mut session, &tokenizer, &turn);
    // All but the last token of the reply had been computed.
    assert_eq!(second.reused_tokens, turn.prompt.len() - 1);
    let (mut fresh, _) = open(512);
    assert_eq!(run(&mut fresh, &tokenizer, &turn).0.tokens, second.tokens);
}

#[test]
fn stop_strings_and_tokens_end_a_reply() {
    let (mut session, tokenizer) = open(512);
    let plain = request(&tokenizer, "abc", 20);
    let (outcome, text) = run(&mut session, &tokenizer, &plain);
    let middle: String = text.chars().skip(3).take(2).collect();
    let before = &text[..text.find(&middle).unwrap()];
    let (stopped, short) = run(&mut session, &tokenizer, &Request { stop: vec![middle], ..plain.clone() });
    assert_eq!((stopped.finish, short.as_str()), (Finish::StopString, before));
    let mut by_token = plain.clone();
    by_token.sampling.stop_tokens = vec![outcome.tokens[4]];
    let first = outcome.tokens.iter().position(|t| *t == outcome.tokens[4]).unwrap();
    let (stopped, _) = run(&mut session, &tokenizer, &by_token);
    assert_eq!((stopped.finish, stopped.tokens.len()), (Finish::EndToken, first));
}

#[test]
fn the_context_ends_a_reply_and_refuses_a_prompt() {
    let (mut session, tokenizer) = open(512);
    let mut long = request(&tokenizer, "abc", usize::MAX);
    let (outcome, _) = run(&mut session, &tokenizer, &long);
    assert_eq!(outcome.finish, Finish::ContextFull);
    assert_eq!(long.prompt.len() + outcome.tokens.len(), CONTEXT + 1);
    long.prompt = vec![5; CONTEXT + 1];
    let refused = generate(&mut session, &tokenizer, &long, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(matches!(refused, Error::ContextFull { tokens: 65, context: 64, .. }), "{refused}");
    long.prompt = Vec::new();
    let refused = generate(&mut session, &tokenizer, &long, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(matches!(refused, Error::EmptyPrompt));
    long.prompt = vec![1_000_000];
    let refused = generate(&mut session, &tokenizer, &long, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    assert!(matches!(refused, Error::Token { token: 1_000_000, .. }));
}

#[test]
fn a_caller_may_cancel() {
    let (mut session, tokenizer) = open(512);
    let (cancel, mut tokens) = (AtomicBool::new(false), 0);
    let outcome = generate(&mut session, &tokenizer, &request(&tokenizer, "abc", 40), &cancel, &mut |event| {
        if matches!(event, Event::Token(_)) {
            tokens += 1;
            cancel.store(tokens == 3, Ordering::Relaxed);
        }
    });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.finish, outcome.tokens.len()), (Finish::Cancelled, 3));
}
