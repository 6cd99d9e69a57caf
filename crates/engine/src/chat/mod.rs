//! Thinking and tool calls: how each family of models writes them, told as data.
//!
//! [`FAMILIES`] is a table with a row for each way of writing: the marks, the shape of a call, how its prompt is switched
//! and what its template wants of messages past. [`ReplyParser`] reads a reply by a row of it, piece by piece, into
//! [`ChatEvent`]s; [`prompt()`] goes the other way. Both know no model and no device. Another family is another row.

mod call;
mod channels;
mod event;
mod families;
mod format;
mod json;
mod literal;
mod message;
mod pairs;
mod parser;
mod rendering;
mod reply;
mod tools;

pub use event::{CallState, ChatEvent, LostCall, Rest};
pub use families::FAMILIES;
pub use format::{Calls, ChatFormat, History, Mark, Setting, Switch, Think, Typing};
pub use message::{FunctionCall, Message, ToolCall};
pub use parser::ReplyParser;
pub use rendering::{PromptError, messages_for, prompt};
pub use reply::Reply;
pub use tools::{Tool, Tools, referred};
