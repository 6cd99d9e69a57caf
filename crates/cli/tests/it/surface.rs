//! Help, usage errors, completions, and closed outputs.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use crate::support::{Home, Ran, fixture};

const COMMANDS: &[&str] =
    &["serve", "pull", "list", "rm", "inspect", "kernels", "tune", "synth", "audit", "bench", "profile", "completions"];

#[test]
fn every_command_has_help() {
    let home = Home::new();
    let help = home.run(&["--help"]).good();
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command}")), "{command} in {help}");
        let own = home.run(&[command, "--help"]).good();
        assert!(own.contains("Usage: tessera"), "{own}");
    }
    assert!(home.run(&["--version"]).good().starts_with("tessera "));
}

#[test]
fn usage_errors_have_their_own_status() {
    let home = Home::new();
    for args in [&["nonsense"][..], &["rm"], &["inspect"], &["list", "--nonsense"], &["completions", "nonsense"]] {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(ran.err.contains("error: ") && ran.out.is_empty(), "{args:?}: {ran:?}");
    }
    assert_eq!(home.run(&[]).code, Some(2));
}

#[test]
fn completions_know_the_commands() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.run(&["completions", shell]).good();
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}");
    }
}

/// As under `| head`: the reader leaves after the first line.
#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let home = Home::new();
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    for args in [&["inspect", model, "--json"][..], &["inspect", model, "--tensors"], &["completions", "bash"]] {
        let mut command = home.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert!(ran.code == Some(0) && ran.err.is_empty(), "{args:?}: {ran:?}");
    }
}

/// With stdout or all three streams closed before the start, commands end without a panic.
#[cfg(unix)]
#[test]
fn closed_streams_are_survived() {
    let home = Home::new();
    let binary = env!("CARGO_BIN_EXE_tessera");
    for streams in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        for args in ["list --json", "list", "inspect none.gguf", "--help"] {
            let mut shell = std::process::Command::new("/bin/sh");
            let output = shell
                .args(["-c", &format!("exec '{binary}' {args} {streams}")])
                .env("TESSERA_CACHE", home.store())
                .output()
                .unwrap();
            let ran = Ran::of(output);
            assert!(matches!(ran.code, Some(0 | 1)), "{args} {streams}: {ran:?}");
        }
    }
}

#[test]
fn colours_stay_off_where_nobody_sees_them() {
    let home = Home::new();
    let ran = home.run(&["inspect", "none.gguf"]).bad(&["there is no file none.gguf", "help:"]);
    assert!(!ran.err.contains('\x1b'), "{ran:?}");
    assert!(!home.run(&["inspect", fixture("qwen3").to_str().unwrap()]).good().contains('\x1b'));
}
