//! `tessera bench speculate` and layers that draft in files of their own: what is told with drafts is told without, passes add up, and a
//! file that does not fit is refused with its reason.

use std::path::Path;

use serde_json::Value;
use tessera_formats::{DType, Gguf, GgufWriter};

use crate::support::{Home, fixture};

/// Layers with a window alone, with rows for four tokens and an indexer, and with rows for 128.
pub(crate) const TRUNK: &str = "deepseek4,layers=4,width=64,head_dim=32,heads=4,output_groups=2,experts=4,experts_used=2,\
     expert_feed_forward=32,vocabulary=300,query_rank=32,output_rank=16,indexer_heads=2,indexer_dim=32,top_k=4,table_layers=1,window=5,\
     format=F32";

/// How a layer that drafts is named in a file of its own.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Own,
    /// As block `N`, behind the model's last.
    Block(usize),
}

/// Numbers that look random.
fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * 0.3).collect()
}

/// Writes a trunk of random weights into the home.
pub(crate) fn trunk(home: &Home, line: &str) -> String {
    home.run(&["synth", line, "trunk.gguf"]).good();
    home.path().join("trunk.gguf").into_os_string().into_string().unwrap()
}

/// Writes a layer that drafts for it: its second layer, of another making, and what joins both inputs.
pub(crate) fn draft_layer(home: &Home, trunk: &str, layer: usize, form: Form) -> String {
    let own = Gguf::open(Path::new(trunk)).unwrap();
    let width = own.get("deepseek4.embedding_length").unwrap().as_u64().unwrap() as usize;
    let (block, beside) = match form {
        Form::Own => ("mtp.0.".to_owned(), "mtp.0.".to_owned()),
        Form::Block(n) => (format!("blk.{n}."), format!("blk.{n}.nextn.")),
    };
    let mut writer = GgufWriter::new().set("general.architecture", "deepseek4");
    for tensor in own.tensors().iter().filter(|t| t.name.starts_with(&format!("blk.{layer}."))) {
        let name = tensor.name.replace(&format!("blk.{layer}."), &block);
        writer = writer.tensor(name, tensor.dtype, tensor.shape.clone(), tensor.bytes.clone());
    }
    let mut numbers = |name: String, shape: &[usize], numbers: Vec<f32>| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        let added = std::mem::take(&mut writer).tensor(format!("{name}.weight"), DType::F32, shape.to_vec(), bytes);
        writer = added;
    };
    let around = |seed| random(seed, width).iter().map(|v| 1.0 + v).collect::<Vec<_>>();
    numbers(format!("{beside}enorm"), &[width], around(1));
    numbers(format!("{beside}hnorm"), &[width], around(2));
    let (norm, end) = match form {
        Form::Own => ("norm", "mtp.0.hc_head".to_owned()),
        Form::Block(_) => ("shared_head_norm", "output_hc".to_owned()),
    };
    numbers(format!("{beside}{norm}"), &[width], around(3));
    numbers(format!("{end}_fn"), &[4 * width, 4], random(4, 16 * width));
    numbers(format!("{end}_scale"), &[1], vec![0.7]);
    numbers(format!("{end}_base"), &[4], random(5, 4));
    match form {
        Form::Own => {
            numbers("mtp.0.e_proj".to_owned(), &[width, width], random(6, width * width));
            numbers("mtp.0.h_proj".to_owned(), &[width, width], random(7, width * width));
        }
        Form::Block(_) => numbers(format!("{beside}eh_proj"), &[2 * width, width], random(8, 2 * width * width)),
    }
    let path = home.path().join("mtp.gguf");
    writer.write_to(&mut std::fs::File::create(&path).unwrap()).unwrap();
    path.into_os_string().into_string().unwrap()
}

fn measured(home: &Home, trunk: &str, mtp: &str, more: &[&str]) -> Value {
    let args = ["bench", "speculate", trunk, "--mtp", mtp, "--prompt=40", "--tokens=24", "--repeat=2", "--json"];
    home.run(&[&args[..], more].concat()).json()
}

