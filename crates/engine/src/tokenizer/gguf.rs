//! A tokenizer from a GGUF file's metadata.

use tessera_formats::{Gguf, gguf::Value};

use super::{
    Engine, Tokenizer,
    bpe::Bpe,
    byte_level,
    error::TokenizerError,
    partition::Partition,
    pre_tokenizer::{self, Spelling},
    spm::{SPACE, Spm},
    vocabulary::{Kind, Vocabulary},
};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";

pub(super) fn read(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
    match string(gguf, MODEL)?.ok_or(TokenizerError::Missing(MODEL))? {
        "llama" => spm(gguf),
        "gpt2" => bpe(gguf, string(gguf, PRE)?.unwrap_or("default")),
        "gemma4" => bpe(gguf, "gemma4"),
        other => Err(TokenizerError::UnknownModel { found: other.to_owned(), known: "gpt2, llama and gemma4" }),
    }
}

fn bpe(gguf: &Gguf, pre: &str) -> Result<Tokenizer, TokenizerError> {
    let rule = pre_tokenizer::find(pre)?;
    let escaped = rule.spelling == Spelling::Escaped;
    let vocabulary = vocabulary(gguf, if escaped { unescape } else { byte_level::decode })?;
    let merges = array(gguf, MERGES)?.ok_or(TokenizerError::Missing(MERGES))?;
    let merges = merges.as_strings().ok_or(TokenizerError::Type { key: MERGES, wanted: "an array of strings" })?;
    let engine = Engine::Bpe(Box::new(Bpe::new(&vocabulary, merges, rule)?));
    // Files made for Gemma 4 before its flag was put right say no.
    let add_bos = pre == "gemma4" || flag(gguf, ADD_BOS)?.unwrap_or(rule.add_bos);
    finish(gguf, vocabulary, engine, add_bos, false)
}

fn spm(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
    let mut vocabulary = vocabulary(gguf, unescape)?;
    // What SentencePiece has always meant by its first three tokens, where a file does not say.
    let tokens = vocabulary.len();
    let known = |id: u32| ((id as usize) < tokens).then_some(id);
    vocabulary.unknown = vocabulary.unknown.or(known(0));
    vocabulary.bos = vocabulary.bos.or(known(1));
    vocabulary.eos = vocabulary.eos.or(known(2));
    let scores = match array(gguf, SCORES)? {
        None => vec![0.0; vocabulary.len()],
        Some(scores) => {
            let whole = || scores.to_i64s().map(|all| all.into_iter().map(|s| s as f32).collect());
            let scores: Vec<f32> = scores
                .to_f32s()
                .or_else(whole)
                .ok_or(TokenizerError::Type { key: SCORES, wanted: "an array of numbers" })?;
            long_enough(SCORES, scores.len(), vocabulary.len())?;
            scores
        }
    };
    let engine = Engine::Spm(Box::new(Spm::new(&vocabulary, scores)?));
    let add_bos = flag(gguf, ADD_BOS)?.unwrap_or(true);
    let add_space = flag(gguf, ADD_SPACE)?.unwrap_or(true);
    finish(gguf, vocabulary, engine, add_bos, add_space)
}

fn finish(
    gguf: &Gguf,
    mut vocabulary: Vocabulary,
    engine: Engine,
    add_bos: bool,
    add_space: bool,
) -> Result<Tokenizer, TokenizerError> {
    vocabulary.close_ends();
    let partition = Partition::new(&vocabulary)?;
    let add_bos = add_bos && vocabulary.bos.is_some();
    let add_eos = flag(gguf, ADD_EOS)?.unwrap_or(false) && vocabulary.eos.is_some();
    Ok(Tokenizer { vocabulary, partition, engine, add_bos, add_eos, add_space })
}

fn vocabulary(gguf: &Gguf, bytes_of: fn(&str) -> Vec<u8>) -> Result<Vocabulary, TokenizerError> {
    let tokens = array(gguf, TOKENS)?.ok_or(TokenizerError::Missing(TOKENS))?;
    let tokens = tokens.as_strings().ok_or(TokenizerError::Type { key: TOKENS, wanted: "an array of strings" })?;
    let kinds = match array(gguf, KINDS)? {
        None => Vec::new(),
        Some(kinds) => {
            let kinds =
                kinds.to_i64s().ok_or(TokenizerError::Type { key: KINDS, wanted: "an array of whole numbers" })?;
            long_enough(KINDS, kinds.len(), tokens.len())?;
            kinds.into_iter().map(Kind::from_gguf).collect()
        }
    };
    let mut all = Vocabulary::new(tokens.to_vec(), kinds, bytes_of)?;
    all.bos = id(gguf, BOS, all.len())?;
    all.eos = id(gguf, EOS, all.len())?;
    all.eot = id(gguf, EOT, all.len())?;
    all.unknown = id(gguf, UNKNOWN, all.len())?;
    Ok(all)
}

fn unescape(text: &str) -> Vec<u8> {
    text.replace(SPACE, " ").into_bytes()
}

fn long_enough(key: &'static str, found: usize, wanted: usize) -> Result<(), TokenizerError> {
    if found < wanted { Err(TokenizerError::Length { key, found, wanted }) } else { Ok(()) }
}

fn string<'g>(gguf: &'g Gguf, key: &'static str) -> Result<Option<&'g str>, TokenizerError> {
    typed(gguf, key, "a string", Value::as_str)
}

fn flag(gguf: &Gguf, key: &'static str) -> Result<Option<bool>, TokenizerError> {
    typed(gguf, key, "a boolean", Value::as_bool)
}

fn array<'g>(gguf: &'g Gguf, key: &'static str) -> Result<Option<&'g tessera_formats::gguf::Array>, TokenizerError> {
    typed(gguf, key, "an array", Value::as_array)
}

fn id(gguf: &Gguf, key: &'static str, tokens: usize) -> Result<Option<u32>, TokenizerError> {
    match typed(gguf, key, "a whole number", Value::as_i64)? {
        None => Ok(None),
        Some(found) => match u32::try_from(found) {
            Ok(id) if (id as usize) < tokens => Ok(Some(id)),
            // "No such token" is written as -1, also as an unsigned number.
            Err(_) if found == -1 => Ok(None),
            Ok(u32::MAX) => Ok(None),
            _ => Err(TokenizerError::Id { key, found, tokens }),
        },
    }
}

fn typed<'g, T>(
    gguf: &'g Gguf,
    key: &'static str,
    wanted: &'static str,
    read: impl Fn(&'g Value) -> Option<T>,
) -> Result<Option<T>, TokenizerError> {
    gguf.get(key).map(|value| read(value).ok_or(TokenizerError::Type { key, wanted })).transpose()
}
