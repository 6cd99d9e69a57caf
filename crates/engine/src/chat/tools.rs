//! The tools that a model may call, as far as a parser needs them: names, and what each argument may be.

use serde_json::Value;

use super::json::quoted;
use crate::TemplateError;

/// One tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments; null where there is none.
    pub parameters: Value,
}

/// The tools of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools {
    tools: Vec<Tool>,
}

impl Tools {
    /// Reads a JSON array of tools as chat APIs have them: `{"type": "function", "function": {"name", "parameters"}}`, or
    /// `{"name", "parameters"}` with the schema under `input_schema` where it is so called.
    ///
    /// # Errors
    /// If it is no such array.
    pub fn parse(json: &str) -> Result<Tools, TemplateError> {
        let bad = |what: String| TemplateError::Tools(what);
        let value: Value = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
        let Value::Array(items) = value else { return Err(bad("not an array".to_owned())) };
        let tool = |(index, item): (usize, &Value)| {
            let function = item.get("function").unwrap_or(item);
            let name = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| bad(format!("tool {index} has no name")))?.to_owned();
            let schema = function.get("parameters").or_else(|| function.get("input_schema"));
            Ok(Tool { name, parameters: schema.cloned().unwrap_or(Value::Null) })
        };
        Ok(Tools { tools: items.iter().enumerate().map(tool).collect::<Result<_, _>>()? })
    }

    /// These tools.
    pub fn new(tools: Vec<Tool>) -> Tools {
        Tools { tools }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// Whether one has this name.
    pub fn has(&self, name: &str) -> bool {
        self.tools.iter().any(|tool| tool.name == name)
    }

    /// What an argument may be, by the schema of its tool; anything where that does not say.
    pub(super) fn accepts(&self, name: &str, key: &str) -> Accepts {
        let tool = self.tools.iter().find(|tool| tool.name == name);
        let found = tool.and_then(|tool| Some((tool.parameters.get("properties")?.get(key)?, &tool.parameters)));
        found.map_or(Accepts::ANY, |(schema, root)| Accepts::of(schema, root, 0))
    }
}

/// What a schema's `$ref` stands for, where that is a place in `root`; else the schema itself.
pub fn referred<'s>(schema: &'s Value, root: &'s Value) -> &'s Value {
    const STEPS_MAX: usize = 8; // references may lead in a circle
    let step = |schema: &&'s Value| root.pointer(schema.get("$ref")?.as_str()?.strip_prefix('#')?);
    std::iter::successors(Some(schema), step).take(STEPS_MAX).last().unwrap_or(schema)
}

/// A set of JSON's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepts(u8);

const TYPES: [(&str, u8); 7] =
    [("string", 1), ("number", 2), ("integer", 2), ("boolean", 4), ("null", 8), ("object", 16), ("array", 32)];

impl Accepts {
    pub(super) const TEXT: Accepts = Accepts(1);
    pub(super) const ANY: Accepts = Accepts(63);

    /// By a schema's `type`, `enum`, `const`, `anyOf` and `oneOf`, or those of what it refers to; one that says nothing of
    /// these allows all.
    fn of(schema: &Value, root: &Value, depth: usize) -> Accepts {
        let schema = referred(schema, root);
        let named = |value: &Value| TYPES.iter().find(|(n, _)| value.as_str() == Some(n)).map_or(63, |(_, bit)| *bit);
        let bits = match (schema.get("type"), schema.get("enum"), schema.get("const")) {
            (Some(Value::Array(all)), ..) => all.iter().fold(0, |bits, one| bits | named(one)),
            (Some(one), ..) => named(one),
            (_, Some(Value::Array(values)), _) => values.iter().fold(0, |bits, value| bits | type_of(value)),
            (_, _, Some(value)) => type_of(value),
            _ => {
                let choices = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(key)?.as_array());
                let choices = choices.filter(|_| depth < 4).map_or(&[][..], Vec::as_slice);
                choices.iter().fold(0, |bits, choice| bits | Accepts::of(choice, root, depth + 1).0)
            }
        };
        if bits == 0 { Accepts::ANY } else { Accepts(bits) }
    }

    /// The JSON of a value that was written as bare text: itself if it is JSON of a type that is accepted (and no text), or
    /// else a text.
    pub(super) fn json(self, text: &str) -> String {
        let trimmed = text.trim();
        let python = match trimmed {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        match serde_json::from_str::<Value>(python) {
            Ok(value) if !value.is_string() && self.0 & type_of(&value) != 0 => python.to_owned(),
            _ => quoted(text),
        }
    }
}

fn type_of(value: &Value) -> u8 {
    match value {
        Value::String(_) => 1,
        Value::Number(_) => 2,
        Value::Bool(_) => 4,
        Value::Null => 8,
        Value::Object(_) => 16,
        Value::Array(_) => 32,
    }
}
