//! `tessera synth`, and synthetic models by their name wherever a model is named.

use crate::support::Home;

const TINY: &str = "layers=2,width=64,head_dim=32,vocabulary=400,context=128,format=Q8_0,seed=3";

#[test]
fn a_file_and_a_name_are_the_same_model() {
    let home = Home::new();
    for architecture in ["llama", "qwen2", "qwen3", "gemma3"] {
        let name = format!("synth:{architecture},{TINY}");
        let file = format!("{architecture}.gguf");
        let made = home.run(&["synth", name.strip_prefix("synth:").unwrap(), &file, "--json"]).json();
        assert_eq!(made["output"], *file);
        let whole = made["model"].as_str().unwrap();
        assert!(whole.starts_with(&format!("synth:{architecture},layers=2,width=64,head_dim=32,")), "{whole}");
        // The reply of the file, of the name, and of the whole line that the command printed.
        let reply = |model: &str| {
            let args = ["run", model, "hello there", "--json", "--temperature=0", "--max-tokens=8", "--logprobs=2"];
            let reply = home.run(&[&args[..], &["--ignore-eos"]].concat()).json();
            assert!(reply["text"].as_str().is_some_and(|text| !text.is_empty()), "{reply}");
            (reply["text"].clone(), reply["logprobs"].clone())
        };
        let from_file = reply(&file);
        assert_eq!(reply(&name), from_file);
        assert_eq!(reply(whole), from_file);
        assert_ne!(reply(&name.replace("seed=3", "seed=4")), from_file);

        let facts = |model: &str| {
            let mut facts = home.run(&["inspect", model, "--json"]).json();
            facts["path"].take();
            facts["container"].take();
            facts
        };
        assert_eq!(facts(&name), facts(&file));
        let tokens = |model: &str| home.run(&["tokenize", model, "some words", "--json"]).good();
        assert_eq!(tokens(&name), tokens(&file));
    }
}

#[test]
fn every_command_takes_the_name() {
    let home = Home::new();
    let name = format!("synth:llama,{TINY}");
    let text = "the quick brown fox jumps over the lazy dog ".repeat(8);
    let found = home.run_with(&["perplexity", &name, "--window=64", "--json"], &text).json();
    assert!(found["perplexity"].as_f64().is_some_and(|p| (40.0..4000.0).contains(&p)), "{found}");
    let shown = home.run(&["inspect", &name, "--tensors"]).good();
    assert!(shown.contains("made in memory") && shown.contains("blk.1.ffn_down.weight"), "{shown}");
    let chat = home.run_with(&["chat", &name, "--max-tokens=4", "--temperature=0"], "hello\n");
    assert_eq!(chat.code, Some(0), "{chat:?}");
    home.run(&["quantize", &name.replace("Q8_0", "F16"), "q.gguf", "--type=Q4_0"]).good();
    assert!(home.run(&["inspect", "q.gguf"]).good().contains("Q4_0"));
    home.run(&["pull", &name]).bad(&["made where it is used", "tessera synth"]);
    home.run(&["rm", &name]).bad(&["not a model in the store"]);
}

#[test]
fn files_are_replaced_only_when_asked_and_never_by_halves() {
    let home = Home::new();
    let line = format!("llama,{TINY}");
    home.file("a.gguf", b"mine");
    home.run(&["synth", &line, "a.gguf"]).bad(&["a.gguf exists", "--force"]);
    assert_eq!(std::fs::read(home.path().join("a.gguf")).unwrap(), b"mine");
    let ran = home.run(&["synth", &line, "a.gguf", "--force", "--threads=1"]);
    assert!(ran.err.contains("a.gguf: ") && ran.err.contains("synth:llama,layers=2"), "{ran:?}");
    assert!(ran.good().is_empty());
    home.run(&["synth", &line, "b.gguf", "--threads=2"]).good();
    let read = |name: &str| std::fs::read(home.path().join(name)).unwrap();
    assert!(read("a.gguf") == read("b.gguf"));
    home.run(&["synth", &line, "missing/c.gguf"]).bad(&["missing/c.gguf"]);
    let mut names: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.retain(|name| name.to_string_lossy().contains("gguf"));
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn wrong_lines_are_explained() {
    let home = Home::new();
    let cases = [
        ("gpt5", "llama, qwen2, qwen3, qwen3moe, gemma3"),
        ("llama,layer=2", "its keys are layers, width,"),
        ("llama,width=500", "make width a multiple of 256"),
        ("llama,format=Q9", "Q4_K"),
        ("llama,layers=1024,width=65536,feed_forward=524288", "reduce layers"),
    ];
    for (line, part) in cases {
        home.run(&["synth", line, "a.gguf"]).bad(&["synthetic model: ", part]);
        home.run(&["run", &format!("synth:{line}"), "hello"]).bad(&["synthetic model: ", part]);
    }
    home.run(&["synth", "llama,format=MLX4_G64", "a.gguf"]).bad(&["MLX4_G64 has no place in GGUF", "in memory"]);
    let ran = home.run(&["run", "synth:llama,layers=1,width=128,format=MLX4_G64", "hello", "-n1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}
