//! The two models of the README, from the user's own model store: fetched there by the first test that needs them.
//!
//! `TESSERA_OFFLINE=1` leaves these tests out.

use std::process::Command;

use crate::support::{Ran, data};

const MODELS: [&str; 2] = ["smollm2:135m", "gemma3:270m"];

/// Runs the binary with the user's own store; none if tests are to stay off the network.
fn tessera(args: &[&str]) -> Option<Ran> {
    if std::env::var_os("TESSERA_OFFLINE").is_some_and(|v| v == "1") {
        eprintln!("TESSERA_OFFLINE=1: tests on real models are left out");
        return None;
    }
    Some(Ran::of(Command::new(env!("CARGO_BIN_EXE_tessera")).args(args).output().unwrap()))
}

/// llama.cpp stands at 0.0022 and 0.0034 over three such chunks; the limits are those, on the first.
#[test]
fn real_models_are_close_to_f32_arithmetic() {
    let limits = [("smollm2-135m", 0.0022, 0.966), ("gemma3-270m", 0.0034, 0.959)];
    for (model, (reference, kld_max, same_top_min)) in MODELS.into_iter().zip(limits) {
        let file = data(&format!("{reference}.top16.json"));
        let Some(ran) = tessera(&["perplexity", model, "--reference", file.to_str().unwrap(), "--json"]) else {
            return;
        };
        let score = ran.json();
        assert_eq!(score["positions"], 255, "{model}: {score}");
        assert!(score["mean_kld"].as_f64().unwrap() <= kld_max, "{model}: {score}");
        assert!(score["same_top"].as_f64().unwrap() >= same_top_min, "{model}: {score}");
    }
}

#[test]
fn greedy_text_depends_on_neither_threads_nor_chunks() {
    let prompt = "The history of the printing press begins in China, where paper and ink were known early. ".repeat(2);
    for model in MODELS {
        let mut texts: Vec<(String, String)> = Vec::new();
        for (threads, chunk) in [("1", "512"), ("2", "512"), ("2", "1"), ("1", "7"), ("2", "64")] {
            let flags = ["--raw", "-t", "0", "-n", "16", "--threads", threads, "--chunk", chunk];
            let Some(ran) = tessera(&[&["run", model, prompt.as_str()], &flags[..]].concat()) else { return };
            texts.push((ran.good(), format!("{threads} threads, chunks of {chunk}")));
        }
        assert!(texts[0].0.trim().len() > 20, "{model} says {:?}", texts[0].0);
        for (text, what) in &texts {
            assert_eq!(*text, texts[0].0, "{model}, {what}");
        }
    }
}

#[test]
fn the_default_model_answers() {
    let Some(ran) = tessera(&["run", "The capital of France is", "--raw", "-t", "0", "-n", "2"]) else { return };
    assert_eq!(ran.good(), " Paris.\n");
}
