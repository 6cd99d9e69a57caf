//! From a prompt to a reply: prefill, then sample and decode until something ends it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{Error, Sampled, Sampler, SamplingParams, Session, Tokenizer, reply::Reply};

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The whole prompt. What the session has computed of it already is not computed again.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the reply and are not part of it.
    pub stop: Vec<String>,
    /// The longest reply, in tokens; none: until the context is full.
    pub tokens_max: Option<usize>,
    /// Whether the model's own end tokens are ignored.
    pub ignore_end: bool,
    /// Whether special tokens are marked in the text, for [`crate::ReplyParser::read`]. Else they are text, or nothing.
    pub specials: bool,
}

/// What comes of it, as it comes.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The prompt is computed.
    Prefilled,
    /// A token was drawn (an end token too).
    Token(&'a Sampled),
    /// Whole characters that no stop string will take back.
    Text(&'a str),
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model's end token, or one of the request's stop tokens.
    EndToken,
    /// A stop string.
    StopString,
    /// The reply is as long as was asked for.
    Length,
    /// The context is full.
    ContextFull,
    /// The caller wanted no more.
    Cancelled,
    /// The time that it was given is over.
    Deadline,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub finish: Finish,
    /// The reply's tokens, without an end token.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that had been computed before.
    pub reused_tokens: usize,
    /// Time for the rest of the prompt.
    pub prefill_time: Duration,
    /// Time from the first token on.
    pub decode_time: Duration,
    /// Tokens computed in that time (the first token came with the prompt).
    pub decoded_tokens: usize,
}

/// Runs a request. `cancel` ends it after the present token.
///
/// # Errors
/// If the prompt is empty or does not fit, a sampling parameter is wrong, the model gives no sound logits, or the
/// device fails.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    request: &Request,
    cancel: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, Error> {
    let sampler = Sampler::new(request.sampling.clone())?;
    session.want_best(sampler.enough(session.config().vocabulary));
    let outcome = run(session, tokenizer, request, sampler, cancel, on_event);
    session.want_best(None);
    outcome
}

fn run(
    session: &mut Session,
    tokenizer: &Tokenizer,
    request: &Request,
    mut sampler: Sampler,
    cancel: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, Error> {
    let mut reply = Reply::new(request)?;
    let start = Instant::now();
    let reused_tokens = prefill(session, &request.prompt)?;
    on_event(Event::Prefilled);
    let decode_start = Instant::now();
    let (mut history, mut decoded_tokens) = (request.prompt.clone(), 0);
    let finish = loop {
        if reply.is_long_enough() {
            break Finish::Length;
        }
        if cancel.load(Ordering::Relaxed) {
            break Finish::Cancelled;
        }
        let index = reply.tokens().len() as u64;
        let sampled = match session.best() {
            [] => sampler.sample(session.logits(), &history, index)?,
            best => sampler.sample_best(best, index)?,
        };
        on_event(Event::Token(&sampled));
        let full = session.tokens().len() == session.context();
        let (text, finish) = reply.push(&sampled, full, tokenizer);
        if !text.is_empty() {
            on_event(Event::Text(&text));
        }
        if let Some(finish) = finish {
            break finish;
        }
        history.push(sampled.id);
        session.decode(sampled.id)?;
        decoded_tokens += 1;
    };
    let rest = reply.finish();
    if !rest.is_empty() {
        on_event(Event::Text(&rest));
    }
    Ok(Outcome {
        finish,
        tokens: reply.tokens().to_vec(),
        prompt_tokens: request.prompt.len(),
        reused_tokens,
        prefill_time: decode_start - start,
        decode_time: decode_start.elapsed(),
        decoded_tokens,
    })
}

/// Computes what the session lacks of the prompt (at least its last token, for its logits); gives how much it had.
fn prefill(session: &mut Session, prompt: &[u32]) -> Result<usize, Error> {
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let reused = session.common_prefix(prompt).min(prompt.len() - 1);
    session.rewind(reused);
    let reused = session.tokens().len();
    session.prefill(&prompt[reused..])?;
    Ok(reused)
}
