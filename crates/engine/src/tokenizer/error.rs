//! Why a vocabulary cannot be used, or a text not be turned into tokens.

/// What is wrong with a tokenizer. The caller, who knows the file, names it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum TokenizerError {
    #[error("metadata key `{0}` is missing: the file holds no tokenizer; convert the model again with its tokenizer")]
    Missing(&'static str),
    #[error("metadata key `{key}` should be {wanted}; convert the model again")]
    Type { key: &'static str, wanted: &'static str },
    #[error("metadata key `{key}` has {found} entries and the vocabulary has {wanted} tokens; convert the model again")]
    Length { key: &'static str, found: usize, wanted: usize },
    #[error("metadata key `{key}` is {found}, and the vocabulary has {tokens} tokens; convert the model again")]
    Id { key: &'static str, found: i64, tokens: usize },
    #[error(
        "the tokenizer model `{found}` (metadata key `tokenizer.ggml.model`) is not supported; supported are {known}"
    )]
    UnknownModel { found: String, known: &'static str },
    #[error("the pre-tokenizer `{found}` (metadata key `tokenizer.ggml.pre`) is not known; known are {known}")]
    UnknownPreTokenizer { found: String, known: String },
    #[error("the merges (metadata key `tokenizer.ggml.merges`): {0}; convert the model again")]
    Merges(String),
    #[error("the vocabulary has neither a token for the byte 0x{0:02X} nor an unknown token; convert the model again")]
    NoByte(u8),
    #[error("tokens {first} and {second} have the same text {text:?}; convert the model again")]
    Duplicate { text: String, first: u32, second: u32 },
    #[error("{file}: {problem}; download it again")]
    Json { file: &'static str, problem: String },
    #[error("the text cannot be turned into tokens: {0}")]
    Encode(String),
}
