//! Tools: calls that must be made are made, well formed and by their schemas, whatever the family; the model is random.

use serde_json::{Value, json};
use tessera_server::Settings;

use crate::support::{Running, Tiny, start, start_with, with};

fn weather() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": {
            "days": { "type": "integer", "minimum": 1, "maximum": 9 },
            "unit": { "$ref": "#/$defs/unit" },
            "rain": { "type": "boolean" },
            "place": { "$ref": "#/$defs/place" },
        },
        "required": ["days", "rain", "place"],
        "additionalProperties": false,
        "$defs": { "unit": { "enum": [1, 2] }, "place": { "enum": ["Bern", "a \"b\" | c"] } },
    });
    json!({ "type": "function", "function": { "name": "weather", "description": "How it is", "parameters": parameters } })
}

fn time() -> Value {
    json!({ "type": "function", "function": { "name": "time", "parameters": { "type": "object", "properties": {} } } })
}

fn ask(model: &str, more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Will it rain?" }]);
    with(json!({ "model": model, "messages": messages, "tools": [weather(), time()], "max_tokens": 600 }), more)
}

fn assert_sound(call: &Value) {
    assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    if call["function"]["name"] == "time" {
        return assert!(arguments.is_object());
    }
    assert_eq!(call["function"]["name"], "weather");
    let sound = arguments["days"].is_i64() && arguments["rain"].is_boolean();
    assert!(sound && ["Bern", "a \"b\" | c"].map(Value::from).contains(&arguments["place"]), "{arguments}");
    assert!(arguments.as_object().unwrap().keys().all(|key| ["days", "unit", "rain", "place"].contains(&key.as_str())));
}

#[test]
fn every_family_calls_when_it_must() {
    let plain = ["tiny", "hermes", "qwen3", "qwen3_coder", "llama3", "glm4", "gemma4", "gpt_oss", "deepseek4"];
    let tokens =
        ["hermes+tokens", "qwen3+tokens", "glm4+tokens", "gemma4+tokens", "gpt_oss+tokens", "deepseek4+tokens"];
    let families = [&plain[..], &tokens].concat();
    let server = start_with(&families, Tiny::default(), Settings::default());
    for model in families {
        // Thoughts of a random model would not end.
        let switched = !["tiny", "hermes", "llama3"].contains(&model.trim_end_matches("+tokens"));
        let effort = if switched { json!("none") } else { Value::Null };
        for seed in 0..if std::env::var_os("TESSERA_SWEEP").is_some() { 8 } else { 1 } {
            let named = json!({ "type": "function", "function": { "name": "weather" } });
            let more =
                json!({ "tool_choice": named, "seed": seed, "parallel_tool_calls": false, "reasoning_effort": effort });
            let object = server.post("/v1/chat/completions", &ask(model, more)).fine();
            let choice = &object["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{model}: {object}");
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1, "{model}: {object}");
            assert_eq!(
                (&calls[0]["function"]["name"], &choice["message"]["content"]),
                (&json!("weather"), &Value::Null),
                "{model}"
            );
            assert_sound(&calls[0]);
            let more = json!({ "tool_choice": "required", "seed": seed, "reasoning_effort": effort });
            let object = server.post("/v1/chat/completions", &ask(model, more)).fine();
            let calls = object["choices"][0]["message"]["tool_calls"].as_array().unwrap();
            assert!(!calls.is_empty(), "{model}: {object}");
            // Where a reply that calls and calls was cut off, its last call may not be whole.
            let cut = usize::from(object["choices"][0]["finish_reason"] == "length");
            calls[..calls.len() - cut].iter().for_each(assert_sound);
        }
    }
}

/// The calls of a chat stream, put together.
fn joined(chunks: &[Value]) -> Vec<Value> {
    let mut calls: Vec<Value> = Vec::new();
    let deltas = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array()).flatten();
    for delta in deltas {
        let index = delta["index"].as_u64().unwrap() as usize;
        if index == calls.len() {
            assert_eq!((&delta["type"], &delta["function"]["arguments"]), (&json!("function"), &json!("")));
            calls.push(json!({ "name": delta["function"]["name"], "arguments": "" }));
        }
        let more = delta["function"]["arguments"].as_str().unwrap();
        calls[index]["arguments"] = json!(calls[index]["arguments"].as_str().unwrap().to_owned() + more);
    }
    calls
}

