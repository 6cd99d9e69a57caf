//! From a prompt to a reply: prefill, then sample and decode until something ends it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{Error, Sampled, Sampler, SamplingParams, Session, StopStrings, TextStream, Tokenizer};

/// What to generate.
#[derive(Clone, Debug)]
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
    let mut sampler = Sampler::new(request.sampling.clone())?;
    let mut text = ReplyText { stream: TextStream::new(false), stop: StopStrings::new(request.stop.clone())? };
    let start = Instant::now();
    let reused_tokens = prefill(session, &request.prompt)?;
    on_event(Event::Prefilled);
    let decode_start = Instant::now();
    let mut outcome = Outcome {
        finish: Finish::Length,
        tokens: Vec::new(),
        prompt_tokens: request.prompt.len(),
        reused_tokens,
        prefill_time: decode_start - start,
        decode_time: Duration::ZERO,
        decoded_tokens: 0,
    };
    let mut history = request.prompt.clone();
    outcome.finish = loop {
        if request.tokens_max.is_some_and(|max| outcome.tokens.len() >= max) {
            break Finish::Length;
        }
        if cancel.load(Ordering::Relaxed) {
            break Finish::Cancelled;
        }
        let sampled = sampler.sample(session.logits(), &history, outcome.tokens.len() as u64)?;
        on_event(Event::Token(&sampled));
        let ends = tokenizer.is_end_of_generation(sampled.id) && !request.ignore_end;
        if ends || sampled.stop {
            break Finish::EndToken;
        }
        outcome.tokens.push(sampled.id);
        history.push(sampled.id);
        if !tokenizer.is_control(sampled.id) {
            text.push(tokenizer.token_bytes(sampled.id), on_event);
        }
        if text.stop.stopped() {
            break Finish::StopString;
        }
        if session.tokens().len() == session.context() {
            break Finish::ContextFull;
        }
        if request.tokens_max.is_some_and(|max| outcome.tokens.len() >= max) {
            break Finish::Length;
        }
        session.decode(sampled.id)?;
        outcome.decoded_tokens += 1;
    };
    text.finish(on_event);
    outcome.decode_time = decode_start.elapsed();
    Ok(outcome)
}

/// Computes what the session lacks of the prompt (at least its last token, for its logits); gives how much it had.
fn prefill(session: &mut Session, prompt: &[u32]) -> Result<usize, Error> {
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let reused = session.common_prefix(prompt).min(prompt.len() - 1);
    session.rewind(reused);
    session.prefill(&prompt[reused..])?;
    Ok(reused)
}

/// The reply's bytes on their way to whole characters before any stop string.
struct ReplyText {
    stream: TextStream,
    stop: StopStrings,
}

impl ReplyText {
    fn push(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) {
        let text = self.stream.push(bytes);
        let text = self.stop.push(&text);
        if !text.is_empty() {
            on_event(Event::Text(&text));
        }
    }

    fn finish(&mut self, on_event: &mut dyn FnMut(Event<'_>)) {
        let rest = self.stream.finish();
        let text = self.stop.push(&rest) + &self.stop.finish();
        if !self.stop.stopped() && !text.is_empty() {
            on_event(Event::Text(&text));
        }
    }
}
