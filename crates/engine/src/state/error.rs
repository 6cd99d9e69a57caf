//! Why a file is not taken for the state of a sequence.

/// Errors of state files. All of them leave the sequence, and the file, as they were.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum StateError {
    #[error("cannot {doing} the state file {file}: {source}")]
    Io { file: String, doing: &'static str, source: std::io::Error },
    #[error("{file} is no state file; name another, or a new one")]
    Foreign { file: String },
    #[error(
        "{file} is a state file of version {found}, and this program knows version {known}; delete it to begin anew"
    )]
    Version { file: String, found: u32, known: u32 },
    #[error("{file} is damaged: {what}; delete it to begin anew")]
    Damaged { file: String, what: String },
    #[error("{file} holds the state of another model ({found}), not of {expected}; name another file for this model")]
    Model { file: String, found: String, expected: String },
    #[error(
        "{file} was written with another cache ({found}), and this one is {expected}; use the same settings, or delete it"
    )]
    Cache { file: String, found: String, expected: String },
    #[error(
        "{file} holds {tokens} tokens, and the context has room for {context}; ask for a larger one with --context"
    )]
    TooLong { file: String, tokens: usize, context: usize },
}
