//! Tools for models whose template knows none: they are described in the system message, and calls are written as Hermes
//! writes them, which many models have seen. With a grammar that asks for a call, any model makes a well-formed one.

use serde_json::{Value, json};
use tessera_engine::{ChatFormat, chat::Message};

/// How calls are written, by a model that writes thoughts like `own`.
pub(crate) fn format(own: &'static ChatFormat) -> &'static ChatFormat {
    let name = if own.thinks() { "qwen3" } else { "hermes" };
    ChatFormat::named(name).unwrap_or(own)
}

/// Messages without calls and results: all of it is text.
pub(crate) fn messages(messages: &[Message], tools: &[Value]) -> Vec<Message> {
    let mut all: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    if !tools.is_empty() {
        all.push(Message::new("system", description(tools)));
    }
    for message in messages {
        let mut text = message.content.clone();
        let role = if message.role == "tool" { "user" } else { message.role.as_str() };
        if message.role == "tool" {
            text = format!("<tool_response>\n{text}\n</tool_response>");
        }
        for call in &message.tool_calls {
            let arguments: Value = serde_json::from_str(&call.function.arguments).unwrap_or_else(|_| json!({}));
            let call = json!({ "name": call.function.name, "arguments": arguments });
            text += if text.is_empty() { "" } else { "\n" };
            text += &format!("<tool_call>\n{call}\n</tool_call>");
        }
        match all.last_mut() {
            // Templates often want roles to take turns, and one system message at the beginning.
            Some(last) if last.role == role && role != "assistant" => {
                last.content = format!("{}\n\n{text}", last.content)
            }
            _ => all.push(Message { reasoning_content: message.reasoning_content.clone(), ..Message::new(role, text) }),
        }
    }
    all
}

fn description(tools: &[Value]) -> String {
    let list: Vec<String> = tools.iter().map(|tool| tool["function"].to_string()).collect();
    format!(
        "You can call these functions:\n<tools>\n{}\n</tools>\nTo call one, write a JSON object with its name and its \
         arguments:\n<tool_call>\n{{\"name\": \"NAME\", \"arguments\": {{…}}}}\n</tool_call>",
        list.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use tessera_engine::chat::ToolCall;

    use super::*;

    #[test]
    fn calls_and_results_become_text_and_roles_take_turns() {
        let call = ToolCall::new("1", "rain", "{\"city\": \"Bern\"}");
        let conversation = [
            Message::new("system", "Be short."),
            Message::new("user", "Rain?"),
            Message { tool_calls: vec![call], ..Message::new("assistant", "I look.") },
            Message::result("1", "rain", "yes"),
            Message::new("user", "Sure?"),
        ];
        let tool = json!({ "type": "function", "function": { "name": "rain", "parameters": {} } });
        let all = messages(&conversation, &[tool]);
        let roles: Vec<&str> = all.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(all[0].content.contains("\"name\":\"rain\"") && all[0].content.ends_with("\n\nBe short."));
        assert_eq!(
            all[2].content,
            "I look.\n<tool_call>\n{\"name\":\"rain\",\"arguments\":{\"city\":\"Bern\"}}\n</tool_call>"
        );
        assert_eq!(all[3].content, "<tool_response>\nyes\n</tool_response>\n\nSure?");
    }
}
