//! A tokenizer from `tokenizer.json` (and `tokenizer_config.json`), wholly by the `tokenizers` crate.
//!
//! The crate gives ids for texts; what bytes an id stands for follows from the file's decoder.

use serde_json::Value;

use super::{
    Engine, Special, Tokenizer, byte_level,
    error::TokenizerError,
    partition::Partition,
    spm::SPACE,
    vocabulary::{Kind, Vocabulary, byte_named},
};

const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// The crate's tokenizer, twice: whether special tokens are found in a text is a setting, not an argument.
#[derive(Debug)]
pub(super) struct Json {
    parsing: tokenizers::Tokenizer,
    plain: tokenizers::Tokenizer,
}

pub(super) fn read(json: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, TokenizerError> {
    let bad = |problem: String| TokenizerError::Json { file: FILE, problem };
    let mut parsing = tokenizers::Tokenizer::from_bytes(json).map_err(|e| bad(e.to_string()))?;
    // Settings of whoever trained it, not of the vocabulary.
    parsing.with_padding(None);
    parsing.with_truncation(None).map_err(|e| bad(e.to_string()))?;
    let file: Value = serde_json::from_slice(json).map_err(|e| bad(e.to_string()))?;
    let config: Value = match config {
        None => Value::Null,
        Some(bytes) => {
            serde_json::from_slice(bytes).map_err(|e| TokenizerError::Json { file: CONFIG, problem: e.to_string() })?
        }
    };
    let mut vocabulary = vocabulary(&parsing, &file)?;
    vocabulary.bos = named(&vocabulary, &config, "bos_token");
    vocabulary.eos = named(&vocabulary, &config, "eos_token");
    vocabulary.unknown = named(&vocabulary, &config, "unk_token");
    vocabulary.close_ends();
    let begins = parsing.encode("", true).map_err(|e| bad(e.to_string()))?;
    let add_bos = begins.get_ids().first().is_some_and(|id| Some(*id) == vocabulary.bos);
    let mut plain = parsing.clone();
    plain.set_encode_special_tokens(true);
    let engine = Engine::Json(Box::new(Json { parsing, plain }));
    let add_space = drops_first_space(&file["decoder"]);
    let partition = Partition::new(&vocabulary)?;
    Ok(Tokenizer { vocabulary, partition, engine, add_bos, add_eos: false, add_space })
}

impl Json {
    /// The tokens of a text, without any that only its template would add.
    pub(super) fn encode(&self, text: &[u8], special: Special, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let text = String::from_utf8_lossy(text);
        let tokenizer = if special == Special::Parse { &self.parsing } else { &self.plain };
        let encoding = tokenizer.encode_fast(&*text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        out.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

fn vocabulary(tokenizer: &tokenizers::Tokenizer, file: &Value) -> Result<Vocabulary, TokenizerError> {
    let ids = tokenizer.get_vocab(true);
    // Ids may have gaps, but a file of some megabytes does not name billions of tokens.
    let count = ids.values().map(|id| *id as usize + 1).max().unwrap_or(0);
    if count > 16 * ids.len() + 1024 {
        let problem = format!("token ids reach {count}, and there are only {} tokens", ids.len());
        return Err(TokenizerError::Json { file: FILE, problem });
    }
    let byte_level = has_kind(&file["decoder"], "ByteLevel");
    let mut texts = vec![String::new(); count];
    let mut kinds = vec![Kind::Normal; count];
    for (text, id) in ids {
        if !byte_level && byte_named(&text).is_some() {
            kinds[id as usize] = Kind::Byte;
        }
        texts[id as usize] = text;
    }
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        kinds[id as usize] = if token.special { Kind::Control } else { Kind::UserDefined };
    }
    Vocabulary::new(texts, kinds, |text| {
        if byte_level { byte_level::decode(text) } else { text.replace(SPACE, " ").into_bytes() }
    })
}

/// The token that the configuration names, as a string or as an object with its content.
fn named(vocabulary: &Vocabulary, config: &Value, key: &str) -> Option<u32> {
    let token = &config[key];
    vocabulary.id(token.as_str().or_else(|| token["content"].as_str())?)
}

/// Whether a decoder, or one of its sequence, is of this type.
fn has_kind(decoder: &Value, kind: &str) -> bool {
    parts(decoder).any(|part| part["type"] == kind)
}

/// Whether the decoder takes a space away at the beginning of a text.
fn drops_first_space(decoder: &Value) -> bool {
    parts(decoder).any(|part| match part["type"].as_str() {
        Some("Strip") => part["content"] == " " && part["start"] == 1,
        Some("Metaspace") => part["prepend_scheme"] != "never" && part["add_prefix_space"] != false,
        _ => false,
    })
}

fn parts(decoder: &Value) -> impl Iterator<Item = &Value> {
    let inner = decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice);
    std::iter::once(decoder).chain(inner)
}
