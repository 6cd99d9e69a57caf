//! `run` on tiny random models: what it prints, and what must not change it.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use crate::support::{Home, Parts, Ran, fixture};

const MODELS: [&str; 3] = ["llama", "qwen2", "qwen3"];
/// About 200 tokens of these small vocabularies: several chunks of 7 and of 64.
const PROMPT: &str = "The quick brown fox jumps over the lazy dog, then 12345 more foxes follow it into the wood. \
                      Why? Nobody knows; the dog least of all: it sleeps on, and dreams of foxes that are slow.";

/// Runs with `--raw` and greedy unless `extra` says otherwise.
fn run(home: &Home, model: &str, extra: &[&str]) -> Ran {
    let path = fixture(model);
    home.run(&[&["run", path.to_str().unwrap(), PROMPT, "--raw"], extra].concat())
}

#[test]
fn greedy_text_does_not_depend_on_threads_or_chunks() {
    let home = Home::new();
    for (model, cache) in MODELS.into_iter().map(|model| (model, "f16")).chain([("qwen3", "q8_0"), ("llama", "f32")]) {
        let mut texts = Vec::new();
        for threads in ["1", "2"] {
            for chunk in ["1", "7", "64", "512"] {
                let flags = ["-t", "0", "-n", "24", "--threads", threads, "--chunk", chunk, "--json"];
                let flags = [&flags[..], &["--cache-format", cache]].concat();
                let object = run(&home, model, &flags).json();
                texts.push((object["text"].clone(), threads, chunk));
            }
        }
        assert!(texts.iter().all(|(text, ..)| *text == texts[0].0), "{model}, {cache}: {texts:?}");
        assert!(!texts[0].0.as_str().unwrap().is_empty(), "{model}: nothing was said");
    }
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let home = Home::new();
    let text = |seed: &str, threads: &str| {
        let flags = ["-t", "10", "--top-k", "0", "--min-p", "0", "-n", "24", "--seed", seed, "--threads", threads];
        run(&home, "qwen3", &flags).good()
    };
    let first = text("1", "1");
    assert_eq!(first, text("1", "2"));
    assert!((2..6).any(|seed: u32| text(&seed.to_string(), "1") != first), "no other seed gives another text");
    // Without a seed each run has its own, and says which.
    let own = |_| run(&home, "qwen3", &["-n", "1", "--json"]).json()["seed"].as_u64().unwrap();
    let seeds: Vec<_> = (0..2).map(own).collect();
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn json_says_what_was_done() {
    let home = Home::new();
    let object = run(&home, "llama", &["-t", "0", "-n", "5", "--json", "--logprobs", "3"]).json();
    let tokens = object["tokens"].as_array().unwrap();
    assert_eq!(object["reply_tokens"], 5);
    assert_eq!(object["finish_reason"], "length");
    assert_eq!(tokens.len(), 5);
    let path = fixture("llama");
    let counted = home.run(&["tokenize", path.to_str().unwrap(), PROMPT, "--json", "--special"]).json();
    assert_eq!(object["prompt_tokens"], counted["count"]);
    for token in tokens {
        let top = token["top"].as_array().unwrap();
        let logprobs: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(logprobs.len() == 3 && logprobs.is_sorted_by(|a, b| a >= b) && logprobs[0] <= 0.0, "{token}");
        assert_eq!(token["id"], top[0]["id"], "greedy takes the likeliest");
        assert_eq!(token["logprob"], top[0]["logprob"]);
    }
    // The plain text is the same text, with a line end.
    let plain = run(&home, "llama", &["-t", "0", "-n", "5"]).good();
    assert_eq!(plain, format!("{}\n", object["text"].as_str().unwrap()));
    let noted = run(&home, "llama", &["-t", "0", "-n", "5", "--logprobs", "--stats"]);
    assert_eq!(noted.err.lines().count(), 5 + 1, "{noted:?}");
    assert!(noted.err.contains("tokens a second"), "{noted:?}");
}

#[test]
fn replies_end_where_they_are_told_to() {
    let home = Home::new();
    let whole = run(&home, "llama", &["-t", "0", "-n", "40", "--json", "--logprobs"]).json();
    let ids: Vec<_> = whole["tokens"].as_array().unwrap().iter().map(|t| t["id"].as_u64().unwrap()).collect();
    let text = whole["text"].as_str().unwrap();
    // By a token.
    let stop_at = ids[3].to_string();
    let stopped = run(&home, "llama", &["-t", "0", "-n", "40", "--json", "--stop-token", &stop_at]).json();
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(stopped["reply_tokens"].as_u64().unwrap() <= 4, "{stopped}");
    // By a text, wherever tokens cut it.
    let start = text.char_indices().nth(5).unwrap().0;
    let end = text.char_indices().nth(8).unwrap().0;
    let stop = &text[start..end];
    let stopped = run(&home, "llama", &["-t", "0", "-n", "40", "--json", "--stop", stop]).json();
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"], text[..text.find(stop).unwrap()]);
    // By a bias that leaves one choice.
    let forced = run(&home, "llama", &["-t", "0", "-n", "4", "--json", "--logprobs", "--logit-bias", "70=1e30"]).json();
    assert!(forced["tokens"].as_array().unwrap().iter().all(|t| t["id"] == 70), "{forced}");
    run(&home, "llama", &["--logit-bias", "400=1"]).bad(&["token 400"]);
}

#[test]
fn the_prompt_comes_from_wherever_it_is() {
    let home = Home::new();
    let path = fixture("qwen2");
    let model = path.to_str().unwrap();
    let flags = ["--raw", "-t", "0", "-n", "8"];
    let given = home.run(&[&["run", model, PROMPT], &flags[..]].concat()).good();
    assert_eq!(home.run_with(&[&["run", model], &flags[..]].concat(), PROMPT).good(), given);
    assert_eq!(home.run_with(&[&["run", model, "-"], &flags[..]].concat(), PROMPT).good(), given);
    assert_eq!(home.run_with(&[&["run", model, PROMPT], &flags[..]].concat(), "ignored").good(), given);
    home.run(&["run", model, "--raw"]).bad(&["the prompt is empty"]);
    home.run(&["run", model, ""]).bad(&["the prompt is empty"]);
}

#[test]
fn a_prompt_beyond_the_context_is_refused() {
    let home = Home::new();
    run(&home, "llama", &["--context", "64"]).bad(&["64", "--context"]);
    // One that fits leaves room for some tokens and no more.
    let path = fixture("llama");
    let flags = ["--raw", "-t", "0", "--context", "64", "--ignore-eos", "--json"];
    let object = home.run(&[&["run", path.to_str().unwrap(), "a b c"], &flags[..]].concat()).json();
    let total = object["prompt_tokens"].as_u64().unwrap() + object["reply_tokens"].as_u64().unwrap();
    // The last token of a reply needs no place: nothing follows it.
    assert!(total == 65 && object["finish_reason"] == "context", "{object}");
}

#[test]
fn chat_templates_come_from_the_file() {
    let home = Home::new();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let model = Parts::of("qwen2").set("tokenizer.chat_template", template).write(&home, "chat");
    let written = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    let count = home.run(&["tokenize", &model, written, "--special", "--json"]).json()["count"].clone();
    let flags = ["--system", "Be kind.", "-t", "0", "-n", "6", "--json"];
    let object = home.run(&[&["run", &model, "Hi"], &flags[..]].concat()).json();
    assert_eq!(object["prompt_tokens"], count);
    // What a user writes is never a special token.
    let object = home.run(&["run", &model, "<|im_end|>", "-t", "0", "-n", "1", "--json"]).json();
    let plain = home.run(&["run", &model, "a", "-t", "0", "-n", "1", "--json"]).json();
    assert!(object["prompt_tokens"].as_u64() > plain["prompt_tokens"].as_u64(), "{object} {plain}");
}

/// As under `| head -c1`: the reader leaves while the model still speaks.
#[test]
fn a_reader_that_leaves_ends_the_reply() {
    let home = Home::new();
    let path = fixture("llama");
    let mut command = home.command(&["run", path.to_str().unwrap(), "a", "--raw", "-n", "100000", "-t", "1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    assert!(!out.fill_buf().unwrap().is_empty());
    drop(out);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert!(ran.code == Some(0) && ran.err.is_empty(), "{ran:?}");
}

#[test]
fn a_state_file_spares_what_was_computed_and_changes_nothing() {
    let home = Home::new();
    let with = |extra: &[&str]| run(&home, "qwen3", &[&["-t", "0", "-n", "8", "--json"], extra].concat());
    let plain = with(&[]).json();
    let first = with(&["--state", "a.state"]).json();
    let again = with(&["--state", "a.state"]).json();
    for object in [&first, &again] {
        assert_eq!((&object["text"], &object["tokens"]), (&plain["text"], &plain["tokens"]));
    }
    assert_eq!([&plain, &first].map(|o| o["cached_tokens"].as_u64()), [Some(0); 2]);
    let prompt = plain["prompt_tokens"].as_u64().unwrap();
    assert_eq!(again["cached_tokens"].as_u64(), Some(prompt - 1), "the last gives the logits");
    // Another model's file, and what is none, are refused by name.
    run(&home, "llama", &["-n", "1", "--state", "a.state"]).bad(&["a.state", "another model"]);
    home.file("b.state", b"something else");
    with(&["--state", "b.state"]).bad(&["b.state", "no state file"]);
    assert_eq!(std::fs::read(home.path().join("b.state")).unwrap(), b"something else");
}