#[test]
fn drafts_change_no_bit_and_passes_add_up() {
    let home = Home::new();
    let trunk = trunk(&home, TRUNK);
    for (form, chunk) in [(Form::Own, "--chunk=512"), (Form::Block(4), "--chunk=7")] {
        let mtp = draft_layer(&home, &trunk, 1, form);
        let report = measured(&home, &trunk, &mtp, &["--drafts=1,3,7", chunk]);
        assert_eq!(
            (&report["test"], &report["tokens"], report["hash"].as_str().unwrap().len()),
            (&"speculate".into(), &24.into(), 12)
        );
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {report}"));
        assert!(number(&report["plain"]["step_seconds"]) > 0.0);
        let drafted = report["drafted"].as_array().unwrap();
        assert_eq!(drafted.iter().map(|d| d["drafts"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3, 7]);
        for d in drafted {
            assert_eq!(d["identical"], true);
            let right: f64 = d["accepted"].as_array().unwrap().iter().map(|a| number(&a["right"])).sum();
            assert_eq!(
                number(&d["passes"]) + right,
                24.0,
                "each pass tells a token and the drafts that were right: {d}"
            );
            assert!((number(&d["passes"]) * number(&d["tokens_per_pass"]) - 24.0).abs() < 1e-9);
            let gain = number(&d["tokens_per_second"]) / number(&report["plain"]["tokens_per_second"]);
            assert!((number(&d["gain"]) - gain).abs() < 1e-9);
            assert!(number(&d["verify_seconds"]) > 0.0 && number(&d["draft_seconds"]) > 0.0, "{d}");
            let stage = |name: &str| {
                let found = d["stages"].as_array().unwrap().iter().find(|s| s["stage"] == name);
                let found = found.unwrap_or_else(|| panic!("{name} in {d}"));
                ["step_seconds", "verify_seconds", "draft_seconds"].map(|key| number(&found[key]))
            };
            for both in ["low_proj", "attention", "store k/v", "head"] {
                assert!(stage(both).iter().all(|seconds| *seconds > 0.0), "{both}: {d}");
            }
            // The layer that drafts has no compressed rows; the trunk has nothing to join.
            assert!(stage("compress")[1] > 0.0 && stage("compress")[2] == 0.0, "{d}");
            assert!(stage("draft input")[1] == 0.0 && stage("draft input")[2] > 0.0, "{d}");
        }
    }
}

#[test]
fn a_synthetic_model_drafts_for_itself_and_says_the_same() {
    let home = Home::new();
    let name = format!("synth:{TRUNK},draft_layers=1");
    let args = ["--prompt=40", "--tokens=24", "--repeat=1", "--drafts=1,4", "--json"];
    let report = home.run(&[&["bench", "speculate", &name], &args[..]].concat()).json();
    for (drafted, depth) in report["drafted"].as_array().unwrap().iter().zip([1, 4]) {
        let accepted = drafted["accepted"].as_array().unwrap();
        assert_eq!((&drafted["identical"], accepted.len()), (&true.into(), depth), "{drafted}");
        let right: u64 = accepted.iter().map(|a| a["right"].as_u64().unwrap()).sum();
        assert_eq!(drafted["passes"].as_u64().unwrap() + right, 24, "{drafted}");
    }
    // The trunk is the model without it, whoever drafts: of a file of its own, or of one file with both.
    let trunk = trunk(&home, TRUNK);
    let mtp = draft_layer(&home, &trunk, 1, Form::Own);
    assert_eq!(measured(&home, &trunk, &mtp, &["--drafts=1"])["hash"], report["hash"]);
    home.run(&["synth", &name["synth:".len()..], "both.gguf"]).good();
    let both = home.run(&[&["bench", "speculate", "both.gguf"], &args[..]].concat()).json();
    let counts = |report: &Value| {
        report["drafted"].as_array().unwrap().iter().map(|d| d["accepted"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((&both["hash"], counts(&both)), (&report["hash"], counts(&report)));
    let reply = |model: &str| {
        let args = ["run", model, "hello there", "--temperature=0", "--max-tokens=12", "--ignore-eos", "--json"];
        home.run(&args).json()["text"].clone()
    };
    assert_eq!(reply(&name), reply(&trunk));
    home.run(&["bench", "speculate", "both.gguf", "--mtp", &mtp]).bad(&["own file holds a layer that drafts"]);
    home.run(&["bench", "speculate", &format!("synth:{TRUNK}")]).bad(&["has no layer that drafts"]);
    home.run(&["bench", "speculate", &format!("synth:{TRUNK},draft_layers=2")]).bad(&["draft_layers"]);
}

#[test]
fn drafts_are_made_right_as_often_as_asked() {
    let home = Home::new();
    let trunk = trunk(&home, TRUNK);
    let mtp = draft_layer(&home, &trunk, 1, Form::Own);
    let of = |chance: &str| {
        let report = measured(&home, &trunk, &mtp, &["--drafts=3", "--right", chance]);
        (report["drafted"][0].clone(), report["hash"].clone())
    };
    let (all, hash) = of("1");
    // The first pass has no drafts: a token, and 23 in fours.
    assert_eq!((&all["passes"], &all["accepted"][2]["rate"]), (&7.into(), &1.0.into()), "{all}");
    let (none, same) = of("0");
    assert_eq!((&none["passes"], &none["accepted"][0]["right"], same), (&24.into(), &0.into(), hash.clone()), "{none}");
    let (some, same) = of("0.6");
    assert!(some["passes"].as_u64().is_some_and(|n| (8..24).contains(&n)) && same == hash, "{some}");
}

#[test]
fn tables_show_what_is_measured() {
    let home = Home::new();
    let trunk = trunk(&home, TRUNK);
    let mtp = draft_layer(&home, &trunk, 1, Form::Own);
    let args = ["bench", "speculate", &trunk, "--mtp", &mtp, "--prompt=9", "--tokens=6", "--drafts=2", "--repeat=1"];
    let table = home.run(&args).good();
    for words in
        ["without drafts: ", "tokens/pass", "right by position", "a pass of 3 rows", "low_proj", "to the last bit"]
    {
        assert!(table.contains(words), "{words} in\n{table}");
    }
    let csv = home.run(&[&args[..], &["--csv"]].concat()).good();
    assert!(csv.starts_with("drafts,stage,step_seconds,") && csv.contains("\n2,low_proj,"), "{csv}");
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_its_reason() {
    let home = Home::new();
    let model = trunk(&home, TRUNK);
    let refused = |model: &str, mtp: &str, words: &[&str]| {
        home.run(&["bench", "speculate", model, "--mtp", mtp, "--prompt=9", "--tokens=2"]).bad(words);
    };
    home.run(&["bench", "speculate", &model]).bad(&["has no layer that drafts", "--mtp"]);
    refused(&model, "nowhere.gguf", &["nowhere.gguf"]);
    refused(
        &model,
        &model,
        &["trunk.gguf cannot draft for", "it holds no layer that drafts", "name the file that does"],
    );
    let llama = fixture("llama").into_os_string().into_string().unwrap();
    let mtp = draft_layer(&home, &model, 1, Form::Own);
    refused(&llama, &mtp, &["mtp.gguf cannot draft for", "architecture `llama` take no layer", "leave it out"]);
    draft_layer(&home, &model, 1, Form::Block(5));
    refused(&model, &mtp, &["it is layer 5 of its model, and this one's would be 4"]);
    // Of a wider model.
    home.run(&["synth", &TRUNK.replace("width=64", "width=96"), "wide.gguf"]).good();
    let wide = home.path().join("wide.gguf").into_os_string().into_string().unwrap();
    draft_layer(&home, &wide, 1, Form::Own);
    refused(&model, &mtp, &["its tensor `mtp.0.", "and the model's layers have", "made for this model"]);
    assert_eq!(home.run(&["bench", "speculate", &model, "--drafts=8"]).code, Some(2));
    assert_eq!(home.run(&["bench", "speculate", &model, "--right=1.5"]).code, Some(2));
}
