//! Text to tokens and back.
//!
//! Three kinds of vocabulary: byte-level BPE and its kin ([`bpe`], by the `tokenizers` crate over our own
//! [`pre_tokenizer`]s), SentencePiece with scores ([`spm`]), both from GGUF metadata and both giving the ids that
//! llama.cpp gives; and `tokenizer.json` ([`json`]), wholly by the `tokenizers` crate. Special tokens are cut out
//! first ([`partition`]). Tokens are bytes on the way back, because a token may hold half a character:
//! [`crate::TextStream`] makes text of them.

mod bpe;
pub(crate) mod byte_level;
mod error;
mod gguf;
mod json;
mod partition;
mod pre_tokenizer;
mod rendered;
mod spm;
mod vocabulary;

pub use error::TokenizerError;

use partition::{Part, Partition};
use tessera_formats::Gguf;
use vocabulary::{Kind, Vocabulary};

use crate::TextStream;

/// Whether the names of control tokens in a text mean the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// They do: for text that a template made.
    Parse,
    /// They are text like any other: for what a user wrote.
    Plain,
}

/// A model's vocabulary and how it cuts text.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    /// Finds the names of special tokens, unless the engine does.
    partition: Partition,
    engine: Engine,
    add_bos: bool,
    add_eos: bool,
    add_space: bool,
}

#[derive(Debug)]
enum Engine {
    Bpe(Box<bpe::Bpe>),
    Spm(Box<spm::Spm>),
    Json(Box<json::Json>),
}

impl Tokenizer {
    /// From a GGUF file's metadata (`tokenizer.ggml.*`).
    ///
    /// # Errors
    /// If there is no tokenizer in it, if it is of an unknown kind, or if it contradicts itself.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        gguf::read(gguf)
    }

    /// From the contents of `tokenizer.json` and, for the names of BOS and EOS, of `tokenizer_config.json`.
    ///
    /// # Errors
    /// If they are not what the `tokenizers` crate and `transformers` write.
    pub fn from_json(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, TokenizerError> {
        json::read(tokenizer, config)
    }

    /// The tokens of a text, which need not be valid UTF-8.
    ///
    /// With `add_bos`, and where the model wants it ([`Tokenizer::adds_bos`]), BOS comes first (and EOS last, where
    /// the file asks for that). Leave it off for text from a template, which writes BOS itself.
    ///
    /// # Errors
    /// If a `tokenizer.json` has no token for something in the text, and none for the unknown.
    pub fn encode(&self, text: impl AsRef<[u8]>, special: Special, add_bos: bool) -> Result<Vec<u32>, TokenizerError> {
        let text = text.as_ref();
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if add_bos && self.add_bos {
            out.extend(self.vocabulary.bos);
        }
        match &self.engine {
            Engine::Json(json) => json.encode(text, special, &mut out)?,
            Engine::Bpe(_) | Engine::Spm(_) => {
                let mut after_special = true;
                for part in self.partition.split(text, special) {
                    match part {
                        Part::Token(id) => out.push(id),
                        Part::Text(text) => self.encode_part(text, special, after_special, &mut out)?,
                    }
                    after_special = matches!(part, Part::Token(_));
                }
            }
        }
        if add_bos && self.add_eos {
            out.extend(self.vocabulary.eos);
        }
        Ok(out)
    }

    fn encode_part(
        &self,
        text: &[u8],
        special: Special,
        after_special: bool,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        match &self.engine {
            Engine::Bpe(bpe) => bpe.encode(text, out),
            Engine::Json(json) => json.encode(text, special, out),
            Engine::Spm(spm) => {
                let mut escaped = Vec::with_capacity(2 * text.len() + 3);
                if self.add_space && after_special {
                    escaped.extend_from_slice(spm::SPACE.as_bytes());
                }
                for &byte in text {
                    match byte {
                        b' ' => escaped.extend_from_slice(spm::SPACE.as_bytes()),
                        _ => escaped.push(byte),
                    }
                }
                spm.encode(&escaped, out);
                Ok(())
            }
        }
    }

    /// The bytes that a token stands for; its name for a control token, nothing for an id that does not exist.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// A token's text as the file has it, for display.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocabulary.texts.get(id as usize).map(String::as_str)
    }

    /// The token with exactly this text in the file.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocabulary.id(text)
    }

    /// The bytes of several tokens: control tokens give nothing, and the space that [`Tokenizer::encode`] put before
    /// the text is taken away.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let shown = ids.iter().filter(|id| !self.is_control(**id));
        let mut bytes: Vec<u8> = shown.flat_map(|id| self.token_bytes(*id)).copied().collect();
        if self.add_space && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        bytes
    }

    /// A stream for the text of these tokens from its beginning. (The text of a reply that continues a prompt keeps
    /// its first space: use `TextStream::new(false)`.)
    pub fn text_stream(&self) -> TextStream {
        TextStream::new(self.add_space)
    }

    /// The number of tokens.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token at the beginning of every text.
    pub fn bos(&self) -> Option<u32> {
        self.vocabulary.bos
    }

    /// The token at the end of every text.
    pub fn eos(&self) -> Option<u32> {
        self.vocabulary.eos
    }

    /// The token at the end of a turn of a conversation.
    pub fn eot(&self) -> Option<u32> {
        self.vocabulary.eot
    }

    /// Whether the model wants BOS before every text.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether a space is put before a text.
    pub fn adds_space(&self) -> bool {
        self.add_space
    }

    /// Whether a token ends a reply: EOS, end of turn, and the names that are known to mean it.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.vocabulary.is_end(id)
    }

    /// All tokens that end a reply, in order.
    pub fn ends_of_generation(&self) -> impl Iterator<Item = u32> {
        self.vocabulary.ends()
    }

    /// Whether a token is special: a mark of structure, or one that is matched whole in any text.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.vocabulary.kinds.get(id as usize), Some(Kind::Control | Kind::Unknown | Kind::UserDefined))
    }

    /// Whether a token is a mark of structure that is not shown.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.vocabulary.kinds.get(id as usize), Some(Kind::Control | Kind::Unknown))
    }
}
