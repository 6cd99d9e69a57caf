//! Tells the binary which commit it was built from: a measurement names it. `unknown` outside of a repository.

use std::{path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=../../crates");
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo:rerun-if-changed={log}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).map(|commit| match git(&["diff", "--name-only", "HEAD"]) {
        Some(changed) if changed.is_empty() => commit,
        _ => format!("{commit}-dirty"),
    });
    println!("cargo:rustc-env=TESSERA_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

/// What git says; none where it cannot.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