/// A reply that is exactly this text, by way of a grammar.
fn exactly(text: &str) -> Value {
    json!({ "type": "grammar", "grammar": format!("start: {}\n", json!(text)) })
}

const TWO: &str = "I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"days\": 2, \"rain\": true}}\n</tool_call>\n\
                   <tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";

fn two(server: &Running, path: &str, body: Value, stream: bool) -> crate::support::Reply {
    let reply = server.post(path, &with(body, json!({ "stream": stream })));
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply
}

#[test]
fn calls_among_words_are_told_in_each_api() {
    let server = start_with(&["hermes"], Tiny::default(), Settings::default());
    let weather = json!({ "days": 2, "rain": true });
    // A call at once would be fine too: the bias of `I` keeps from it.
    let chat = ask("hermes", json!({ "response_format": exactly(TWO), "logit_bias": { "73": 100 } }));
    let whole = two(&server, "/v1/chat/completions", chat.clone(), false).fine();
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["content"], &whole["choices"][0]["finish_reason"]), (&json!("I look."), &json!("tool_calls")));
    let chunks = two(&server, "/v1/chat/completions", chat, true).chunks();
    let calls = joined(&chunks);
    for (told, call) in message["tool_calls"].as_array().unwrap().iter().zip(&calls) {
        assert_eq!((&told["function"]["name"], &told["function"]["arguments"]), (&call["name"], &call["arguments"]));
    }
    assert_eq!((calls.len(), &calls[1]["name"]), (2, &json!("time")));
    assert_eq!(serde_json::from_str::<Value>(calls[0]["arguments"].as_str().unwrap()).unwrap(), weather);

    let flat = |tool: Value| with(tool["function"].clone(), json!({ "type": "function" }));
    let tools = json!([flat(self::weather()), flat(time())]);
    let body = json!({ "model": "hermes", "input": "Rain?", "tools": tools, "text": { "format": exactly(TWO) },
        "logit_bias": { "73": 100 } });
    let whole = two(&server, "/v1/responses", body.clone(), false).fine();
    let output = whole["output"].as_array().unwrap();
    assert_eq!(
        output.iter().map(|i| i["type"].as_str().unwrap()).collect::<Vec<_>>(),
        ["message", "function_call", "function_call"]
    );
    assert_eq!((&output[1]["name"], &output[2]["arguments"]), (&json!("weather"), &json!("{}")));
    let events = two(&server, "/v1/responses", body, true).typed();
    let done: Vec<&Value> =
        events.iter().filter(|e| e["type"] == "response.output_item.done").map(|e| &e["item"]).collect();
    assert_eq!(done[1]["arguments"], output[1]["arguments"]);
    let deltas: String = events
        .iter()
        .filter(|e| e["type"] == "response.function_call_arguments.delta" && e["output_index"] == 1)
        .map(|e| e["delta"].as_str().unwrap())
        .collect();
    assert_eq!(deltas, output[1]["arguments"].as_str().unwrap());
    assert_eq!(events.last().unwrap()["type"], "response.completed");
}

