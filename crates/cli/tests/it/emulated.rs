//! The program with a card that `tools/emulate` makes of g++: a model says on it what it says on the CPU, and each thing that can be
//! missing or fail is one sentence with a remedy. Every kernel that runs is watched: a wrong access fails the run, and so does
//! memory of the card that nobody let go of.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Home, Ran, fixture};

const PROMPT: &str = "The quick brown fox jumps over the lazy dog, then 12345 more foxes follow it into the wood.";

fn tool() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/emulate").canonicalize().unwrap()
}

/// Runs the binary with a card that is as `card` says.
fn on_card(home: &Home, card: &str, args: &[&str]) -> Ran {
    let plain = home.command(&[]);
    let mut command = Command::new(tool());
    command.arg(plain.get_program()).args(args).env("EMULATED_CARD", card).stdin(std::process::Stdio::null());
    command.current_dir(home.path());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // The libraries are built once for all tests, not in this test's home.
    Ran::of(command.output().unwrap())
}

fn greedy<'a>(model: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let flags = ["run", model, PROMPT, "--raw", "-t", "0", "-n", "6", "--ignore-eos", "--json", "--logprobs", "3"];
    [&flags[..], extra].concat()
}

/// What does not depend on the clock.
fn said(mut object: serde_json::Value) -> serde_json::Value {
    let fields = object.as_object_mut().unwrap();
    assert!(fields["tokens"].as_array().is_some_and(|t| !t.is_empty()), "{fields:?}");
    fields.retain(|name, _| name == "text" || name == "tokens" || name == "logprobs");
    object
}

#[test]
fn a_model_says_on_the_card_what_it_says_on_the_cpu() {
    let home = Home::new();
    for (model, cache, chunk) in [("llama", "f16", "512"), ("qwen3", "q8_0", "7"), ("qwen2", "f32", "64")] {
        let path = fixture(model);
        let args = greedy(path.to_str().unwrap(), &["--cache-format", cache, "--chunk", chunk]);
        let on_cpu = said(home.run(&args).json());
        let ran = on_card(&home, "", &[&args[..], &["--device", "cuda"]].concat());
        assert!(!ran.err.contains("emulation: "), "{}", ran.err);
        assert_eq!(said(ran.json()), on_cpu, "{model}");
    }
}
