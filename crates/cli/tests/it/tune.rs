//! `tessera tune`: what it stores, that commands use it, that it moves no bit, and what becomes of files that are no good.

use std::path::PathBuf;

use crate::support::{Home, Ran};

const MODEL: &str = "synth:llama,layers=2,width=256,heads=4,kv_heads=2,head_dim=64,feed_forward=256,vocabulary=400,format=Q4_K,head=Q8_0";

fn file(home: &Home) -> PathBuf {
    home.store().join("tuning.json")
}

/// A reply, with its log-probabilities, after a prompt of several hundred tokens.
fn reply(home: &Home) -> (String, String) {
    let prompt = "some words and others ".repeat(60);
    let args = ["run", MODEL, &prompt, "--json", "--temperature=0", "--max-tokens=12", "--logprobs=3"];
    let reply = home.run(&[&args[..], &["--ignore-eos", "--raw", "--threads=2"]].concat()).json();
    assert!(reply["text"].as_str().is_some_and(|text| !text.is_empty()), "{reply}");
    (reply["text"].to_string(), reply["logprobs"].to_string())
}

fn shown(home: &Home, isa: &str) -> serde_json::Value {
    home.run(&["tune", "--show", "--json", "--threads=2", &format!("--kernels=isa={isa}")]).json()
}

/// Changes the file as text and requires that something changed.
fn edit(home: &Home, change: impl Fn(&str) -> String) {
    let old = std::fs::read_to_string(file(home)).unwrap();
    let new = change(&old);
    assert_ne!(old, new);
    std::fs::write(file(home), new).unwrap();
}

/// Gives every number of every table another value.
fn set_all(home: &Home, values: &[(&str, u64)]) {
    edit(home, |old| {
        let mut content: serde_json::Value = serde_json::from_str(old).unwrap();
        for table in content["tables"].as_array_mut().unwrap() {
            let table = table["values"].as_object_mut().unwrap();
            assert_eq!(table.len(), values.len(), "{table:?}");
            values.iter().for_each(|(name, value)| *table.get_mut(*name).unwrap() = (*value).into());
        }
        content.to_string()
    });
}

const STRANGE: [(&str, u64); 7] = [
    ("prefetch_bytes", 192),
    ("tokens_per_worker_min", 3),
    ("quantize_alone_max", 0),
    ("turn_bytes", 1),
    ("pass_tokens", 16),
    ("routed_pass_tokens", 16),
    ("products_per_byte", 1000),
];

#[test]
fn a_table_is_stored_used_and_moves_no_bit() {
    let home = Home::new();
    let before = reply(&home);
    let found = home.run(&["tune", "--quick", "--json", "--threads=2"]).json();
    assert_eq!(found["file"], file(&home).to_str().unwrap());
    let candidates = found["candidates"].as_array().unwrap();
    for (name, _) in STRANGE {
        let of_number: Vec<_> = candidates.iter().filter(|c| c["values"].get(name).is_some()).collect();
        let cells: usize = of_number.iter().map(|c| c["cells"].as_array().unwrap().len()).sum();
        assert!(cells > 0, "{name} was measured nowhere: {of_number:?}");
    }
    for candidate in candidates.iter().filter(|c| c["adopted"] == true) {
        let outcomes: Vec<_> = candidate["cells"].as_array().unwrap().iter().map(|c| c["outcome"].clone()).collect();
        assert!(outcomes.contains(&"faster".into()) && !outcomes.contains(&"slower".into()), "{candidate}");
    }
    let isa = found["isa"].as_str().unwrap();
    let now = shown(&home, isa);
    assert_eq!((&now["file"], &now["values"]), (&found["file"], &found["adopted"]));
    assert_eq!(reply(&home), before);

    // Whatever the machine adopted, a table that changes everything changes what runs, and no bit of the result.
    set_all(&home, &STRANGE);
    let now = shown(&home, isa);
    assert!(STRANGE.iter().all(|(name, value)| now["values"][name] == *value), "{now}");
    let kernels = |home: &Home| {
        let args = ["kernels", "--format=Q4_K", "--widths=64", "--threads=2", "--json"];
        home.run(&[&args[..], &[&format!("--kernels=isa={isa}")]].concat()).json()
    };
    let tuned = kernels(&home);
    assert_eq!(tuned["kernels"][0]["pass_tokens"], 16);
    assert_eq!(tuned["tuning"]["file"], file(&home).to_str().unwrap());
    assert_eq!(reply(&home), before);
    let text = home.run(&["kernels", "--format=Q4_K", "--threads=2"]).good();
    assert!(text.lines().next().is_some_and(|l| l.contains("tuning.json (prefetch_bytes=192, ")), "{text}");
    let bench = ["bench", "kernel", "--rows=64", "--depth=256", "--widths=1", "--repeat=1", "--hot", "--json"];
    let row = home.run(&[&bench[..], &["--threads=2"]].concat()).json();
    assert!(row["tuning"].as_str().is_some_and(|t| t.contains("pass_tokens=16")), "{row}");

    let said = home.run(&["tune", "--reset"]).good();
    assert!(said.starts_with("deleted ") && !file(&home).exists(), "{said}");
    assert!(home.run(&["tune", "--reset"]).good().contains("the defaults are in force"));
    let now = kernels(&home);
    assert!(now["tuning"]["file"].is_null() && now["kernels"][0]["pass_tokens"] == 64, "{now}");
    assert_eq!(reply(&home), before);
}

