//! The program with a card that `tools/emulate` makes of g++: a model says on it nearly what it says on the CPU, and each thing that can be
//! missing or fail is one sentence with a remedy. Every access of a kernel is watched there: a wrong one fails the run, as memory
//! that nobody lets go of does.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::{Home, Ran, fixture};

const PROMPT: &str = "The quick brown fox jumps over the lazy dog.";

/// The names under which a driver and a run-time compiler are looked for.
const LIBRARIES: [&str; 4] = ["libcuda.so", "libcuda.so.1", "libnvrtc.so", "libnvrtc.so.13"];

/// Where a toolkit's own compiler lies.
const TOOLKITS: [&str; 3] = ["/usr/local/cuda/lib64", "/usr/local/cuda-13/lib64", "/opt/cuda/lib64"];

/// Quantized weights, of a kind with minima.
const QUANTIZED: &str =
    "synth:llama,layers=2,width=256,heads=4,kv_heads=2,head_dim=64,vocabulary=300,context=256,format=Q4_K,seed=3";

fn emulate() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/emulate").canonicalize().unwrap())
}

/// The folder of the stand-ins, which are built if they are not there.
fn stand_ins() -> PathBuf {
    let out = emulate().args(["printenv", "TESSERA_NVRTC"]).output().unwrap();
    assert!(out.status.success(), "tools/emulate needs g++: {}", String::from_utf8_lossy(&out.stderr));
    PathBuf::from(String::from_utf8(out.stdout).unwrap().trim_end())
}

/// Runs the binary with a card that is as `card` says (crates/cuda/emulation/machine/settings.h).
fn on_card(home: &Home, card: &str, args: &[&str]) -> Ran {
    let plain = home.command(&[]);
    let mut command = emulate();
    command.arg(plain.get_program()).args(args).current_dir(home.path()).stdin(Stdio::null());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Ran::of(command.env("EMULATED_CARD", card).output().unwrap())
}

/// Runs the binary where the loader finds, of the libraries, those of `folder` alone.
fn with_libraries(home: &Home, folder: &Path, args: &[&str]) -> Ran {
    Ran::of(home.command(args).env("LD_LIBRARY_PATH", folder).env_remove("TESSERA_NVRTC").output().unwrap())
}

/// Where a fixture lies; a synthetic model is its own path.
fn path_of(model: &str) -> String {
    if model.starts_with("synth:") {
        return model.to_owned();
    }
    fixture(model).into_os_string().into_string().unwrap()
}

/// Greedy text with its probabilities, the clock left out.
fn said(ran: Ran) -> serde_json::Value {
    let mut object = ran.json();
    let fields = object.as_object_mut().unwrap();
    assert!(fields["tokens"].as_array().is_some_and(|t| t.len() == 6 && !t[0]["top"].is_null()), "{fields:?}");
    fields.retain(|name, _| name == "text" || name == "tokens");
    object
}

#[test]
fn a_model_says_on_the_card_nearly_what_it_says_on_the_cpu() {
    let home = Home::new();
    let flags = ["--raw", "-t", "0", "-n", "6", "--ignore-eos", "--json", "--logprobs", "3"];
    for (model, cache, chunk) in [
        ("llama", "f16", "512"),
        ("qwen2", "f32", "7"),
        ("qwen3_moe", "q8_0", "64"),
        ("gpt_oss", "f16", "5"),
        (QUANTIZED, "q8_0", "16"),
    ] {
        let path = path_of(model);
        let engine = ["run", &path, PROMPT, "--cache-format", cache, "--chunk", chunk];
        let args = [&engine[..], &flags].concat();
        let ran = on_card(&home, "", &[&args[..], &["--device", "cuda", "--numerics", "uniform"]].concat());
        assert!(!ran.err.contains("emulation: "), "{}", ran.err);
        assert_near(&said(ran), &said(home.run(&args)), model);
    }
}

/// Attention sums in another order, so probabilities are near and not the same.
fn assert_near(card: &serde_json::Value, cpu: &serde_json::Value, model: &str) {
    let chances = |said: &serde_json::Value| -> Vec<f64> {
        said["tokens"].as_array().unwrap().iter().map(|t| t["logprob"].as_f64().unwrap()).collect()
    };
    for (card, cpu) in chances(card).iter().zip(chances(cpu)) {
        assert!((card - cpu).abs() < 0.02, "{model}: {card} on the card, {cpu} on the CPU");
    }
}

