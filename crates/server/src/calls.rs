//! Grammars of calls, in the way of each family: for replies that must call a tool, or may and are else of some shape.
//!
//! Each is a rule `calls` in Lark's notation. A mark that the vocabulary has as a token is that token and nothing else; one
//! that it has not is text. Arguments are held to the tool's schema as far as the family's notation goes.

use std::fmt::Write;

use serde_json::{Value, json};
use tessera_engine::{
    ChatFormat, Tokenizer,
    chat::{Calls, Mark, Typing, referred},
};

use crate::{grammar::compact, tools::ToolUse};

/// What stands in the place of [`Typing::Flag`]'s word where a value is no text.
const NO_TEXT: &str = "false";
/// More calls than any sound reply has.
const CALLS_MAX: usize = 32;

/// A text as Lark writes it.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A mark, where the family has it.
pub(crate) fn mark(format: &ChatFormat, tokenizer: &Tokenizer, mark: Mark) -> Option<String> {
    let (_, text) = format.marks.iter().find(|(m, _)| *m == mark)?;
    Some(match spelled(format, tokenizer, mark) {
        Some((text, Some((piece, id)))) => {
            let (before, after) = text.split_once(piece)?;
            format!("{} <[{id}]> {}", literal(before), literal(after))
        }
        _ => term(tokenizer, text),
    })
}

/// The text of a mark, and the special token in it, if there is one.
type Spelled = (&'static str, Option<(&'static str, u32)>);

/// How a mark is spelled, where it is not one token.
fn spelled(format: &ChatFormat, tokenizer: &Tokenizer, mark: Mark) -> Option<Spelled> {
    let (_, text) = format.marks.iter().find(|(m, _)| *m == mark)?;
    if special(tokenizer, text).is_some() {
        return None;
    }
    let piece = format.pieces.iter().filter(|piece| text.contains(*piece));
    Some((text, piece.filter_map(|piece| Some((*piece, special(tokenizer, piece)?))).next()))
}

fn special(tokenizer: &Tokenizer, text: &str) -> Option<u32> {
    tokenizer.token_id(text).filter(|id| tokenizer.is_special(*id))
}

/// Structure: a token if the vocabulary has it as a special one.
pub(crate) fn term(tokenizer: &Tokenizer, text: &str) -> String {
    match special(tokenizer, text) {
        Some(id) => format!("<[{id}]>"),
        None => literal(text),
    }
}

/// A rule that reads any text up to a mark, the mark too.
pub(crate) fn text_up_to(name: &str, format: &ChatFormat, tokenizer: &Tokenizer, end: Mark) -> Option<String> {
    Some(match spelled(format, tokenizer, end) {
        Some((text, None)) => format!("{name}[suffix={}]: /(.|\\n)*/\n", literal(text)),
        Some((text, Some((piece, id)))) => {
            // Text up to a token: what stands before it in the mark ends the text.
            let (before, after) = text.split_once(piece)?;
            let before: String =
                before.chars().map(|c| if c == '/' { "\\/".to_owned() } else { c.to_string() }).collect();
            format!("{name}: /(.|\\n)*{before}/ <[{id}]> {}\n", literal(after))
        }
        None => format!("{name}: /(.|\\n)*/ {}\n", mark(format, tokenizer, end)?),
    })
}

/// Where in a reply its calls begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// At the first: there must be one.
    First,
    /// Behind a call: there may be no more.
    Next,
    /// Behind a call in a block: as many as there may be, and the end of the block.
    Block,
}

/// The rule `calls` and those that it needs; none where the family makes no calls.
pub(crate) fn rules(format: &ChatFormat, tokenizer: &Tokenizer, tools: &ToolUse, from: From) -> Option<String> {
    let g = Grammar { format, tokenizer };
    let mut rules = String::new();
    let mut names = Vec::new();
    for (index, tool) in tools.callable().enumerate() {
        let (name, schema) = (ToolUse::name(tool), &tool["function"]["parameters"]);
        rules += &match format.calls {
            Calls::None => return None,
            Calls::Json { name: keys, arguments, bare, .. } => {
                g.json(index, name, schema, (keys[0], arguments[0]), bare)?
            }
            Calls::Pairs { trim, typing, .. } => g.pairs(index, name, schema, (trim, typing))?,
            Calls::Literal { lead, .. } => g.literal(index, name, schema, lead)?,
            Calls::Channels { to, prefix, .. } => g.channel(index, name, schema, &format!("{to}{prefix}"))?,
        };
        names.push(format!("call_{index}"));
    }
    // Behind a message to a tool the model waits, and bare JSON has no separator that all know.
    let several = !tools.one_only && !matches!(format.calls, Calls::Channels { .. } | Calls::Json { bare: true, .. });
    let more = |call: &str| match several {
        true => format!("{call} (\"\\n\" {call}){{0,{}}}", CALLS_MAX - 1),
        false => call.to_owned(),
    };
    let grouped = |calls: String| match (g.mark(Mark::GroupOpen), g.mark(Mark::GroupClose)) {
        (Some(open), Some(close)) => format!("{open} \"\\n\" {calls} \"\\n\" {close}"),
        _ => calls,
    };
    let together = matches!(format.calls, Calls::Pairs { together: true, .. });
    let (calls, call) = match together {
        true => (grouped(more("call")), names.join(" | ")),
        false => (more("call"), grouped(format!("({})", names.join(" | ")))),
    };
    // White space behind a call may be there already.
    let calls = match from {
        From::First => calls,
        From::Next if several => format!("(\"\\n\"? {calls})?"),
        From::Next => format!("({calls})?"),
        From::Block if together => format!("\"\\n\"? ({} \"\\n\")? {}", more("call"), g.mark(Mark::GroupClose)?),
        From::Block => format!("\"\\n\"? {} (\"\\n\" {})?", g.mark(Mark::GroupClose)?, more("call")),
    };
    Some(format!("calls: {calls}\ncall: {call}\n{rules}"))
}

