//! From messages to the text that a model was trained to see, by the Jinja template in its file.
//!
//! Templates are programs from a stranger: they run in `minijinja`, which can neither read files nor call out, with a
//! bounded number of steps and a bounded output. What they may use is what `transformers` gives them: `messages`,
//! `tools`, `add_generation_prompt`, `bos_token`, `eos_token`, `raise_exception`, `strftime_now`, `tojson`, Python's
//! methods of strings and dictionaries; blocks are trimmed as there, and values print as in Python.
//!
//! A file without a template has no chat: the caller may name a built-in one ([`BUILT_IN`]), or use the bare prompt.

mod python;
mod time;

use std::{collections::BTreeMap, io, time::SystemTime};

use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use regex::Regex;
use serde::Serialize;

use crate::Tokenizer;

pub use crate::chat::Message;

/// Steps that a template may take: thousands of messages take some hundred thousand.
const FUEL: u64 = 20_000_000;
/// What a template may write, in bytes.
const OUTPUT_MAX: usize = 256 << 20;
/// The template's name inside the engine.
const NAME: &str = "chat_template";

/// Templates that can be asked for by name.
pub const BUILT_IN: [(&str, &str); 5] = [
    ("chatml", include_str!("chat_template/chatml.jinja")),
    ("deepseek4", include_str!("chat_template/deepseek4.jinja")),
    ("gemma", include_str!("chat_template/gemma.jinja")),
    ("llama2", include_str!("chat_template/llama2.jinja")),
    ("llama3", include_str!("chat_template/llama3.jinja")),
];

/// What a template may want to know besides the messages.
#[derive(Clone, Debug)]
pub struct TemplateOptions {
    /// Whether the text ends with the beginning of the model's reply.
    pub add_generation_prompt: bool,
    /// The tools that the model may call: a JSON array, whose keys keep their order.
    pub tools: Option<String>,
    /// The time for templates that name the day (UTC).
    pub now: SystemTime,
    /// More variables, such as `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl Default for TemplateOptions {
    fn default() -> TemplateOptions {
        TemplateOptions { add_generation_prompt: true, tools: None, now: SystemTime::now(), variables: BTreeMap::new() }
    }
}

/// Why messages cannot become a prompt.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum TemplateError {
    #[error(
        "{model}: the chat template is broken{}: {problem}; use another one with --template ({})",
        line.map_or(String::new(), |l| format!(" at line {l}")),
        built_in_names()
    )]
    Broken { model: String, line: Option<usize>, problem: String },
    #[error("{model}: the chat template refuses these messages: {message}")]
    Refused { model: String, message: String },
    #[error(
        "{model}: no chat template in the file; name one with --template ({}), or let it continue a bare prompt",
        built_in_names()
    )]
    Missing { model: String },
    #[error("there is no built-in template `{name}`; there are {}", built_in_names())]
    Unknown { name: String },
    #[error("the tools are no JSON array: {0}")]
    Tools(String),
}

/// A template that compiles.
#[derive(Debug)]
pub struct ChatTemplate {
    model: String,
    source: String,
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles a model's template; `model` is named in errors, and `tokenizer` knows the texts of BOS and EOS.
    ///
    /// # Errors
    /// If there is no template (`None`, or an empty one), or it does not compile.
    pub fn new(model: &str, source: Option<&str>, tokenizer: &Tokenizer) -> Result<ChatTemplate, TemplateError> {
        let source = source.filter(|s| !s.trim().is_empty());
        let source = source.ok_or_else(|| TemplateError::Missing { model: model.to_owned() })?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        ChatTemplate::compile(model, source, text(tokenizer.bos()), text(tokenizer.eos()))
    }

    /// The built-in template of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn built_in(name: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, TemplateError> {
        let found = BUILT_IN.iter().find(|(n, _)| *n == name);
        let (_, source) = found.ok_or_else(|| TemplateError::Unknown { name: name.to_owned() })?;
        ChatTemplate::new(name, Some(source), tokenizer)
    }

    /// Compiles a template for given texts of BOS and EOS.
    ///
    /// # Errors
    /// If it does not compile.
    pub fn compile(model: &str, source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        let broken = |error: Error| TemplateError::Broken {
            model: model.to_owned(),
            line: error.line(),
            problem: describe(&error),
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(broken)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(broken)?;
        let (model, source) = (model.to_owned(), source.to_owned());
        Ok(ChatTemplate { model, source, environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether its text holds this.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// The prompt for a conversation, with BOS where the template writes it. Contents that people wrote go through
    /// [`Tokenizer::shield`] before, and the text to [`Tokenizer::encode_rendered`].
    ///
    /// `messages` is a sequence of [`crate::Message`]s, or of anything that serializes to what the template expects.
    ///
    /// # Errors
    /// If the template fails, runs too long, or refuses the messages.
    pub fn render(&self, messages: &impl Serialize, options: &TemplateOptions) -> Result<String, TemplateError> {
        let mut context: BTreeMap<&str, Value> =
            options.variables.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))).collect();
        let tools = options.tools.as_deref().map(parse_tools).transpose()?;
        let now = options.now;
        let strftime = move |format: &str| {
            time::strftime(now, format).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
        };
        context.extend([
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
            ("strftime_now", Value::from_function(strftime)),
            ("tools", tools.unwrap_or(Value::from(()))),
        ]);
        let mut out = Bounded(Vec::new());
        let template = self.environment.get_template(NAME).map_err(|e| self.failed(&e))?;
        template.render_captured_to(Value::from(context), &mut out).map_err(|e| self.failed(&e))?;
        Ok(String::from_utf8_lossy(&out.0).into_owned())
    }

    fn failed(&self, error: &Error) -> TemplateError {
        let model = self.model.clone();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if let Some(Raised(message)) = inner.downcast_ref() {
                return TemplateError::Refused { model, message: message.clone() };
            }
            cause = inner.source();
        }
        TemplateError::Broken { model, line: error.line(), problem: describe(error) }
    }
}

/// What was written, up to [`OUTPUT_MAX`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_MAX {
            return Err(io::Error::other(format!("it writes more than {OUTPUT_MAX} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The array of tools. Not by way of `serde_json::Value`, which would sort the keys.
fn parse_tools(tools: &str) -> Result<Value, TemplateError> {
    let value: Value = serde_json::from_str(tools).map_err(|e| TemplateError::Tools(e.to_string()))?;
    match value.kind() {
        ValueKind::Seq => Ok(value),
        other => Err(TemplateError::Tools(format!("it is a {other}"))),
    }
}

/// `{% generation %}` marks what to train on, and is nothing to us; `if true` keeps its handling of white space.
fn without_generation_tags(source: &str) -> String {
    let tag = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("a constant pattern");
    let replace = |found: &regex::Captures<'_>| {
        let word = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {word} {}%}}", &found[1], &found[3])
    };
    tag.replace_all(source, replace).into_owned()
}

fn describe(error: &Error) -> String {
    let mut text = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {FUEL} steps"),
        kind => kind.to_string(),
    };
    if let Some(detail) = error.detail() {
        text = format!("{text}: {detail}");
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn built_in_names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}