#[test]
fn tables_are_for_their_threads_and_instruction_set() {
    let home = Home::new();
    let tune = ["tune", "--quick", "--kernels=isa=portable"];
    home.run(&[&tune[..], &["--threads=1"]].concat()).good();
    set_all(&home, &STRANGE);
    let force = |threads: &str, isa: &str| {
        let args = ["tune", "--show", "--json", threads, &format!("--kernels=isa={isa}")];
        let ran = home.run(&args);
        assert!(ran.err.is_empty(), "{ran:?}");
        ran.json()["values"]["products_per_byte"] == 1000
    };
    assert!(force("--threads=1", "portable"));
    assert!(!force("--threads=2", "portable"));
    let text = home.run(&["kernels", "--format=Q4_K"]).good();
    let others = text.lines().next().is_some_and(|line| line.ends_with("tuning: defaults"));
    assert!(others || text.starts_with("CPU (portable, 1 thread"), "{text}");
}

#[test]
fn a_dry_run_stores_nothing() {
    let home = Home::new();
    let text = home.run(&["tune", "--quick", "--dry-run", "--threads=2"]).good();
    assert!(text.contains("stored nothing") && text.contains("routed_pass_tokens"), "{text}");
    assert!(!file(&home).exists());
    let text = home.run(&["tune", "--show"]).good();
    assert!(text.contains("tuning: defaults") && text.contains("quantize_alone_max"), "{text}");
}

#[test]
fn a_file_that_is_no_good_is_ignored_with_a_note() {
    let home = Home::new();
    let expect = reply(&home);
    home.run(&["tune", "--quick", "--threads=2"]).good();
    set_all(&home, &STRANGE);
    let good = std::fs::read_to_string(file(&home)).unwrap();
    let cases: [(&str, &str, &str); 5] = [
        ("\"version\":1", "\"version\":7", "version 7"),
        ("\"processor\":\"", "\"processor\":\"not ", "another machine"),
        ("1000", "99999999", "products_per_byte"),
        ("192", "-192", "prefetch_bytes"),
        ("{", "", "damaged"),
    ];
    for (from, to, why) in cases {
        std::fs::write(file(&home), &good).unwrap();
        edit(&home, |old| old.replace(from, to));
        let ran = home.run(&["tune", "--show", "--threads=2"]);
        let notes: Vec<_> = ran.err.lines().collect();
        assert_eq!(notes.len(), 1, "{ran:?}");
        assert!([why, "tuning.json", "`tessera tune`"].iter().all(|word| notes[0].contains(word)), "{why}: {ran:?}");
        assert!(ran.good().contains("tuning: defaults"));
    }
    let ran = home.run(&["run", MODEL, "hello", "--max-tokens=2", "--threads=2"]);
    assert!(ran.code == Some(0) && ran.err.contains("is ignored: "), "{ran:?}");
    assert_eq!(reply(&home), expect);
    // A folder in its place, and a file elsewhere.
    std::fs::remove_file(file(&home)).unwrap();
    std::fs::create_dir(file(&home)).unwrap();
    let ran = home.run(&["tune", "--show", "--threads=2"]);
    assert!(ran.code == Some(0) && ran.err.contains("cannot be read"), "{ran:?}");
    home.run(&["tune", "--reset"]).bad(&["cannot delete", "tuning.json", "TESSERA_TUNING"]);
    home.file("mine.json", good.as_bytes());
    let mut command = home.command(&["tune", "--show", "--threads=2"]);
    let ran = Ran::of(command.env("TESSERA_TUNING", home.path().join("mine.json")).output().unwrap());
    assert!(ran.err.is_empty() && ran.out.contains("mine.json (prefetch_bytes=192"), "{ran:?}");
}

#[test]
fn switches_that_hide_what_is_measured_are_refused() {
    let home = Home::new();
    home.run(&["tune", "--quick", "--kernels=split=weights"]).bad(&["split=weights", "isa"]);
    assert_eq!(home.run(&["tune", "--show", "--reset"]).code, Some(2));
    assert!(!file(&home).exists());
}
