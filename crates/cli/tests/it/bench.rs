//! `tessera bench`: rows of one schema, results that are checked, and refusals.

use serde_json::Value;

use crate::support::Home;

const TINY: &str =
    "synth:llama,layers=2,width=64,heads=2,kv_heads=1,head_dim=32,vocabulary=300,context=256,format=Q8_0,seed=3";

/// Rows of `--json`.
#[track_caller]
fn rows(home: &Home, args: &[&str]) -> Vec<Value> {
    let repeat = if args.iter().any(|arg| arg.starts_with("--repeat")) { &[][..] } else { &["--repeat=2"] };
    let out = home.run(&[&["bench"], args, &["--json"], repeat].concat()).good();
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(rows: &[Value], key: &str) -> Vec<u64> {
    rows.iter().map(|row| row[key].as_u64().unwrap_or_else(|| panic!("{key} in {row}"))).collect()
}

#[track_caller]
fn check(row: &Value) {
    for key in ["commit", "machine", "isa", "model", "formats", "variants", "hash"] {
        assert!(row[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {row}");
    }
    let rate = |key: &str| row[key].as_f64().unwrap();
    assert!(rate("tokens_per_second_min") > 0.0, "{row}");
    assert!(rate("tokens_per_second_min") <= rate("tokens_per_second"), "{row}");
    assert!(rate("tokens_per_second") <= rate("tokens_per_second_max"), "{row}");
    assert_eq!(row["repeats"], 2);
    assert_eq!(row["hash"].as_str().unwrap().len(), 12);
}

#[test]
fn prefill_gives_one_result_whatever_the_chunk() {
    let home = Home::new();
    let one = rows(&home, &["prefill", TINY, "--prompt=70,130"]);
    assert_eq!(numbers(&one, "tokens"), [70, 130]);
    one.iter().for_each(check);
    assert_ne!(one[0]["hash"], one[1]["hash"]);
    assert_eq!((&one[0]["test"], &one[0]["formats"]), (&"prefill".into(), &"Q8_0".into()));
    let other = rows(&home, &["prefill", TINY, "--prompt=70", "--chunk=16", "--threads=1", "--kernels=isa=portable"]);
    assert_eq!(other[0]["hash"], one[0]["hash"]);
    assert_eq!((&other[0]["forced"], &other[0]["isa"]), (&"isa=portable".into(), &"portable".into()));
    assert!(other[0]["variants"].as_str().unwrap().starts_with("portable/"), "{other:?}");
    assert_ne!(rows(&home, &["prefill", &TINY.replace("seed=3", "seed=4"), "--prompt=70"])[0]["hash"], one[0]["hash"]);
}

#[test]
fn decode_gives_each_width_a_row() {
    let home = Home::new();
    let args = ["decode", TINY, "--depth=66", "--tokens=5"];
    let found = rows(&home, &[&args[..], &["--width=1,3,8"]].concat());
    found.iter().for_each(check);
    assert_eq!(numbers(&found, "width"), [1, 3, 8]);
    assert_eq!(numbers(&found, "tokens"), [5, 15, 40]);
    assert_eq!(numbers(&found, "depth"), [66; 3]);
    let again = rows(&home, &[&args[..], &["--width=3", "--chunk=7", "--kernels=tile=2,split=tokens"]].concat());
    assert_eq!(again[0]["hash"], found[1]["hash"]);
    assert!(again[0]["variants"].as_str().unwrap().contains("x2/") && again[0]["forced"] == "tile=2,split=tokens");
}

#[test]
fn sequences_come_and_go_with_the_replies_they_give_alone() {
    let home = Home::new();
    let args = ["batch", TINY, "--sequences=9", "--prompt=80", "--tokens=24"];
    let found = rows(&home, &[&args[..], &["--batch=1,4", "--chunk=32"]].concat());
    found.iter().for_each(check);
    let phases: Vec<_> = found.iter().map(|r| r["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["prefill", "decode", "prefill", "decode"]);
    assert_eq!(numbers(&found, "width"), [1, 1, 4, 4]);
    assert!(found.iter().all(|r| r["hash"] == found[0]["hash"] && r["sequences"] == 9), "{found:?}");
    assert_eq!((&found[0]["tokens"], &found[1]["tokens"]), (&found[2]["tokens"], &found[3]["tokens"]));
    let (prompts, replies) = (found[0]["tokens"].as_u64().unwrap(), found[1]["tokens"].as_u64().unwrap());
    assert!((80 + 8 * 20..80 * 9).contains(&prompts), "prompts differ: {prompts}");
    assert!((23 + 8 * 5..23 * 9).contains(&replies), "replies differ, and the first token does not count: {replies}");
    assert_eq!(found[1]["occupied"], 1.0);
    assert!((1.5..=4.0).contains(&found[3]["occupied"].as_f64().unwrap()), "{found:?}");
    let other = rows(&home, &[&args[..], &["--batch=2", "--seed=1"]].concat());
    assert_ne!(other[0]["hash"], found[0]["hash"]);
    rows(&home, &["batch", TINY, "--batch=2", "--prompt=1", "--tokens=1"]);
}

#[test]
fn a_batch_is_filled_and_flags_are_in_range() {
    let home = Home::new();
    home.run(&["bench", "batch", TINY, "--batch=2,4", "--sequences=3"])
        .bad(&["never fill a batch of 4", "--sequences"]);
    home.run(&["bench", "prefill", TINY, "--kernels=fast=1"]).bad(&["fast=1", "moe_tile="]);
    home.run(&["bench", "prefill", "synth:gpt5"]).bad(&["gpt5"]);
    for args in [&["prefill", TINY, "--prompt=0"][..], &["decode", TINY, "--width=1,,2"], &["batch", TINY, "--batch=x"]]
    {
        let ran = home.run(&[&["bench"], args].concat());
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
    }
    let both = home.run(&["bench", "prefill", TINY, "--csv", "--json"]);
    assert_eq!(both.code, Some(2), "{both:?}");
}

#[test]
fn tables_and_csv_hold_the_same_rows() {
    let home = Home::new();
    let args = ["bench", "decode", TINY, "--depth=3", "--tokens=2", "--repeat=1", "--width=2,5"];
    let table = home.run(&args).good();
    let hash = |line: &str| line.split_whitespace().nth(10).unwrap_or_default().to_owned();
    let hashes: Vec<_> = table.lines().skip(3).map(hash).collect();
    assert!(table.starts_with("synth:llama,layers=2") && table.contains(" tokens/s"), "{table}");
    let csv = home.run(&[&args[..], &["--csv"]].concat()).good();
    let lines: Vec<_> = csv.lines().collect();
    assert!(lines[0].starts_with("commit,machine,isa,threads,model,") && lines[0].ends_with(",forced,hash"), "{csv}");
    assert_eq!(lines.len(), 3);
    for (line, hash) in lines[1..].iter().zip(&hashes) {
        assert!(hash.len() == 12 && line.ends_with(hash), "{hash} in {line}\n{table}");
    }
}

#[test]
fn kernels_are_forced_wherever_a_model_runs() {
    let home = Home::new();
    let text = |more: &[&str]| {
        let args = ["run", TINY, "hello", "--json", "--temperature=0", "--max-tokens=4", "--ignore-eos"];
        home.run(&[&args[..], more].concat()).json()["text"].clone()
    };
    assert_eq!(text(&["--kernels=isa=portable,tile=1"]), text(&[]));
    home.run(&["run", TINY, "hello", "--kernels=isa=sse9"]).bad(&["isa=sse9", "isa=portable"]);
    let text = "the quick brown fox jumps over the lazy dog ".repeat(4);
    home.run_with(&["perplexity", TINY, "--window=32", "--kernels=split=weights"], &text).good();
}

#[test]
fn a_sweep_measures_every_frontier_and_draws_it() {
    let home = Home::new();
    let args = ["sweep", TINY, "--from=60", "--to=200", "--step=70", "--generate=5", "--svg=sweep.svg"];
    let found = rows(&home, &args);
    found.iter().for_each(check);
    assert_eq!(numbers(&found, "depth"), [0, 60, 60, 130, 130, 200]);
    assert_eq!(numbers(&found, "tokens"), [60, 5, 70, 5, 70, 5]);
    // A page of 64 tokens holds keys and values of one head of 32 in two layers, two bytes each.
    let pages: Vec<_> =
        found.iter().filter_map(|r| r["snapshot_bytes"].as_u64()).map(|b| b / (64 * 2 * 32 * 2 * 2)).collect();
    assert_eq!(pages, [1, 3, 4]);
    let picture = std::fs::read_to_string(home.path().join("sweep.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("prefill") && picture.contains("decode"));
    // What was generated at one frontier left no trace at the next; nor does the way there.
    let other = rows(&home, &["sweep", TINY, "--from=50", "--to=200", "--factor=2", "--generate=5", "--chunk=9"]);
    assert_eq!(numbers(&other, "depth"), [0, 50, 50, 100, 100, 200]);
    assert_eq!(&other[4]["hash"], &found[4]["hash"]);
    assert_eq!(&other[5]["hash"], &found[5]["hash"]);
    // A model whose rings are written over on the way: going back to a frontier takes more than forgetting tokens.
    let rings = "synth:deepseek4,layers=2,width=256,heads=1,experts=2,experts_used=1,vocabulary=300";
    let args = [
        "sweep",
        rings,
        "--from=100",
        "--to=500",
        "--step=400",
        "--generate=2",
        "--chunk=32",
        "--repeat=1",
        "--room=700",
    ];
    assert_eq!(numbers(&rows(&home, &args), "depth"), [0, 100, 100, 500]);
    // More steps than the rings look back, and more than a step has rows.
    let args = ["decode", rings, "--depth=9", "--tokens=90", "--chunk=32", "--repeat=1", "--width=2"];
    assert_eq!(numbers(&rows(&home, &args), "tokens"), [180]);
    let args = ["sweep", rings, "--from=40", "--to=40", "--generate=70", "--chunk=32", "--repeat=1"];
    assert_eq!(numbers(&rows(&home, &args), "tokens"), [40, 70]);
    home.run(&["bench", "sweep", TINY, "--from=9", "--to=8"]).bad(&["from 9 to 8", "--to"]);
    for factor in ["1", "NaN", "101", "x"] {
        let ran = home.run(&["bench", "sweep", TINY, &format!("--factor={factor}")]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
    }
    let args = ["bench", "sweep", TINY, "--from=9", "--to=9", "--generate=1", "--repeat=1", "--svg=none/a.svg"];
    let ran = home.run(&args);
    assert!(ran.code == Some(1) && ran.err.contains("none/a.svg"), "{ran:?}");
}

#[test]
fn kernels_are_compared_in_one_run() {
    let home = Home::new();
    let dense = ["kernel", "--format=q4_k", "--rows=40", "--depth=256", "--widths=1,3,40", "--hot"];
    let found = rows(&home, &[&dense[..], &["--kernels=isa=portable", "--kernels=tile=2"]].concat());
    assert_eq!(numbers(&found, "width"), [1, 3, 40, 1, 3, 40]);
    for (i, row) in found.iter().enumerate() {
        check(row);
        assert_eq!((&row["hash"], &row["forced"]), (&found[i % 3]["hash"], &["isa=portable", "tile=2"][i / 3].into()));
        assert!(row["gops"].as_f64().unwrap() > 0.0 && row["gigabytes_per_second"].as_f64().unwrap() > 0.0, "{row}");
    }
    let routed = ["kernel", "--experts=8", "--used=2", "--rows=32", "--depth=64", "--format=Q4_0", "--widths=1,4,70"];
    let found = rows(&home, &[&routed[..], &["--kernels=moe_tile=16", "--kernels="]].concat());
    found.iter().for_each(check);
    assert_eq!(found[2]["hash"], found[5]["hash"]);
    let touched: Vec<_> = found.iter().map(|row| row["touched"].as_f64().unwrap()).collect();
    assert!(touched[0] == 2.0 && touched[1] > 3.0 && touched[1] < 8.0 && touched[2] == 8.0, "{touched:?}");
    assert_eq!((&found[0]["relative_bytes"], &found[2]["relative_bytes"]), (&1.0.into(), &4.0.into()));
    assert!(found[2]["variants"].as_str().unwrap().contains("/pass16/"), "{}", found[2]);
    let cold = rows(&home, &["kernel", "--format=Q8_0", "--rows=2048", "--depth=2048", "--widths=1", "--repeat=1"]);
    assert!(cold[0]["variants"].as_str().unwrap().contains("BlocksOf8/16x1/"), "{cold:?}");

    home.run(&["bench", "kernel", "--depth=100"]).bad(&["not whole blocks", "--depth"]);
    home.run(&["bench", "kernel", "--rows=1048576", "--depth=1048576"]).bad(&["618.5 GB", "17.2 GB at most"]);
    home.run(&["bench", "kernel", "--experts=4", "--used=5"]).bad(&["5 of 4 experts", "--used"]);
    home.run(&["bench", "kernel", "--kernels=isa=portable", "--kernels=x"]).bad(&["x"]);
    let ran = home.run(&["bench", "kernel", "--experts=4"]);
    assert!(ran.code == Some(2) && ran.err.contains("--used"), "{ran:?}");
}

#[test]
fn ways_of_attention_are_compared_in_one_run() {
    let home = Home::new();
    let args = ["attention", "--head-dims=16,80", "--tokens=70,300", "--rows=1,40", "--heads=3", "--kv-heads=1"];
    let found = rows(&home, &[&args[..], &["--repeat=1"]].concat());
    assert_eq!(found.len(), 2 * 2 * 2 * 2);
    for pair in found.chunks(2) {
        assert_eq!(pair[0]["hash"], pair[1]["hash"]);
        assert_eq!(pair[0]["relative_time"], 1.0);
        assert!(pair[1]["gops"].as_f64().unwrap() > 0.0);
        let few = pair[0]["width"] == 1;
        let ways = if few { ["single", "two-pass"] } else { ["fused", "unfused"] };
        for (row, way) in pair.iter().zip(ways) {
            assert!(row["variants"].as_str().unwrap().starts_with(way), "{row}");
            assert_eq!(row["forced"], format!("attention={way}"));
        }
    }
    let sets = ["--kernels=attention=unfused", "--kernels=isa=portable", "--window=50", "--cache-format=q8_0"];
    let found = rows(&home, &[&args[..], &sets, &["--repeat=1"]].concat());
    assert_eq!(found.len(), 2 * 2 * 2 * 2);
    home.run(&["bench", "attention", "--heads=3", "--kv-heads=2"]).bad(&["3 query heads", "--kv-heads"]);
    home.run(&["bench", "attention", "--kernels=attention=none"]).bad(&["attention=none", "single|two-pass"]);
}

#[test]
fn a_profile_adds_up() {
    let home = Home::new();
    let args = ["profile", TINY, "--prompt=40", "--width=3", "--depth=20", "--tokens=4", "--repeat=3"];
    let found = home.run(&[&args[..], &["--json"]].concat()).json();
    assert!(found["machine"].is_string() && found["formats"] == "Q8_0", "{found}");
    let phases = found["phases"].as_array().unwrap();
    for (phase, name, width) in [(&phases[0], "prefill", 40), (&phases[1], "decode", 3)] {
        assert_eq!((&phase["phase"], &phase["width"]), (&name.into(), &width.into()));
        let stages = phase["stages"].as_array().unwrap();
        let sum: f64 = stages.iter().map(|s| s["seconds"].as_f64().unwrap()).sum();
        // Medians of stages and of the whole are of different runs, some of which may have been disturbed.
        let [least, greatest] = ["seconds_min", "seconds_max"].map(|name| phase[name].as_f64().unwrap());
        assert!((0.5 * least..=1.5 * greatest).contains(&sum), "{phase}");
        // Matrices of a layer: 64 x 64 q and output, 32 x 64 k and v, three of the feed-forward layer.
        let of = |stage: &'static str| stages.iter().filter(move |s| s["stage"] == stage);
        let operations = |stage: &'static str| of(stage).map(|s| s["operations"].as_f64().unwrap()).sum::<f64>();
        assert_eq!(operations("q/k/v"), 2.0 * f64::from(2 * width * (64 + 32 + 32) * 64), "{phase}");
        assert_eq!(operations("output"), 2.0 * f64::from(2 * width * 64 * 64));
        assert_eq!(operations("gate/up"), 2.0 * operations("down"));
        for stage in ["embed", "norm", "rope", "attention", "gate", "residual", "head", "sampling", "rest"] {
            assert!(of(stage).all(|s| s["seconds"].as_f64().unwrap() >= 0.0) && of(stage).count() > 0, "{stage}");
        }
        assert_eq!(of("attention").filter_map(|s| s["layer"].as_u64()).collect::<Vec<_>>(), [0, 1]);
        assert!(of("head").all(|s| s["layer"].is_null()));
    }
    let table = home.run(&args).good();
    for part in ["prefill of 40: ", "decode of 3 after 20: ", "\nq/k/v ", "\nsampling ", "\nlayer ", "\n    1 "] {
        assert!(table.contains(part), "{part} in {table}");
    }
    let csv = home.run(&[&args[..], &["--csv"]].concat()).good();
    assert!(csv.starts_with("phase,layer,stage,seconds,") && csv.contains("\ndecode,1,down,"), "{csv}");
    home.run(&["profile", TINY, "--kernels=x"]).bad(&["x"]);
}

/// A kernel that leaves out what is beyond 32 tokens of a pass is fast; its speed is not printed.
#[test]
fn wrong_results_have_no_speed() {
    let home = Home::new();
    // How many tokens each thread takes decides which are left out.
    let wrong = ["--threads=2", "--kernels=narrowed=32"];
    let cases: [(&[&str], &str); 4] = [
        (&["prefill", TINY, "--prompt=130"], "prompt of 130, in chunks of 31"),
        (&["decode", TINY, "--depth=3", "--tokens=2", "--width=40"], "40 sequences together"),
        (&["sweep", TINY, "--from=130", "--to=130"], "prompt up to 130"),
        (&["kernel", "--hot", "--rows=32", "--depth=256", "--widths=70"], "token 32 in a width of 70"),
    ];
    for (args, what) in cases {
        home.run(&[&["bench"], args].concat()).good();
        home.run(&[&["bench"], args, &wrong].concat()).bad(&[what, "was expected", "tessera audit"]);
    }
}
