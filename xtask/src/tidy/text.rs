//! Rules for every text file: line ends, titles, words that do not belong, paths that must exist.

use std::path::Path;

use super::{Finding, Source};

/// Hosts that a clone must not depend on by name; package clients know their own.
const REGISTRY_HOSTS: [&str; 5] =
    ["pypi.org", "pythonhosted.org", "index.crates.io", "registry.npmjs.org", "deb.debian.org"];

const LINE_CHARS_MAX: usize = 140;

pub(super) fn check(s: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    if s.path.starts_with("xtask/src/tidy/") || s.path.ends_with(".json") || s.path.ends_with(".txt") {
        return found;
    }
    let long_lines_allowed = s.path.contains("/tests/") || s.path.ends_with(".md") || s.path.contains("/grids/");
    for (i, line) in s.text.lines().enumerate() {
        let mut say = |what: &str| found.push(format!("{}:{}: {what}", s.path, i + 1));
        if line.ends_with([' ', '\t', '\r']) && !s.path.contains("/tests/") {
            say("blanks at the end of the line; remove them");
        }
        if line.chars().count() > LINE_CHARS_MAX && !long_lines_allowed {
            say("longer than 140 characters; break it");
        }
        if REGISTRY_HOSTS.iter().any(|h| line.contains(h)) {
            say("names a package registry's host; use the package client by name");
        }
    }
    if !s.text.is_empty() && !s.text.ends_with('\n') && !s.path.contains("/tests/") {
        found.push(format!("{}: no line end at the end of the file; add one", s.path));
    }
    if s.path.ends_with(".md") {
        let titles = prose(&s.text).filter(|l| l.starts_with("# ")).count();
        if titles != 1 {
            found.push(format!("{}:1: {titles} titles; a page has one line that begins with `# `", s.path));
        }
    }
    found
}

/// Lines of a page outside of code fences.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |l| {
        fenced ^= l.starts_with("```");
        !fenced
    })
}

/// Every path that the map names in back quotes exists.
pub(super) fn paths_exist(sources: &[Source], root: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    for s in sources.iter().filter(|s| ["ARCHITECTURE.md", "CONTRIBUTING.md", "STYLE.md"].contains(&s.path.as_str())) {
        for (i, line) in s.text.lines().enumerate() {
            for word in line.split('`').skip(1).step_by(2) {
                let path = word.split(':').next().unwrap_or(word);
                let is_path = path.contains('/')
                    && !path.contains([' ', '<', '*', '{', '…', '='])
                    && ["crates/", "xtask/", "tools/", ".ci/", "docs/"].iter().any(|p| path.starts_with(p));
                if is_path && !root.join(path).exists() {
                    found.push(format!("{}:{}: names `{path}`, which is not there; mend the map", s.path, i + 1));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str, text: &str) -> Vec<Finding> {
        check(&Source { path: path.into(), text: text.into() })
    }

    #[test]
    fn lines_and_titles() {
        assert_eq!(find("a.md", "# One\n\ntext\n").len(), 0);
        assert_eq!(find("a.md", "# One\n\n# Two\n").len(), 1);
        assert_eq!(find("a.md", "# One\n\n```sh\n# a comment\n```\n").len(), 0);
        assert_eq!(find("a.rs", "text \n").len(), 1);
        assert_eq!(find("a.rs", "text").len(), 1);
        assert_eq!(find("a.py", "url = 'https://pypi.org/x'\n").len(), 1);
    }

    #[test]
    fn maps_are_true() {
        let page = |text: &str| vec![Source { path: "ARCHITECTURE.md".into(), text: text.into() }];
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(paths_exist(&page("see `xtask/src/main.rs`\n"), root).len(), 0);
        assert_eq!(paths_exist(&page("see `xtask/src/gone.rs`\n"), root).len(), 1);
    }
}
