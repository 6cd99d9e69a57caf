//! The table of families. The first row whose clues are found counts, so a special case stands above what it looks like.
//!
//! The formats are facts from the models' published templates and documents.

use super::format::{Calls, ChatFormat, History, Mark::*, Setting::*, Switch, Typing};

const NO_SWITCH: Switch = Switch { on: &[], off: &[], effort: None };
const ENABLE: Switch =
    Switch { on: &[("enable_thinking", Flag(true))], off: &[("enable_thinking", Flag(false))], effort: None };
const PLAIN: History =
    History { reasoning: "reasoning_content", text_arguments: None, results: None, merge: false, replay: false };
const HERMES: Calls =
    Calls::Json { name: &["name"], arguments: &["arguments", "parameters"], separators: ",;", bare: false };

/// All families, special ones first; the last has no marks.
pub static FAMILIES: [ChatFormat; 10] = [
    ChatFormat {
        name: "gpt-oss",
        template: &[&["<|channel|>", "<|message|>"]],
        tokens: &["<|channel|>", "<|message|>", "<|constrain|>"],
        marks: &[
            (Start, "<|start|>"),
            (Channel, "<|channel|>"),
            (Constrain, "<|constrain|>"),
            (Body, "<|message|>"),
            (End, "<|end|>"),
            (End, "<|call|>"),
            (End, "<|return|>"),
        ],
        pieces: &[],
        label: "",
        calls: Calls::Channels { to: "to=", prefix: "functions.", thinking: &["analysis"] },
        // It always thinks.
        switch: Switch {
            on: &[("reasoning_effort", Word("high"))],
            off: &[("reasoning_effort", Word("low"))],
            effort: Some("reasoning_effort"),
        },
        history: History { reasoning: "thinking", merge: true, ..PLAIN },
    },
    ChatFormat {
        name: "gemma4",
        template: &[&["<|tool_call>"], &["<|turn>", "<|channel>"], &["<|turn>"]],
        tokens: &["<|turn>", "<|channel>"],
        marks: &[
            (ThinkOpen, "<|channel>"),
            (ThinkClose, "<channel|>"),
            (CallOpen, "<|tool_call>"),
            (CallClose, "<tool_call|>"),
            (Quote, "<|\"|>"),
        ],
        pieces: &[],
        label: "thought\n",
        // After thinking it may leave out the mark.
        calls: Calls::Literal { lead: "call:", bare: true },
        switch: ENABLE,
        history: History { results: Some(("tool_responses", "== 'tool'")), ..PLAIN },
    },
    ChatFormat {
        name: "deepseek4",
        template: &[&["｜DSML｜"]],
        tokens: &["｜DSML｜"],
        marks: &[
            (ThinkOpen, "<think>"),
            (ThinkClose, "</think>"),
            (GroupOpen, "<｜DSML｜tool_calls>"),
            (GroupClose, "</｜DSML｜tool_calls>"),
            (CallOpen, "<｜DSML｜invoke name=\""),
            (NameEnd, "\">"),
            (CallClose, "</｜DSML｜invoke>"),
            (KeyOpen, "<｜DSML｜parameter name=\""),
            (KeyClose, "\" string=\""),
            (ValueOpen, "\">"),
            (ValueClose, "</｜DSML｜parameter>"),
            (ValueEscape, "&lt;/｜DSML｜parameter>"),
        ],
        pieces: &["｜DSML｜"],
        label: "",
        calls: Calls::Pairs { typing: Typing::Flag("true"), line: false, trim: false, together: true },
        switch: Switch {
            on: &[("enable_thinking", Flag(true)), ("thinking", Flag(true))],
            off: &[("enable_thinking", Flag(false)), ("thinking", Flag(false))],
            effort: Some("reasoning_effort"),
        },
        history: History { replay: true, ..PLAIN },
    },
    ChatFormat {
        name: "glm4",
        template: &[&["<arg_key>"]],
        tokens: &["<arg_key>", "<arg_value>"],
        marks: &[
            (ThinkOpen, "<think>"),
            (ThinkClose, "</think>"),
            (CallOpen, "<tool_call>"),
            (CallClose, "</tool_call>"),
            (KeyOpen, "<arg_key>"),
            (KeyClose, "</arg_key>"),
            (ValueOpen, "<arg_value>"),
            (ValueClose, "</arg_value>"),
        ],
        pieces: &[],
        label: "",
        calls: Calls::Pairs { typing: Typing::Schema, line: true, trim: false, together: false },
        switch: ENABLE,
        history: History { replay: true, ..PLAIN },
    },
    ChatFormat {
        name: "qwen3-coder",
        template: &[&["<function=", "<parameter="]],
        tokens: &[],
        marks: &[
            (ThinkOpen, "<think>"),
            (ThinkClose, "</think>"),
            (GroupOpen, "<tool_call>"),
            (GroupClose, "</tool_call>"),
            (CallOpen, "<function="),
            (NameEnd, ">"),
            (CallClose, "</function>"),
            (KeyOpen, "<parameter="),
            (KeyClose, ">"),
            (ValueClose, "</parameter>"),
        ],
        pieces: &[],
        label: "",
        calls: Calls::Pairs { typing: Typing::Schema, line: false, trim: true, together: false },
        switch: ENABLE,
        history: History { replay: true, ..PLAIN },
    },
    ChatFormat {
        name: "qwen3",
        template: &[&["<tool_call>", "</think>"]],
        tokens: &["<tool_call>", "<think>"],
        marks: &[
            (ThinkOpen, "<think>"),
            (ThinkClose, "</think>"),
            (CallOpen, "<tool_call>"),
            (CallClose, "</tool_call>"),
        ],
        pieces: &[],
        label: "",
        calls: HERMES,
        switch: ENABLE,
        history: History { text_arguments: Some("arguments is string"), replay: true, ..PLAIN },
    },
    ChatFormat {
        name: "hermes",
        template: &[&["<tool_call>"]],
        tokens: &["<tool_call>", "</tool_call>"],
        marks: &[(CallOpen, "<tool_call>"), (CallClose, "</tool_call>")],
        pieces: &[],
        label: "",
        calls: HERMES,
        switch: NO_SWITCH,
        history: History { text_arguments: Some("arguments is string"), replay: true, ..PLAIN },
    },
    ChatFormat {
        name: "llama3",
        template: &[&["<|start_header_id|>", "<|eot_id|>"]],
        tokens: &["<|python_tag|>", "<|eom_id|>"],
        marks: &[(CallOpen, "<|python_tag|>")],
        pieces: &[],
        label: "",
        calls: Calls::Json {
            name: &["name", "function"],
            arguments: &["parameters", "arguments"],
            separators: ";,",
            bare: true,
        },
        switch: NO_SWITCH,
        history: PLAIN,
    },
    ChatFormat {
        name: "think",
        template: &[&["<think>"], &["</think>"]],
        tokens: &["<think>", "</think>"],
        marks: &[(ThinkOpen, "<think>"), (ThinkClose, "</think>")],
        pieces: &[],
        label: "",
        calls: Calls::None,
        switch: Switch {
            on: &[("enable_thinking", Flag(true)), ("thinking", Flag(true))],
            off: &[("enable_thinking", Flag(false)), ("thinking", Flag(false))],
            effort: None,
        },
        history: PLAIN,
    },
    ChatFormat {
        name: "plain",
        template: &[],
        tokens: &[],
        marks: &[],
        pieces: &[],
        label: "",
        calls: Calls::None,
        switch: NO_SWITCH,
        history: PLAIN,
    },
];
