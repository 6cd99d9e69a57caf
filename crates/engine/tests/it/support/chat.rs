//! Replies read by a parser, told in short.

use std::sync::Arc;

use serde_json::Value;
use tessera_engine::{
    ChatEvent, ChatFormat, ReplyParser,
    chat::{CallState, Reply, Tools},
};

/// Tools that the tests call.
pub(crate) const TOOLS: &str = r##"[
  {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": {
    "type": "object",
    "properties": {
      "city": {"type": "string"},
      "days": {"type": "integer"},
      "exact": {"type": "boolean"},
      "places": {"type": "array", "items": {"type": "string"}},
      "note": {"type": ["string", "null"]},
      "either": {"anyOf": [{"type": "number"}, {"type": "string"}]},
      "unit": {"enum": ["C", "F"]},
      "scale": {"$ref": "#/$defs/scale"},
      "circle": {"$ref": "#/$defs/circle"}
    }, "required": ["city"],
    "$defs": {"scale": {"anyOf": [{"$ref": "#/$defs/digits"}]}, "digits": {"enum": ["1", "2"]}, "circle": {"$ref": "#/$defs/circle"}}}}},
  {"name": "now", "input_schema": {"type": "object", "properties": {}}}
]"##;

pub(crate) fn tools() -> Arc<Tools> {
    Arc::new(Tools::parse(TOOLS).unwrap())
}

pub(crate) fn format(name: &str) -> &'static ChatFormat {
    ChatFormat::named(name).unwrap_or_else(|| panic!("no family {name}"))
}

pub(crate) fn parser(name: &str) -> ReplyParser {
    ReplyParser::new(format(name), tools())
}

/// Reads pieces to the end; neighbouring events of a kind are joined, as if they had come at once.
pub(crate) fn events<'p>(mut parser: ReplyParser, pieces: impl IntoIterator<Item = &'p str>) -> Vec<ChatEvent> {
    let mut all = Vec::new();
    for piece in pieces {
        let mut out = Vec::new();
        parser.push(piece, &mut out);
        all.extend(out);
    }
    parser.finish(&mut all);
    joined(all)
}

pub(crate) fn joined(events: Vec<ChatEvent>) -> Vec<ChatEvent> {
    let mut all: Vec<ChatEvent> = Vec::new();
    for event in events {
        match (all.last_mut(), &event) {
            (Some(ChatEvent::Content(a)), ChatEvent::Content(b)) => a.push_str(b),
            (Some(ChatEvent::Reasoning(a)), ChatEvent::Reasoning(b)) => a.push_str(b),
            (Some(ChatEvent::ToolCallArguments { json: a, .. }), ChatEvent::ToolCallArguments { json: b, .. }) => {
                a.push_str(b)
            }
            _ => all.push(event),
        }
    }
    all
}

/// Each event in a few words; requires that calls are told in order and their arguments are objects.
#[track_caller]
pub(crate) fn told(events: &[ChatEvent]) -> Vec<String> {
    let reply: Reply = events.iter().collect();
    let mut open = None;
    let mut calls = 0;
    let mut words = Vec::new();
    for event in events {
        match event {
            ChatEvent::Reasoning(text) => words.push(format!("think: {text}")),
            ChatEvent::Content(text) => words.push(format!("say: {text}")),
            ChatEvent::ToolCallBegin { index, id, name } => {
                assert!(
                    open.is_none() && *index == calls && *id == format!("call_{index}") && !name.is_empty(),
                    "{events:?}"
                );
                open = Some(*index);
            }
            ChatEvent::ToolCallArguments { index, .. } => assert_eq!(open, Some(*index), "{events:?}"),
            ChatEvent::ToolCallEnd { index, state, .. } => {
                assert_eq!(open.take(), Some(*index), "{events:?}");
                calls += 1;
                let function = &reply.calls[*index].function;
                let value: Value = serde_json::from_str(&function.arguments)
                    .unwrap_or_else(|e| panic!("{e}: {} in {events:?}", function.arguments));
                assert!(value.is_object(), "{events:?}");
                let word = if *state == CallState::Whole { "call" } else { "mended" };
                words.push(format!("{word} {}: {value}", function.name));
            }
        }
    }
    assert!(open.is_none(), "{events:?}");
    words
}