#[test]
fn anthropic_tells_calls_as_blocks() {
    let server = start_with(&["hermes"], Tiny::default(), Settings::default());
    let tool =
        |tool: Value| json!({ "name": tool["function"]["name"], "input_schema": tool["function"]["parameters"] });
    let body = json!({
        "model": "hermes", "max_tokens": 300, "seed": 3, "tools": [tool(weather()), tool(time())],
        "tool_choice": { "type": "tool", "name": "weather", "disable_parallel_tool_use": true },
        "messages": [
            { "role": "user", "content": "Rain?" },
            { "role": "assistant", "content": [
                { "type": "text", "text": "I look." },
                { "type": "tool_use", "id": "toolu_1", "name": "weather", "input": { "days": 1, "rain": true } },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "toolu_1", "content": [{ "type": "text", "text": "No rain" }] },
                { "type": "text", "text": "And later?" },
            ] },
        ],
    });
    let whole = two(&server, "/v1/messages", body.clone(), false).fine();
    assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
    let block = &whole["content"][0];
    assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!("weather")));
    assert!(block["input"]["days"].is_i64(), "{whole}");
    let events = two(&server, "/v1/messages", body, true).typed();
    let start = events.iter().find(|e| e["type"] == "content_block_start").unwrap();
    assert_eq!((&start["content_block"]["name"], &start["content_block"]["input"]), (&json!("weather"), &json!({})));
    let input: String = events.iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&input).unwrap(), block["input"]);
}

#[test]
fn only_one_call_comes_where_no_more_are_wanted() {
    let server = start_with(&["hermes"], Tiny::default(), Settings::default());
    let body = ask(
        "hermes",
        json!({ "response_format": exactly(TWO), "parallel_tool_calls": false, "logit_bias": { "73": 100 } }),
    );
    let object = server.post("/v1/chat/completions", &body).fine();
    let choice = &object["choices"][0];
    assert_eq!(choice["message"]["tool_calls"].as_array().unwrap().len(), 1, "{object}");
    assert_eq!(choice["finish_reason"], "tool_calls");
    server.wait_idle();
}

/// A conversation with calls and results is a prompt like any, also for models whose template knows no tools.
#[test]
fn results_go_back_into_the_prompt() {
    let server =
        start_with(&["tiny", "hermes", "qwen3", "glm4", "gpt_oss", "gemma4"], Tiny::default(), Settings::default());
    let call = json!({ "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": "{\"days\": 1, \"rain\": true}" } });
    for model in ["tiny", "hermes", "qwen3", "glm4", "gpt_oss", "gemma4"] {
        let tokens = |result: &str, tools: bool| {
            let messages = json!([
                { "role": "user", "content": "Rain?" },
                { "role": "assistant", "content": null, "tool_calls": [call] },
                { "role": "tool", "tool_call_id": "call_1", "content": result },
            ]);
            let tools = if tools { json!([weather()]) } else { json!(null) };
            let body = json!({ "model": model, "messages": messages, "tools": tools, "max_tokens": 1 });
            server.post("/v1/chat/completions", &body).fine()["usage"]["prompt_tokens"].as_u64().unwrap()
        };
        assert!(tokens("nothing at all and more of it", true) > tokens("no", true), "{model}");
        assert!(tokens("no", true) > tokens("no", false), "{model} hears of tools");
    }
}

/// A call that comes back stands in the prompt as it was sampled, with odd spaces and all; one that was changed does not.
#[test]
fn calls_that_come_back_are_repeated_as_they_were_sampled() {
    let hermes = "<tool_call>\n{\"name\"  :  \"weather\"  ,  \"arguments\"  :  {\"days\"  :  1}}\n</tool_call>";
    let dsml = "<｜DSML｜tool_calls>\n\n\n<｜DSML｜invoke name=\"weather\">\n\n\n<｜DSML｜parameter name=\"days\" string=\"false\">1\
        </｜DSML｜parameter>\n\n\n</｜DSML｜invoke>\n\n\n</｜DSML｜tool_calls>";
    let server = start_with(&["qwen3", "deepseek4"], Tiny::default(), Settings::default());
    for (model, sampled) in [("qwen3", hermes), ("deepseek4", dsml)] {
        let more = json!({ "response_format": exactly(sampled), "tool_choice": "auto", "reasoning_effort": "none" });
        let object = server.post("/v1/chat/completions", &ask(model, more)).fine();
        let call = object["choices"][0]["message"]["tool_calls"][0].clone();
        assert_eq!(call["function"]["name"], "weather", "{object}");
        let tokens = |id: &Value, arguments: &str| {
            let call =
                json!({ "id": id, "type": "function", "function": { "name": "weather", "arguments": arguments } });
            let messages = json!([
                { "role": "user", "content": "Will it rain?" },
                { "role": "assistant", "content": null, "tool_calls": [call] },
                { "role": "tool", "tool_call_id": id, "content": "no" },
            ]);
            let body = json!({ "model": model, "messages": messages, "tools": [weather()], "max_tokens": 1 });
            server.post("/v1/chat/completions", &body).fine()["usage"]["prompt_tokens"].as_u64().unwrap()
        };
        let unknown = json!("call_none");
        // Blanks more than text of an unknown call ever has.
        assert!(tokens(&call["id"], "{\"days\": 1}") >= tokens(&unknown, "{\"days\": 1}") + 2, "{model}");
        assert_eq!(tokens(&call["id"], "{\"days\": 2}"), tokens(&unknown, "{\"days\": 2}"), "{model}");
    }
}

