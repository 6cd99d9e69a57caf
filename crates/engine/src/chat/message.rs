//! Messages of a conversation, as chat APIs write them.

use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`, as far as the template knows them.
    pub role: String,
    /// What is said. Read from a text, from null, or from a list of texts, which are joined.
    #[serde(default, deserialize_with = "texts")]
    pub content: String,
    /// What the model thought before it spoke.
    #[serde(default, alias = "reasoning", alias = "thinking", skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The calls that the model made.
    #[serde(default, deserialize_with = "or_none", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's result: the call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The name of who speaks, or of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A call that the model made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names it in its conversation.
    #[serde(default)]
    pub id: String,
    /// `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
    /// The text of the call as it was sampled, for prompts that repeat it exactly. Never part of JSON.
    #[serde(skip)]
    pub raw: Option<String>,
}

/// What is called, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The name of the tool.
    pub name: String,
    /// The JSON of an object. Read from a text or from the object itself.
    #[serde(default, deserialize_with = "json_text")]
    pub arguments: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), ..Message::default() }
    }

    /// The result of a tool.
    pub fn result(id: impl Into<String>, name: impl Into<String>, content: impl Into<String>) -> Message {
        let (tool_call_id, name) = (Some(id.into()), Some(name.into()));
        Message { tool_call_id, name, ..Message::new("tool", content) }
    }
}

impl ToolCall {
    /// A call with `arguments` in JSON.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> ToolCall {
        let function = FunctionCall { name: name.into(), arguments: arguments.into() };
        ToolCall { id: id.into(), kind: "function".to_owned(), function, raw: None }
    }
}

fn function() -> String {
    "function".to_owned()
}

fn or_none<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}

/// A text, null, or a list of parts that are texts.
fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
    }
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "type")]
        kind: String,
        text: Option<String>,
    }
    match Option::<Content>::deserialize(from)? {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => {
            let text = |part: Part| {
                let kind = part.kind;
                part.text.ok_or_else(|| D::Error::custom(format!("content of type `{kind}` is not text")))
            };
            parts.into_iter().map(text).collect()
        }
    }
}

/// JSON in a text, or the value itself, whose keys keep their order.
fn json_text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let value = minijinja::Value::deserialize(from)?;
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => serde_json::to_string(&value).map_err(D::Error::custom),
    }
}
