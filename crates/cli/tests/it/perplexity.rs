//! `perplexity`: over a text, and against references made from the model itself.

use serde_json::json;

use crate::support::{Home, fixture};

/// A reference of one chunk whose listed tokens all have `log_probability`.
fn reference(home: &Home, tokens: usize, first: usize, top: &[(u32, f64)]) -> String {
    let ids: Vec<u32> = top.iter().map(|(id, _)| *id).collect();
    let logprobs: Vec<f64> = top.iter().map(|(_, p)| *p).collect();
    let positions: Vec<_> = (first..tokens).map(|_| json!([ids, logprobs])).collect();
    let tokens: Vec<usize> = (0..tokens).map(|i| 10 + i * 7 % 300).collect();
    let file = json!({ "n_vocab": 384, "chunks": [{ "tokens": tokens, "first_scored": first, "top": positions }] });
    home.file("reference.json", file.to_string().as_bytes()).to_str().unwrap().to_owned()
}

#[test]
fn a_text_has_a_perplexity() {
    let home = Home::new();
    let path = fixture("llama");
    let model = path.to_str().unwrap();
    let text = "Nobody knows why the fox is quick and the dog is lazy. ".repeat(20);
    let file = home.file("text.txt", text.as_bytes());
    let flags = ["--window", "64", "--json"];
    let from_file = home.run(&[&["perplexity", model, "--file", file.to_str().unwrap()], &flags[..]].concat()).json();
    // The model is random: about as good as a guess, and certainly above one.
    assert!(from_file["perplexity"].as_f64().unwrap() > 1.5, "{from_file}");
    assert_eq!(from_file["tokens"].as_u64().unwrap() % 31, 0, "63 - 32 of each chunk: {from_file}");
    let piped = home.run_with(&[&["perplexity", model], &flags[..]].concat(), &text).json();
    assert_eq!(piped["perplexity"], from_file["perplexity"]);
    for flags in [["--threads", "1", "--chunk", "1"], ["--threads", "2", "--chunk", "7"]] {
        let again = home.run_with(&[&["perplexity", model, "--window", "64", "--json"], &flags[..]].concat(), &text);
        assert_eq!(again.json()["perplexity"], from_file["perplexity"], "{flags:?}");
    }
    let one = home.run_with(&[&["perplexity", model, "--chunks", "1"], &flags[..]].concat(), &text).json();
    assert_eq!(one["tokens"], 31);
    let plain = home.run_with(&["perplexity", model], &text).good();
    assert!(plain.starts_with("perplexity"), "{plain}");
    home.run_with(&["perplexity", model], "").bad(&["fewer than 2 tokens"]);
    home.run(&["perplexity", model, "--file", "none.txt"]).bad(&["cannot open none.txt"]);
}

#[test]
fn a_reference_has_a_divergence() {
    let home = Home::new();
    let path = fixture("llama");
    let model = path.to_str().unwrap();
    // A reference that is sure of one token is far from a random model.
    let file = reference(&home, 60, 20, &[(5, -0.001), (6, -9.0)]);
    let far = home.run(&["perplexity", model, "--reference", &file, "--json"]).json();
    assert_eq!(far["positions"], 40);
    assert_eq!(far["tokens"], 39);
    let (mean, p99) = (far["mean_kld"].as_f64().unwrap(), far["p99_kld"].as_f64().unwrap());
    assert!(mean > 1.0 && p99 >= mean, "{far}");
    assert!((0.0..=1.0).contains(&far["same_top"].as_f64().unwrap()));
    let part = home.run(&["perplexity", model, "--reference", &file, "--json", "--every", "4"]).json();
    assert_eq!(part["positions"], 10);
    let text = home.run(&["perplexity", model, "--reference", &file]).good();
    assert!(text.contains("mean KLD") && text.contains("same top"), "{text}");
    let again = home.run(&["perplexity", model, "--reference", &file, "--json", "--chunk", "7"]).json();
    assert_eq!(again, far);
}

/// The model's own log-probabilities, as `run` prints them, are at no distance from it.
#[test]
fn a_model_is_at_no_distance_from_itself() {
    let home = Home::new();
    let path = fixture("qwen3");
    let model = path.to_str().unwrap();
    let prompt = "The quick brown fox jumps over the lazy dog.";
    let said = home.run(&["run", model, prompt, "--raw", "-t", "0", "-n", "1", "--logprobs", "16", "--json"]).json();
    let top = said["tokens"][0]["top"].as_array().unwrap();
    let ids: Vec<_> = top.iter().map(|t| t["id"].clone()).collect();
    let logprobs: Vec<_> = top.iter().map(|t| t["logprob"].clone()).collect();
    let tokens = home.run(&["tokenize", model, prompt, "--special", "--json"]).json()["ids"].clone();
    let last = tokens.as_array().unwrap().len() - 1;
    let chunk = json!({ "tokens": tokens, "first_scored": last, "top": [[ids, logprobs]] });
    let file = home.file("self.json", json!({ "chunks": [chunk] }).to_string().as_bytes());
    let near = home.run(&["perplexity", model, "--reference", file.to_str().unwrap(), "--json"]).json();
    assert!(near["mean_kld"].as_f64().unwrap().abs() < 1e-5, "{near}");
    assert_eq!(near["same_top"], 1.0);
    // No token follows the scored position, so there is no perplexity.
    assert!(near["perplexity"].is_null() && near["tokens"] == 0, "{near}");
}

#[test]
fn wrong_references_are_refused() {
    let home = Home::new();
    let path = fixture("llama");
    let model = path.to_str().unwrap();
    let check = |content: &str, word: &str| {
        let file = home.file("wrong.json", content.as_bytes());
        let ran = home.run(&["perplexity", model, "--reference", file.to_str().unwrap(), "--json"]);
        ran.bad(&["wrong.json", word]);
    };
    check("{}", "not a reference file");
    check(r#"{"n_vocab":9,"chunks":[]}"#, "vocabulary of 9 tokens");
    check(r#"{"chunks":[{"tokens":[1,999],"first_scored":0,"top":[[[1],[0]]]}]}"#, "token 999");
    home.run(&["perplexity", model, "--reference", "none.json"]).bad(&["none.json", "check the path"]);
}