/// Where no probabilities are asked for, the card finds the likeliest tokens, and the host draws from these.
#[test]
fn the_card_draws_what_the_host_draws() {
    let home = Home::new();
    let engine = ["run", QUANTIZED, PROMPT, "--raw", "-n", "6", "--ignore-eos", "--seed", "11"];
    for flags in [&["-t", "0"][..], &["-t", "1.5", "--top-k", "20"], &["-t", "1.5", "--top-k", "0"]] {
        let args = [&engine[..], flags].concat();
        let card = |more: &[&str]| on_card(&home, "", &[&args[..], &["--device", "cuda"], more].concat());
        let ran = card(&[]);
        assert!(!ran.err.contains("emulation: "), "{}", ran.err);
        // A penalty that is too small to change anything asks for all logits.
        assert_eq!(ran.good(), card(&["--frequency-penalty", "1e-30"]).good(), "{flags:?}");
    }
}

/// Sequences that are decoded together, and that come and go, have the logits that each has alone.
#[test]
fn widths_and_neighbours_change_nothing() {
    let home = Home::new();
    let decode = ["decode", "--width", "1,3", "--depth", "5", "--tokens", "3"];
    let batch = ["batch", "--batch", "3", "--sequences", "4", "--prompt", "12", "--tokens", "4", "--chunk", "5"];
    for (test, model) in [(&decode[..], "qwen3_moe"), (&decode, QUANTIZED), (&batch, "llama")] {
        let path = path_of(model);
        let args = [&["bench"], test, &["--repeat", "1", &path, "--device", "cuda"]].concat();
        on_card(&home, "capability=9.0", &args).good();
    }
}

/// Drafts of a layer of their own change no bit of what a card says, and packed rows none of theirs.
#[test]
fn drafts_are_measured_also_over_packed_rows() {
    let home = Home::new();
    let trunk = crate::speculate::trunk(&home, &crate::speculate::TRUNK.replace("layers=4", "layers=3"));
    let mtp = crate::speculate::draft_layer(&home, &trunk, 1, crate::speculate::Form::Own);
    let args = ["bench", "speculate", &trunk, "--mtp", &mtp, "--prompt=5", "--tokens=4", "--drafts=2", "--repeat=1"];
    let on = |more: &[&str]| on_card(&home, "", &[&args[..], &["--device", "cuda", "--json"], more].concat());
    let report = on(&[]).json();
    let drafted = &report["drafted"][0];
    assert_eq!(drafted["identical"], true);
    assert!(drafted["stages"].as_array().unwrap().iter().any(|s| s["stage"] == "low_proj"), "{report}");
    let packed = on(&["--cache-format", "packed"]).json();
    assert_eq!((&packed["hash"], &packed["drafted"][0]["identical"]), (&report["hash"], &true.into()));
}

/// All that a warm step sends comes before its first launch: a copy between two keeps them from being one run. Seen where the driver
/// copies it.
#[test]
fn a_warm_step_has_no_copy_in_its_middle() {
    let home = Home::new();
    let model = format!("synth:{}", crate::speculate::TRUNK);
    let args = ["run", &model, PROMPT, "--raw", "-t", "0", "-n", "5", "--ignore-eos", "--device", "cuda"];
    let ran = on_card(&home, "capability=9.0,trace=all,pinned=none", &args);
    let told = |line: &&str| ["launch ", "send ", "read "].iter().any(|word| line.starts_with(word));
    let lines: Vec<&str> = ran.err.lines().filter(told).collect();
    // A step ends where the host reads what came of it.
    let steps = lines.split(|line| line.starts_with("read ")).filter(|step| step.len() > 20);
    let warm: Vec<&[&str]> = steps.skip(2).collect();
    assert!(warm.len() >= 3, "{}", ran.err);
    for step in warm {
        let first = step.iter().position(|line| line.starts_with("launch ")).unwrap();
        let sends = step.iter().filter(|line| line.starts_with("send ")).count();
        // The step, its embeddings, angles of two kinds, and the experts of a layer.
        assert!(sends >= 5 && step[first..].iter().all(|line| line.starts_with("launch ")), "{step:#?}");
    }
}

