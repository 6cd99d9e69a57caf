//! From text to text: tokenizer, templates, models, weights, caches, sampler. Knows ops, never a device.

#![forbid(unsafe_code)]

pub mod chat;
pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod generate;
pub mod models;
pub mod pooling;
pub mod profile;
mod reply;
pub mod reply_text;
pub mod rope;
pub mod sampler;
pub mod sequences;
pub mod serving;
pub mod session;
pub mod state;
pub mod synth;
pub mod text_stream;
pub mod tokenizer;
pub mod weights;

pub use chat::{ChatEvent, ChatFormat, Message, ReplyParser};
pub use chat_template::{ChatTemplate, TemplateError, TemplateOptions};
pub use checkpoint::Checkpoint;
pub use config::{Config, IndexerShape, LatentShape};
pub use error::Error;
pub use generate::{Event, Finish, Outcome, Request, generate};
pub use models::{DraftFrom, LanguageModel, LoadOptions};
pub use pooling::Pooling;
pub use reply_text::{ReplyText, Span};
pub use sampler::{Sampled, Sampler, SamplingError, SamplingParams, StopStrings};
pub use sequences::{Ahead, Part, SequenceId, Sequences};
pub use session::Session;
pub use state::{Snapshot, StateError};
pub use text_stream::TextStream;
pub use tokenizer::{Special, Tokenizer, TokenizerError};
