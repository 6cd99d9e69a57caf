//! What a reply must look like: JSON schemas, regular expressions and grammars, by `llguidance`.
//!
//! The engine asks for a mask before each draw and tells what was drawn. JSON is compact on purpose: with white space
//! left free, a small model can write it for ever.

use std::sync::Arc;

use llguidance::{
    Matcher, ParserFactory,
    api::{GrammarWithLexer, TopLevelGrammar},
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};
use tessera_engine::{
    ChatFormat, Special, Tokenizer,
    chat::{Calls, FAMILIES, Mark},
    serving::Constraint,
};

use crate::{calls, problem::Problem};

/// What a reply must look like.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    Schema(Value),
    /// A text that a regular expression matches whole.
    Regex(String),
    /// A text of a context-free grammar in Lark's notation.
    Lark(String),
}

impl Shape {
    fn grammar(&self) -> GrammarWithLexer {
        match self {
            Shape::JsonObject => GrammarWithLexer::from_json_schema(compact(json!({ "type": "object" }))),
            Shape::Schema(schema) => GrammarWithLexer::from_json_schema(compact(schema.clone())),
            Shape::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Shape::Lark(text) => GrammarWithLexer::from_lark(text.clone()),
        }
    }
}

/// What a reply is held to.
pub(crate) struct Held<'a> {
    /// What is said, with the field that asks for it.
    pub(crate) shape: Option<(&'a Shape, &'a str)>,
    /// Rules of the calls that it may hold instead, and whether it must.
    pub(crate) calls: Option<(String, bool)>,
    /// What may, or must, come before.
    pub(crate) thoughts: Option<Thoughts>,
}

impl Held<'_> {
    /// The field that asks for it.
    fn param(&self) -> &str {
        self.shape.map_or("tools", |(_, param)| param)
    }

    fn grammar(&self) -> TopLevelGrammar {
        let body = self.shape.map(|(shape, _)| shape.grammar());
        if let (Some(body), None, None) = (&body, &self.calls, &self.thoughts) {
            return TopLevelGrammar::from_grammar(body.clone());
        }
        let thoughts = self.thoughts.as_ref();
        let head = thoughts.map_or("", |thoughts| thoughts.head.as_str());
        let answer = match (&self.calls, &body) {
            (Some((_, true)), _) | (Some(_), None) => "calls".to_owned(),
            (Some((_, false)), Some(_)) => format!("calls | {head} @body"),
            (None, _) => format!("{head} @body"),
        };
        let before = if thoughts.is_some_and(|thoughts| !thoughts.rules.is_empty()) { "thoughts " } else { "" };
        let mut text = format!("start: {before}answer\nanswer: {answer}\n");
        text += thoughts.map_or("", |thoughts| &thoughts.rules);
        text += self.calls.as_ref().map_or("", |(rules, _)| rules);
        let mut all = TopLevelGrammar::from_lark(text);
        if answer.contains("@body") {
            all.grammars.extend(body.map(|body| GrammarWithLexer { name: Some("body".to_owned()), ..body }));
        }
        all
    }
}

/// What comes before an answer.
pub(crate) struct Thoughts {
    /// The rule `thoughts` and those that it needs; nothing where there are none.
    rules: String,
    /// The head of a message of words, where every message has one.
    head: String,
}

impl Thoughts {
    /// In a way of writing. `open`: the prompt has begun them; `allowed`: they may begin.
    pub(crate) fn of(format: &ChatFormat, tokenizer: &Tokenizer, open: bool, allowed: bool) -> Option<Thoughts> {
        let mark = |which| calls::mark(format, tokenizer, which);
        if let Calls::Channels { thinking, .. } = format.calls {
            let (channel, body, start, end) =
                (mark(Mark::Channel)?, mark(Mark::Body)?, mark(Mark::Start)?, mark(Mark::End)?);
            let thinking = calls::literal(thinking.first()?);
            let analysis = format!("{channel} {thinking} {body} /(.|\\n)*/ {end} {start} \"assistant\"");
            let rules = if allowed { format!("thoughts: ({analysis})?\n") } else { String::new() };
            return Some(Thoughts { rules, head: format!("{channel} \"final\" {body}") });
        }
        let head = String::new();
        if !open && !allowed {
            return Some(Thoughts { rules: String::new(), head });
        }
        let rest = calls::text_up_to("thinking", format, tokenizer, Mark::ThinkClose)?;
        let label = if format.label.is_empty() { String::new() } else { calls::literal(format.label) };
        let begun = "thinking (\"\\n\" | \"\\n\\n\")?";
        let thoughts = if open { begun.to_owned() } else { format!("({} {label} {begun})?", mark(Mark::ThinkOpen)?) };
        Some(Thoughts { rules: format!("thoughts: {thoughts}\n{rest}"), head })
    }
}

