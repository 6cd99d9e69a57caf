//! Rules for Rust sources: first lines, sizes, leftovers, unsafe code.

use super::{Finding, Source};

/// A file longer than this wants to be two.
const FILE_LINES_MAX: usize = 500;
/// A function longer than this wants to be two.
const FUNCTION_LINES_MAX: usize = 70;
/// Kernel bodies are one loop nest and may be longer.
const KERNEL_LINES_MAX: usize = 150;

/// Where `unsafe` may stand; every block there carries its proof (clippy holds that).
const UNSAFE_ALLOWED: [&str; 3] = ["crates/cpu/", "crates/cuda/", "crates/formats/src/mmap.rs"];
/// Generated tables: facts, not prose.
const TABLES: &str = "crates/formats/src/codec/grids/";

pub(super) fn check(s: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    if !s.text.starts_with("//! ") {
        found.push(format!("{}:1: begin the file with a `//!` line that says what it is", s.path));
    }
    if !s.path.starts_with(TABLES) {
        let lines = s.text.lines().count();
        if lines > FILE_LINES_MAX {
            found.push(format!("{}:{FILE_LINES_MAX}: {lines} lines; split it, one subject a file", s.path));
        }
        found.extend(long_functions(s));
    }
    found.extend(leftovers(s));
    found.extend(unsafe_code(s));
    found
}

/// Functions by indentation: rustfmt closes a function in the column where it began.
fn long_functions(s: &Source) -> Vec<Finding> {
    let max = if s.path.starts_with("crates/cpu/src/") { KERNEL_LINES_MAX } else { FUNCTION_LINES_MAX };
    let mut found = Vec::new();
    let lines: Vec<&str> = s.text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        if !begins_function(line) {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let Some(length) = lines[i..].iter().position(|l| **l == close) else { continue };
        if length > max {
            found.push(format!("{}:{}: a function of {length} lines; cut it into steps with names", s.path, i + 1));
        }
    }
    found
}

fn begins_function(line: &str) -> bool {
    let mut words = line.trim_start().split(' ').skip_while(|w| {
        w.starts_with("pub") || matches!(*w, "const" | "unsafe" | "async" | "extern" | "\"C\"" | "\"system\"")
    });
    words.next() == Some("fn") && !line.trim_end().ends_with(';')
}

fn leftovers(s: &Source) -> Vec<Finding> {
    if s.path.starts_with("xtask/") {
        return Vec::new();
    }
    let banned = [
        ("todo!(", "write it"),
        ("unimplemented!(", "write it, or return a typed error"),
        ("FIXME", "mend it, or open an issue and say so in a sentence"),
        ("XXX", "say what is meant"),
        ("dbg!(", "remove it"),
        ("#[ignore", "a test that does not run guards nothing; put a longer sweep behind TESSERA_SWEEP"),
    ];
    numbered(s, |line| banned.iter().find(|(b, _)| line.contains(b)).map(|(b, cure)| format!("`{b}`: {cure}")))
}

fn unsafe_code(s: &Source) -> Vec<Finding> {
    if UNSAFE_ALLOWED.iter().any(|p| s.path.starts_with(p)) || s.path.starts_with("xtask/") {
        return Vec::new();
    }
    let mut found = numbered(s, |line| {
        let code = line.split("//").next().unwrap_or("");
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        (words.into_iter().any(|w| w == "unsafe"))
            .then(|| "unsafe code belongs in a kernel crate; offer a safe function there".to_string())
    });
    let crate_root = s.path.ends_with("src/lib.rs") || s.path.ends_with("src/main.rs");
    if crate_root && !s.text.contains("(unsafe_code)]") {
        found.push(format!("{}:1: add #![forbid(unsafe_code)]", s.path));
    }
    found
}

fn numbered(s: &Source, rule: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let lines = s.text.lines().enumerate();
    lines.filter_map(|(i, line)| rule(line).map(|f| format!("{}:{}: {f}", s.path, i + 1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str, text: &str) -> Vec<Finding> {
        check(&Source { path: path.into(), text: text.into() })
    }

    #[test]
    fn first_line() {
        assert_eq!(find("crates/ops/src/a.rs", "//! What.\n").len(), 0);
        assert_eq!(find("crates/ops/src/a.rs", "use std;\n").len(), 1);
    }

    #[test]
    fn sizes() {
        let body = "    x();\n".repeat(71);
        let long = format!("//! What.\npub(crate) const fn f() {{\n{body}}}\n");
        assert!(find("crates/ops/src/a.rs", &long)[0].contains("a.rs:2: a function of 72 lines"));
        assert_eq!(find("crates/cpu/src/a.rs", &long).len(), 0);
        let file = format!("//! What.\n{}", "\n".repeat(500));
        assert_eq!(find("crates/ops/src/a.rs", &file).len(), 1);
    }

    #[test]
    fn leftovers_and_unsafe() {
        assert_eq!(find("crates/ops/src/a.rs", "//! What.\nfn f() { todo!() }\n").len(), 1);
        assert_eq!(find("crates/ops/src/a.rs", "//! What.\nunsafe { f() }\n").len(), 1);
        assert_eq!(find("crates/ops/src/a.rs", "//! What.\n// unsafe is elsewhere\n").len(), 0);
        assert_eq!(find("crates/cpu/src/a.rs", "//! What.\nunsafe { f() }\n").len(), 0);
        assert_eq!(find("crates/ops/src/lib.rs", "//! What.\n").len(), 1);
    }
}
