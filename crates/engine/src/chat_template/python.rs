//! How Python prints values, which templates rely on: `None`, `True`, `{'a': 1}`, and `json.dumps`.

use std::io;

use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Writes a value as `{{ value }}` does in Python.
pub(super) fn format(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => repr(value, 0)?,
    };
    out.write_str(&text).map_err(|_| Error::new(ErrorKind::WriteFailure, "the output is full"))
}

/// Python's `repr`. Values nest as deep as their JSON did, which its parser bounds; templates can build deeper ones.
fn repr(value: &Value, depth: usize) -> Result<String, Error> {
    if depth > 100 {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value nests more than 100 deep"));
    }
    Ok(match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::String => quote(&value.to_string()),
        ValueKind::Seq => {
            let items: Vec<String> = value.try_iter()?.map(|v| repr(&v, depth + 1)).collect::<Result<_, _>>()?;
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                items.push(format!("{}: {}", repr(&key, depth + 1)?, repr(&value.get_item(&key)?, depth + 1)?));
            }
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    })
}

/// A string in quotes: single ones, unless it holds single and no double ones.
fn quote(text: &str) -> String {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(mark);
    out
}

/// `json.dumps(value, ensure_ascii=False, indent=...)`, as `transformers` has it: no HTML escapes, keys in order.
pub(super) fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        None => options.get::<Option<usize>>("indent")?,
        given => given,
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.get::<Option<bool>>("sort_keys")?;
    options.assert_all_used()?;
    let text = match (indent, separators.as_deref()) {
        (Some(indent), _) => {
            let indent = " ".repeat(indent.min(32));
            dump(value, PrettyFormatter::with_indent(indent.as_bytes()))?
        }
        (None, Some([item, key])) if item == "," && key == ":" => dump(value, CompactFormatter)?,
        (None, _) => dump(value, Spaced)?,
    };
    Ok(Value::from(if ascii { escape_non_ascii(&text) } else { text }))
}

fn dump(value: &Value, formatter: impl Formatter) -> Result<String, Error> {
    let mut out = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut out, formatter))
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Python's separators: `, ` and `: `.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

fn escape_non_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}