#[test]
fn tools_that_are_none_are_refused() {
    let server = start();
    let table = [
        (json!({ "tools": [weather(), weather()] }), "tools"),
        (json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }), "tools[0].function.name"),
        (json!({ "tools": [{ "type": "function", "function": { "parameters": {} } }] }), "tools[0].function.name"),
        (
            json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": 3 } }] }),
            "tools[0].function.parameters",
        ),
        (json!({ "tool_choice": { "type": "function", "function": { "name": "none_such" } } }), "tool_choice"),
        (json!({ "tool_choice": "always" }), "tool_choice"),
    ];
    for (more, param) in table {
        let reply = server.post("/v1/chat/completions", &ask("tiny", more));
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(param)), "{}", reply.text);
    }
    // A schema that no grammar can be made of matters only where it is to be kept to.
    let odd = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "spaceship" } } }]);
    let free = server.post("/v1/chat/completions", &ask("tiny", json!({ "tools": odd, "max_tokens": 1 })));
    assert_eq!(free.status, 200, "{}", free.text);
    let held = server.post("/v1/chat/completions", &ask("tiny", json!({ "tools": odd, "tool_choice": "required" })));
    assert_eq!((held.status, &held.json()["error"]["param"]), (400, &json!("tools")), "{}", held.text);
}

/// A call that breaks before it has a name cannot be repaired: the reply goes on from before it, once, and calls.
#[test]
fn a_call_that_breaks_is_tried_again() {
    let server = start_with(&["deepseek4", "qwen3_coder"], Tiny::default(), Settings::default());
    let blocks = [
        ("deepseek4", "<｜DSML｜tool_calls>\nThe weather, I think.\n</｜DSML｜tool_calls>"),
        ("deepseek4", "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"wea"),
        ("deepseek4", "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"),
        ("qwen3_coder", "<tool_call>\nweather\n</tool_call>"),
    ];
    for (model, block) in blocks {
        let mut tried = 0;
        for seed in 0..6 {
            // Where tools may be called, a reply of another form may call instead; then nothing breaks.
            let form = exactly(&format!("I look.\n\n{block}"));
            let more = json!({ "response_format": form, "seed": seed, "reasoning_effort": "none", "parallel_tool_calls": false });
            let object = server.post("/v1/chat/completions", &ask(model, more)).fine();
            let message = &object["choices"][0]["message"];
            let calls = message["tool_calls"].as_array().unwrap_or_else(|| panic!("{model}, {block}: {object}"));
            assert_eq!((calls.len(), &object["choices"][0]["finish_reason"]), (1, &json!("tool_calls")), "{object}");
            assert_sound(&calls[0]);
            tried += usize::from(message["content"] == "I look.");
            assert!(message["content"] == "I look." || message["content"].is_null(), "{object}");
            assert!(object["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{object}");
        }
        assert!(tried > 0, "{model}: no reply began with words");
        // Without tools there is nothing to try again: what broke is content.
        let form = exactly(&format!("I look.\n\n{block}"));
        let plain = json!({ "response_format": form, "tools": null, "reasoning_effort": "none" });
        let object = server.post("/v1/chat/completions", &ask(model, plain)).fine();
        assert_eq!(object["choices"][0]["message"]["content"], format!("I look.\n\n{block}"), "{object}");
    }
}
