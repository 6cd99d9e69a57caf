//! One reply for the commands: the flags as a request, the engine's events as pieces, and how fast it went.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Result;
use tessera_engine::{
    ChatEvent, Event, Finish, Outcome, ReplyParser, Request, Sampled, SamplingParams, Tokenizer,
    chat::Reply as Message, generate,
};

use crate::{args::Sampling, model::Model};

/// What is shown of a reply as it comes.
pub(crate) enum Piece {
    /// Of a text that goes on, or of a conversation.
    Chat(ChatEvent),
    /// A drawn token.
    Token(Token),
}

/// A drawn token for people and scripts.
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) text: String,
    /// Natural logarithm, where asked for.
    pub(crate) logprob: Option<f32>,
    /// The likeliest tokens, best first: id, text, log-probability.
    pub(crate) top: Vec<(u32, String, f32)>,
}

/// A finished reply.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Where it is no conversation, all of it is content.
    pub(crate) message: Message,
    pub(crate) seed: u64,
    pub(crate) outcome: Outcome,
}

impl Reply {
    /// Why it ended, as in JSON.
    pub(crate) fn finish_reason(&self) -> &'static str {
        match self.outcome.finish {
            Finish::EndToken if !self.message.calls.is_empty() => "tool_calls",
            Finish::EndToken | Finish::StopString => "stop",
            Finish::Length => "length",
            Finish::ContextFull => "context",
            Finish::Cancelled | Finish::Deadline => "interrupted",
        }
    }

    /// Tokens of the prompt that were computed; the rest was in the cache.
    pub(crate) fn prefilled(&self) -> usize {
        self.outcome.prompt_tokens - self.outcome.reused_tokens
    }

    /// Prompt tokens a second.
    pub(crate) fn prefill_speed(&self) -> f64 {
        speed(self.prefilled(), self.outcome.prefill_time)
    }

    /// Reply tokens a second; the first comes with the prompt.
    pub(crate) fn decode_speed(&self) -> f64 {
        speed(self.outcome.decoded_tokens, self.outcome.decode_time)
    }

    /// One line for people.
    pub(crate) fn stats(&self) -> String {
        format!(
            "prefill {} tokens, {:.1} tokens a second; decode {} tokens, {:.1} tokens a second; seed {}",
            self.prefilled(),
            self.prefill_speed(),
            self.outcome.decoded_tokens,
            self.decode_speed(),
            self.seed
        )
    }
}

fn speed(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// What the flags ask for, with a seed of its own if they name none.
pub(crate) fn request(flags: &Sampling, logprobs: Option<usize>, prompt: Vec<u32>) -> Request {
    let sampling = SamplingParams {
        temperature: flags.temperature,
        top_k: flags.top_k,
        top_p: flags.top_p,
        min_p: flags.min_p,
        repetition_penalty: flags.repetition_penalty,
        frequency_penalty: flags.frequency_penalty,
        presence_penalty: flags.presence_penalty,
        penalty_window: flags.penalty_window,
        logit_bias: flags.logit_bias.clone(),
        // The standard library seeds its hash maps from the system's randomness.
        seed: flags.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 11),
        stop_tokens: flags.stop_token.clone(),
        logprobs,
    };
    let stop = flags.stop.clone();
    Request {
        prompt,
        sampling,
        stop,
        tokens_max: Some(flags.max_tokens),
        ignore_end: flags.ignore_eos,
        specials: false,
    }
}

/// Runs a request, showing each piece as it comes; `parser` reads the reply of a conversation. Setting `stop` ends it early;
/// so does an error of `show`.
///
/// # Errors
/// Where the prompt does not fit, the device or the sampler fails, or `show` does.
pub(crate) fn reply(
    model: &mut Model,
    request: &Request,
    mut parser: Option<ReplyParser>,
    stop: &AtomicBool,
    show: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<Reply> {
    // One token more, for the reply.
    let (tokenizer, session) = model.session(request.prompt.len() + 1)?;
    let request = Request { specials: parser.is_some(), ..request.clone() };
    let (mut message, mut shown, mut events) = (Message::default(), Ok(()), Vec::new());
    let mut tell = |events: &mut Vec<ChatEvent>, show: &mut dyn FnMut(Piece) -> Result<()>| {
        events.drain(..).try_for_each(|event| {
            message.add(&event);
            show(Piece::Chat(event))
        })
    };
    let outcome = generate(session, tokenizer, &request, stop, &mut |event| {
        if shown.is_err() {
            return;
        }
        match (event, &mut parser) {
            (Event::Prefilled, _) => {}
            (Event::Token(sampled), _) => shown = show(Piece::Token(token(tokenizer, sampled))),
            (Event::Text(text), Some(parser)) => parser.read(text, &mut events),
            (Event::Text(text), None) => events.push(ChatEvent::Content(text.to_owned())),
        }
        if shown.is_ok() {
            shown = tell(&mut events, show);
        }
        if shown.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
    })?;
    shown?;
    if let Some(parser) = &mut parser {
        parser.finish(&mut events);
        tell(&mut events, show)?;
    }
    Ok(Reply { message, seed: request.sampling.seed, outcome })
}

fn token(tokenizer: &Tokenizer, sampled: &Sampled) -> Token {
    let text = |id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
    let top = sampled.top.iter().map(|&(id, logprob)| (id, text(id), logprob)).collect();
    Token { id: sampled.id, text: text(sampled.id), logprob: sampled.logprob, top }
}
