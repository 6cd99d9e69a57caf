//! Calls as the model wrote them, for conversations that come back.
//!
//! A client gets a call as a name and JSON, and sends that back with the tool's result. Written anew by the template it would
//! have other spaces, or another order of keys, than what the model sampled: other tokens, so that pages of the cache from there
//! on serve nobody, and a model that reads what it never wrote. So the text of a call is kept by its id, which no client can
//! guess, and stands in the prompt again where the call comes back unchanged.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

use crate::conversation::{Message, ToolCall};

/// What is kept of all calls together; then the oldest are forgotten.
const BYTES_MAX: usize = 16 << 20;

/// The calls of a model.
#[derive(Debug, Default)]
pub(crate) struct SampledCalls(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<String, ToolCall>,
    ids: VecDeque<String>,
    bytes: usize,
}

impl SampledCalls {
    /// Keeps a call that has its text.
    pub(crate) fn keep(&self, call: &ToolCall) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size(call);
        if size > BYTES_MAX || kept.by_id.contains_key(&call.id) {
            return;
        }
        while kept.bytes + size > BYTES_MAX {
            let Some(oldest) = kept.ids.pop_front().and_then(|id| kept.by_id.remove(&id)) else { break };
            kept.bytes -= self::size(&oldest);
        }
        kept.bytes += size;
        kept.ids.push_back(call.id.clone());
        kept.by_id.insert(call.id.clone(), call.clone());
    }

    /// Gives calls back their texts, where they say what was sampled.
    pub(crate) fn recall(&self, messages: &mut [Message]) {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for call in messages.iter_mut().flat_map(|message| &mut message.tool_calls) {
            let known = kept.by_id.get(&call.id).filter(|known| says_the_same(known, call));
            call.raw = known.and_then(|known| known.raw.clone());
        }
    }
}

fn size(call: &ToolCall) -> usize {
    call.id.len() * 2
        + call.function.name.len()
        + call.function.arguments.len()
        + call.raw.as_ref().map_or(0, String::len)
}

fn says_the_same(one: &ToolCall, other: &ToolCall) -> bool {
    let arguments = |call: &ToolCall| serde_json::from_str::<Value>(&call.function.arguments).ok();
    one.function.name == other.function.name
        && (one.function.arguments == other.function.arguments
            || arguments(one).is_some_and(|value| Some(value) == arguments(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, arguments: &str, raw: Option<&str>) -> ToolCall {
        ToolCall { raw: raw.map(str::to_owned), ..ToolCall::new(id, "f", arguments) }
    }

    fn recalled(calls: &SampledCalls, call: ToolCall) -> Option<String> {
        let mut messages = [Message { tool_calls: vec![call], ..Message::new("assistant", "") }];
        calls.recall(&mut messages);
        messages[0].tool_calls[0].raw.clone()
    }

    #[test]
    fn a_call_that_comes_back_unchanged_has_its_text_again() {
        let calls = SampledCalls::default();
        calls.keep(&call("1", "{\"a\":1,\"b\":[2]}", Some("<call>")));
        assert_eq!(recalled(&calls, call("1", "{ \"b\": [2], \"a\": 1 }", None)).as_deref(), Some("<call>"));
        // Whatever a client sends as raw text is not taken.
        for other in [call("1", "{\"a\":2,\"b\":[2]}", Some("x")), call("2", "{\"a\":1,\"b\":[2]}", Some("x"))] {
            assert_eq!(recalled(&calls, other), None);
        }
        let renamed = ToolCall { id: "1".to_owned(), ..ToolCall::new("1", "g", "{\"a\":1,\"b\":[2]}") };
        assert_eq!(recalled(&calls, renamed), None);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let calls = SampledCalls::default();
        let long = "x".repeat(BYTES_MAX / 10);
        (0..20).for_each(|id| calls.keep(&call(&id.to_string(), "{}", Some(&long))));
        assert!(calls.0.lock().unwrap().bytes <= BYTES_MAX);
        assert!(
            recalled(&calls, call("19", "{}", None)).is_some() && recalled(&calls, call("0", "{}", None)).is_none()
        );
        calls.keep(&call("big", "{}", Some(&"x".repeat(BYTES_MAX))));
        assert!(
            recalled(&calls, call("big", "{}", None)).is_none() && recalled(&calls, call("19", "{}", None)).is_some()
        );
    }
}
