//! `cargo xtask`: the checks that keep the house in order.

#![forbid(unsafe_code)]

mod tidy;

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

const HELP: &str = "usage: cargo xtask <command>

  check    all that CI runs: formatting, clippy, tidy, tests, the audit
  tidy     the project's own rules (STYLE.md, \"What tidy holds\")
";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy::run(root),
        Some("check") => {
            cargo(root, &["fmt", "--all", "--check"])?;
            cargo(root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
            tidy::run(root)?;
            cargo(root, &["test", "--workspace"])?;
            cargo(root, &["run", "--quiet", "--package", "tessera", "--features", "tessera-cpu/audit", "--", "audit"])
        }
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        _ => bail!("{HELP}"),
    }
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    eprintln!("cargo {}", arguments.join(" "));
    if !Command::new(env!("CARGO")).args(arguments).current_dir(root).status()?.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}
