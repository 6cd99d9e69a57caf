//! The project's own rules, held by a machine. Each finding names the file, the line and what to do instead.
//!
//! Rules look at the files git tracks or would track, as text. A rule is a function from a [`Source`] (or the whole
//! tree) to findings; its tests stand below it.

mod layers;
mod source;
mod text;

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

/// One tracked text file.
pub(crate) struct Source {
    /// Relative to the workspace, with `/`.
    pub(crate) path: String,
    /// Its content.
    pub(crate) text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Something to mend: `path:line: what, and what to do instead`.
pub(crate) type Finding = String;

/// Checks the tree below `root`.
///
/// # Errors
/// If any rule found something, or the tree cannot be read.
pub(crate) fn run(root: &Path) -> Result<()> {
    let sources = sources(root)?;
    let mut findings = Vec::new();
    for s in &sources {
        findings.extend(text::check(s));
        if s.is_rust() {
            findings.extend(source::check(s));
        }
    }
    findings.extend(layers::check(&sources));
    findings.extend(text::paths_exist(&sources, root));
    for f in &findings {
        println!("{f}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} things to mend", findings.len());
    }
    println!("tidy: {} files in order", sources.len());
    Ok(())
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let git = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let out =
        Command::new("git").args(git).current_dir(root).output().context("tidy asks git which files there are")?;
    if !out.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&out.stderr));
    }
    let mut sources = Vec::new();
    for path in String::from_utf8(out.stdout)?.lines().filter(|p| *p != "Cargo.lock") {
        // A file that is deleted but not yet committed, or that is not text, is none of tidy's business.
        if let Ok(text) = std::fs::read_to_string(root.join(path)) {
            sources.push(Source { path: path.to_string(), text });
        }
    }
    Ok(sources)
}
