//! Log-probabilities as OpenAI's APIs tell them.

use serde_json::{Value, json};
use tessera_engine::{Sampled, Tokenizer};

/// A token's text; what is no text by itself is told as U+FFFD, and exactly by its bytes.
pub(super) fn text(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned()
}

/// A token of `logprobs.content`, without alternatives.
fn entry(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Value {
    json!({ "token": text(tokenizer, id), "logprob": finite(logprob), "bytes": tokenizer.token_bytes(id) })
}

/// A token of `logprobs.content`.
pub(super) fn content(tokenizer: &Tokenizer, sampled: &Sampled) -> Value {
    let mut token = entry(tokenizer, sampled.id, sampled.logprob.unwrap_or(f32::NEG_INFINITY));
    token["top_logprobs"] = sampled.top.iter().map(|(id, logprob)| entry(tokenizer, *id, *logprob)).collect();
    token
}

/// JSON has no infinities.
pub(super) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
