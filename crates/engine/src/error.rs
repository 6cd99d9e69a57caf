//! What can be wrong between a model file and a reply. Every message names the file and what to do.

use tessera_formats::FormatError;

use crate::{
    checkpoint::DraftError, sampler::SamplingError, state::StateError, synth::SynthError, tokenizer::TokenizerError,
};

/// Errors of loading and running a model.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Error {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("{file}: {source}")]
    Device { file: String, source: tessera_ops::Error },
    #[error(transparent)]
    Step(#[from] tessera_ops::Error),
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("synthetic model: {0}")]
    Synth(#[from] SynthError),
    #[error("{file}: {source}")]
    Tokenizer { file: String, source: TokenizerError },
    #[error("{file}: is one of {count} files of a model; join them (llama-gguf-split --merge) and open the whole")]
    Split { file: String, count: u64 },
    #[error("{file}: metadata key `{key}` is missing; the file is incomplete, convert the model again")]
    MissingKey { file: String, key: String },
    #[error("{file}: metadata key `{key}` is {found}, and must be {expected}; convert the model again")]
    Key { file: String, key: String, found: String, expected: String },
    #[error("{file}: architecture `{architecture}` is not supported; supported are {}", known.join(", "))]
    Architecture { file: String, architecture: String, known: Vec<&'static str> },
    #[error("{file}: tensor `{tensor}` is missing; the file is incomplete, download or convert it again")]
    MissingTensor { file: String, tensor: String },
    #[error("{file}: tensor `{tensor}` has shape {found:?}, and the model needs {expected:?}; convert the model again")]
    TensorShape { file: String, tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{file}: tensor `{tensor}` is stored as {dtype}, which holds no weights; convert the model again")]
    TensorType { file: String, tensor: String, dtype: &'static str },
    #[error(
        "{file}: tensor `{tensor}` holds {found}, and must hold whole numbers from 0 to below {end}; convert the model again"
    )]
    TensorIndex { file: String, tensor: String, found: i64, end: usize },
    #[error("{file}: tensor `{tensor}` is stored as {dtype}, and must hold whole numbers; convert the model again")]
    TableType { file: String, tensor: String, dtype: &'static str },
    #[error("{file} cannot draft for {model}: {source}")]
    DraftLayer { file: String, model: String, source: DraftError },
    #[error("{file}: packed rows are what a model rounds its latent rows to, and {why}; use another cache format")]
    PackedRows { file: String, why: &'static str },
    #[error("a step has {rows} rows of one sequence, and the cache was made for {most}; compute them in smaller steps")]
    StepRows { rows: usize, most: usize },
    #[error(
        "{tokens} tokens do not fit the context of {context}; shorten the text or ask for a larger context (the model \
         was trained for {trained})"
    )]
    ContextFull { tokens: usize, context: usize, trained: usize },
    #[error("the cache has {free} free pages and {pages} are needed; close a sequence or ask for a larger context")]
    CacheFull { pages: usize, free: usize },
    #[error("the cache has room for {rings} sequences at once, and all are open; close one or ask for more")]
    RingsFull { rings: usize },
    #[error(
        "the draft model has {found} tokens and the model {expected}; a draft model must have the same vocabulary, choose \
         another of the same family"
    )]
    DraftVocabulary { found: usize, expected: usize },
    #[error(
        "token {token} is another one in the draft model; a draft model must have the same vocabulary, choose another of \
         the same family"
    )]
    DraftToken { token: u32 },
    #[error(transparent)]
    Refused(#[from] crate::serving::Refused),
    #[error("the reply's grammar: {0}")]
    Constraint(String),
    #[error("token {token} does not exist; the vocabulary has {vocabulary}")]
    Token { token: u32, vocabulary: usize },
    #[error("there is nothing to run: the prompt has no tokens")]
    EmptyPrompt,
}