struct Grammar<'a> {
    format: &'a ChatFormat,
    tokenizer: &'a Tokenizer,
}

impl Grammar<'_> {
    fn mark(&self, which: Mark) -> Option<String> {
        mark(self.format, self.tokenizer, which)
    }

    /// A mark, or nothing where the family has none.
    fn maybe(&self, which: Mark) -> String {
        self.mark(which).unwrap_or_default()
    }

    /// `{"name": …, "arguments": {…}}` between marks, or bare.
    fn json(&self, index: usize, name: &str, schema: &Value, keys: (&str, &str), bare: bool) -> Option<String> {
        let arguments = moved(schema, &format!("#/properties/{}", keys.1));
        let mut properties = serde_json::Map::new();
        properties.insert(keys.0.to_owned(), json!({ "const": name }));
        properties.insert(keys.1.to_owned(), arguments);
        let object = compact(json!({
            "type": "object", "properties": properties, "required": [keys.0, keys.1], "additionalProperties": false,
        }));
        let object = format!("object_{index}: %json {object}\n");
        if bare {
            return Some(format!("call_{index}: object_{index}\n{object}"));
        }
        let (open, close) = (self.mark(Mark::CallOpen)?, self.mark(Mark::CallClose)?);
        Some(format!("call_{index}: {open} \"\\n\" object_{index} \"\\n\" {close}\n{object}"))
    }

    /// The name, then keys and values between marks. Values that are texts are bare; others are JSON.
    fn pairs(&self, index: usize, name: &str, schema: &Value, (trim, typing): (bool, Typing)) -> Option<String> {
        let (open, close) = (self.mark(Mark::CallOpen)?, self.mark(Mark::CallClose)?);
        let (name_end, key_open) = (self.maybe(Mark::NameEnd), self.mark(Mark::KeyOpen)?);
        let (key_close, value_open) = (self.mark(Mark::KeyClose)?, self.maybe(Mark::ValueOpen));
        let value_close = self.mark(Mark::ValueClose)?;
        let line = if trim { "\"\\n\"" } else { "" };
        let (mut arguments, mut rules) = (String::new(), String::new());
        for (at, (key, kind, required)) in properties(schema).into_iter().enumerate() {
            let rule = format!("argument_{index}_{at}");
            let _ = write!(arguments, " {rule}{}", if required { "" } else { "?" });
            let value = format!("value_{index}_{at}");
            if let Some(texts) = texts(referred(kind, schema)) {
                let _ = writeln!(rules, "{value}: {texts} {line} {value_close}");
            } else if is_text(referred(kind, schema)) {
                rules += &text_up_to(&value, self.format, self.tokenizer, Mark::ValueClose)?;
            } else {
                let json = compact(moved_from_root(kind, schema));
                let _ =
                    writeln!(rules, "{value}: json_{index}_{at} {line} {value_close}\njson_{index}_{at}: %json {json}");
            }
            let between = match typing {
                Typing::Schema if value_open.is_empty() => String::new(),
                Typing::Schema => literal("\n"),
                Typing::Flag(word) => literal(if is_text(referred(kind, schema)) { word } else { NO_TEXT }),
            };
            let key = literal(&attribute(key, typing));
            let _ =
                writeln!(rules, "{rule}: {key_open} {key} {key_close} {between} {value_open} {line} {value} \"\\n\"");
        }
        let name = literal(&attribute(name, typing));
        Some(format!("call_{index}: {open} {name} {name_end} \"\\n\"{arguments} {close}\n{rules}"))
    }

    /// `call:name{key:value,…}` with marks around texts.
    fn literal(&self, index: usize, name: &str, schema: &Value, lead: &str) -> Option<String> {
        let (open, close) = (self.mark(Mark::CallOpen)?, self.mark(Mark::CallClose)?);
        let quote = self.mark(Mark::Quote)?;
        let all = properties(schema);
        let (needed, optional): (Vec<_>, Vec<_>) = all.into_iter().partition(|(.., required)| *required);
        let pair = |(key, kind, _): &(&str, &Value, bool)| {
            let kind = referred(kind, schema);
            if let Some(texts) = texts(kind) {
                return format!("{} {quote} {texts} {quote}", literal(&format!("{key}:")));
            }
            let value = match kind.get("type").and_then(Value::as_str) {
                Some("string") => "text",
                Some("integer") => "WHOLE",
                Some("number") => "NUMBER",
                Some("boolean") => "flag",
                _ => "value",
            };
            format!("{} {value}_{index}", literal(&format!("{key}:")))
        };
        let needed: Vec<String> = needed.iter().map(pair).collect();
        let optional: Vec<String> = optional.iter().map(pair).collect();
        let arguments = match (needed.is_empty(), optional.is_empty()) {
            (true, true) => String::new(),
            (true, false) => format!("({})?", optional.join(" | ")),
            (false, _) => {
                let more: String = optional.iter().map(|pair| format!(" (\",\" {pair})?")).collect();
                needed.join(" \",\" ") + &more
            }
        };
        let head = literal(&format!("{lead}{name}{{"));
        let i = index;
        Some(format!(
            "call_{i}: {open} {head} {arguments} \"}}\" {close}\n\
             text_{i}: {quote} /(.|\\n)*/ {quote}\n\
             flag_{i}: \"true\" | \"false\"\n\
             WHOLE_{i}: /0|-?[1-9][0-9]{{0,14}}/\n\
             NUMBER_{i}: /0|-?0\\.[0-9]{{1,15}}|-?[1-9][0-9]{{0,14}}(\\.[0-9]{{1,15}})?/\n\
             value_{i}: text_{i} | flag_{i} | NUMBER_{i} | \"null\" | \"[\" (value_{i} (\",\" value_{i})*)? \"]\" \
             | \"{{\" (KEY_{i} \":\" value_{i} (\",\" KEY_{i} \":\" value_{i})*)? \"}}\"\n\
             KEY_{i}: /[A-Za-z_][A-Za-z0-9_]*/\n"
        ))
    }

    /// A message to the tool, whose text are the arguments.
    fn channel(&self, index: usize, name: &str, schema: &Value, to: &str) -> Option<String> {
        let (channel, body) = (self.mark(Mark::Channel)?, self.mark(Mark::Body)?);
        let form = self.mark(Mark::Constrain).map(|mark| mark + " \"json\"").unwrap_or_default();
        let head = literal(&format!("commentary {to}{name} "));
        let schema = compact(schema.clone());
        Some(format!("call_{index}: {channel} {head} {form} {body} object_{index}\nobject_{index}: %json {schema}\n"))
    }
}