/// Stages and kernels of a step, by the card's clock.
#[test]
fn steps_are_profiled() {
    let home = Home::new();
    let args = ["profile", QUANTIZED, "--prompt", "3", "--depth", "2", "--tokens", "2", "--repeat", "1", "--json"];
    let report = on_card(&home, "", &[&args[..], &["--device", "cuda"]].concat()).json();
    let decode = &report["phases"][1];
    let names = |list: &str, field: &str| -> Vec<String> {
        decode[list].as_array().unwrap().iter().map(|s| s[field].as_str().unwrap().to_owned()).collect()
    };
    let (stages, kernels) = (names("stages", "stage"), names("kernels", "kernel"));
    for stage in ["q/k/v", "attention", "gate/up", "head", "rest"] {
        assert!(stages.iter().any(|s| s == stage), "{stages:?}");
    }
    // One of each layer: two layers.
    assert!(kernels.iter().any(|k| k == "codes"), "{kernels:?}");
    let stores = decode["kernels"].as_array().unwrap().iter().find(|k| k["kernel"] == "store").unwrap();
    assert_eq!(stores["launches"], 2);
    // Every block of every launch was seen, and ended after its turn.
    for kernel in decode["kernels"].as_array().unwrap() {
        let time = |field: &str| kernel["blocks"][field].as_f64().unwrap();
        assert!(kernel["blocks"]["count"].as_u64().unwrap() > 0, "{kernel}");
        assert!(time("begun_seconds") < time("half_ended_seconds"), "{kernel}");
        assert!((0.0..=time("ended_seconds")).contains(&time("half_ended_seconds")), "{kernel}");
    }
}

/// Prompt rows have another arithmetic, on Hopper and before it: near the CPU's, and the same whatever the chunks.
#[test]
fn prompts_do_not_depend_on_chunks() {
    let home = Home::new();
    let flags = ["--raw", "-t", "0", "-n", "6", "--ignore-eos", "--json", "--logprobs", "3"];
    let hopper = "capability=9.0";
    for (model, card) in
        [("llama", hopper), ("qwen3_moe", hopper), (QUANTIZED, hopper), ("qwen3_moe", ""), (QUANTIZED, "")]
    {
        let path = path_of(model);
        let args = |chunk| [&["run", &path, PROMPT, "--chunk", chunk][..], &flags].concat();
        let of_card = |chunk| said(on_card(&home, card, &[&args(chunk)[..], &["--device", "cuda"]].concat()));
        let (whole, on_cpu) = (of_card("512"), said(home.run(&args("512"))));
        assert_eq!(of_card("9"), whole, "{model}");
        assert!(whole != on_cpu, "{model}: prompt rows have an arithmetic of their own");
        assert_near(&whole, &on_cpu, model);
    }
}

#[test]
fn what_fails_is_said_with_a_remedy() {
    let home = Home::new();
    let model = path_of("llama");
    let args = ["run", &model, PROMPT, "--raw", "-n", "2", "--device", "cuda", "--numerics", "uniform"];
    for (card, words) in [
        ("cards=0", ["no CUDA-capable device is detected", "nvidia-smi"]),
        ("capability=7.5", ["compute capability 7.5", "use the CPU"]),
        ("memory=1000000", ["has no room for", "use a smaller context or model"]),
        ("fail=floats", ["an illegal memory access was encountered", "start again, or use the CPU"]),
        ("fail=warps", ["an illegal memory access was encountered", "start again, or use the CPU"]),
    ] {
        let ran = on_card(&home, card, &args);
        assert!(ran.err.lines().count() <= 2, "{card}: {}", ran.err);
        ran.bad(&words);
    }
    on_card(&home, "", &["run", &model, PROMPT, "--device", "cuda:3"]).bad(&["there is no card 3, there are 1"]);
}

#[test]
fn what_is_missing_is_said_with_a_remedy() {
    let (home, stand_ins) = (Home::new(), stand_ins());
    let model = path_of("llama");
    let args = ["run", &model, PROMPT, "--raw", "-t", "0", "-n", "2", "--device", "cuda"];
    // A file that is no library hides a real one of its name.
    let folder = home.path().join("libraries");
    fs::create_dir(&folder).unwrap();
    LIBRARIES.iter().for_each(|name| fs::write(folder.join(name), "none").unwrap());
    with_libraries(&home, &folder, &args).bad(&["no NVIDIA driver was found (libcuda.so.1)", "or use the CPU"]);
    let auto = [&args[..args.len() - 1], &["auto"]].concat();
    assert!(!with_libraries(&home, &folder, &auto).good().is_empty(), "the CPU takes over");

    for name in ["libcuda.so", "libcuda.so.1"] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    fs::copy(stand_ins.join("libcuda.so.1"), folder.join("libcuda.so")).unwrap();
    let ran = with_libraries(&home, &folder, &args);
    if TOOLKITS.iter().any(|toolkit| Path::new(toolkit).join("libnvrtc.so.13").exists()) {
        // A toolkit's compiler is found by its place, and its machine code is not for this card.
        ran.bad(&["machine code of a real card"]);
    } else {
        ran.bad(&["no CUDA run-time compiler was found (libnvrtc.so.13)", "TESSERA_NVRTC"]);
    }
}
