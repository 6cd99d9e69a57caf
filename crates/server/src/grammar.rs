//! What a reply must look like: JSON schemas, regular expressions and grammars, by `llguidance`.
//!
//! The engine asks for a mask before each draw and tells what was drawn. JSON is compact on purpose: with white space
//! left free, a small model can write it for ever.

use std::sync::Arc;

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};
use tessera_engine::{Tokenizer, serving::Constraint};

use crate::problem::Problem;

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
    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Shape::JsonObject => TopLevelGrammar::from_json_schema(compact(json!({ "type": "object" }))),
            Shape::Schema(schema) => TopLevelGrammar::from_json_schema(compact(schema.clone())),
            Shape::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Shape::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        }
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
}

impl Grammars {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Grammars {
        Grammars { factory: factory(tokenizer) }
    }

    /// A constraint for one reply.
    pub(crate) fn constraint(&self, shape: &Shape, param: &str) -> Result<Box<dyn Constraint>, Problem> {
        let factory = self.factory.as_ref().map_err(|message| Problem::invalid(message).about(param))?;
        let parser = factory.create_parser(shape.grammar());
        let refused =
            |e: &dyn std::fmt::Display| Problem::invalid(format!("`{param}` cannot be kept to: {e}")).about(param);
        let mut matcher = Matcher::new(Ok(parser.map_err(|e| refused(&e))?));
        if let Some(error) = matcher.get_error() {
            return Err(refused(&error));
        }
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(refused(warning));
        }
        Ok(Box::new(Kept { matcher }))
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
    if tokenizer.is_control(id) || tokenizer.is_end_of_generation(id) {
        let marker = [TokTrie::SPECIAL_TOKEN_MARKER];
        return [&marker, bytes].concat();
    }
    bytes.to_vec()
}

/// A reply that is held to a grammar.
struct Kept {
    matcher: Matcher,
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
}