/// A name as the family writes it.
fn attribute(name: &str, typing: Typing) -> String {
    match typing {
        Typing::Schema => name.to_owned(),
        Typing::Flag(_) => name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;"),
    }
}

/// Keys of a schema's properties, with their schemas, and whether they must be there.
fn properties(schema: &Value) -> Vec<(&str, &Value, bool)> {
    let required = |key: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == key));
    let all = schema["properties"].as_object().into_iter().flatten();
    all.map(|(key, kind)| (key.as_str(), kind, required(key))).collect()
}

/// The texts that a schema allows, if it names them all, as an alternative of literals.
fn texts(schema: &Value) -> Option<String> {
    let all = schema.get("enum").and_then(Value::as_array).map(Vec::as_slice);
    let all = all.or(schema.get("const").map(std::slice::from_ref))?;
    let texts: Option<Vec<String>> = all.iter().map(|one| one.as_str().map(literal)).collect();
    Some(format!("({})", texts?.join(" | "))).filter(|_| !all.is_empty())
}

/// Whether a value of this schema is written as bare text.
fn is_text(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::String(kind)) => kind == "string",
        Some(_) => false,
        None => texts(schema).is_some() || schema == &json!({}),
    }
}

/// A schema that stands inside of another at `place`: its references from the root lead there.
fn moved(schema: &Value, place: &str) -> Value {
    match schema {
        Value::Object(map) => {
            let one = |(key, value): (&String, &Value)| {
                let reference = value.as_str().filter(|_| key == "$ref").and_then(|text| text.strip_prefix('#'));
                let value = match reference {
                    Some(rest) => Value::from(format!("{place}{rest}")),
                    None => moved(value, place),
                };
                (key.clone(), value)
            };
            Value::Object(map.iter().map(one).collect())
        }
        Value::Array(all) => all.iter().map(|value| moved(value, place)).collect(),
        other => other.clone(),
    }
}

/// A property's schema on its own, with the definitions that it may refer to.
fn moved_from_root(property: &Value, root: &Value) -> Value {
    let mut own = property.clone();
    for key in ["$defs", "definitions"] {
        if let (Some(definitions), Some(map)) = (root.get(key), own.as_object_mut()) {
            map.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    own
}