/// Asks for one way of white space, unless the schema asks itself.
pub(crate) fn compact(mut schema: Value) -> Value {
    if let Value::Object(map) = &mut schema {
        let spaces = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        map.entry("x-guidance").or_insert(spaces);
    }
    schema
}

/// Makes constraints for one vocabulary.
pub(crate) struct Grammars {
    /// Or why there are none.
    factory: Result<ParserFactory, String>,
    tokenizer: Arc<Tokenizer>,
}

impl Grammars {
    pub(crate) fn new(tokenizer: &Arc<Tokenizer>) -> Grammars {
        Grammars { factory: factory(tokenizer), tokenizer: tokenizer.clone() }
    }

    /// A constraint for one reply.
    pub(crate) fn constraint(&self, held: &Held<'_>) -> Result<Box<dyn Constraint>, Problem> {
        let param = held.param();
        let factory = self.factory.as_ref().map_err(|message| Problem::invalid(message).about(param))?;
        let parser = factory.create_parser(held.grammar());
        let refused =
            |e: &dyn std::fmt::Display| Problem::invalid(format!("`{param}` cannot be kept to: {e}")).about(param);
        let mut matcher = Matcher::new(Ok(parser.map_err(|e| refused(&e))?));
        if let Some(error) = matcher.get_error() {
            return Err(refused(&error));
        }
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(refused(warning));
        }
        Ok(Box::new(Kept { matcher, tokenizer: self.tokenizer.clone() }))
    }
}

fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, String> {
    let ends: Vec<u32> = tokenizer.ends_of_generation().collect();
    let first = ends.first().ok_or("the model has no token that ends a reply, so no reply can be held to a shape")?;
    let words: Vec<Vec<u8>> = (0..tokenizer.vocab_len() as u32).map(|id| word(tokenizer, id)).collect();
    let info = TokRxInfo::new(words.len() as u32, *first);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
    factory.quiet();
    Ok(factory)
}

/// The bytes of a token; those of marks of structure are told apart from text that spells them.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    let marks = || FAMILIES.iter().flat_map(|f| f.marks).any(|(_, text)| text.as_bytes() == bytes);
    if tokenizer.is_control(id) || tokenizer.is_end_of_generation(id) || tokenizer.is_special(id) && marks() {
        let marker = [TokTrie::SPECIAL_TOKEN_MARKER];
        return [&marker, bytes].concat();
    }
    bytes.to_vec()
}

/// A reply that is held to a grammar.
struct Kept {
    matcher: Matcher,
    tokenizer: Arc<Tokenizer>,
}

impl Constraint for Kept {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        // When nothing more may come, only the end tokens are left.
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
        let known = allowed.len().min(logits.len());
        for (id, logit) in logits[..known].iter_mut().enumerate() {
            if !allowed.get(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        logits[known..].fill(f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if self.matcher.is_stopped() {
            return Ok(()); // the end token after the last word
        }
        self.matcher.consume_token(token).map_err(|e| e.to_string())
    }

    fn forced(&mut self) -> Vec<u32> {
        // A tokenizer that begins every text with a space cannot say how one goes on.
        if self.tokenizer.adds_space() || self.matcher.is_stopped() {
            return Vec::new();
        }
        // Asked of a copy: how often the engine asks depends on its load, and must not touch what is kept to.
        let bytes = self.matcher.clone().compute_ff_bytes();
        let mut tokens = self.tokenizer.encode(bytes, Special::Plain, false).unwrap_or_default();
        tokens.pop(); // the last may go on into what is free
        tokens
    }
}
