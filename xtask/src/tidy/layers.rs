//! One way down: which crate may depend on which, and what model files may not name.

use super::{Finding, Source};

/// What each crate may use besides the world outside. The order is the order of the house, lowest first.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("formats", &[]),
    ("ops", &["formats"]),
    ("cpu", &["formats", "ops"]),
    ("cuda", &["formats", "ops"]),
    ("engine", &["formats", "ops"]),
    ("server", &["engine"]),
    ("cli", &["formats", "ops", "cpu", "cuda", "engine", "server"]),
    ("xtask", &[]),
];

/// Words that a model file may not hold: it is written once for every device, format and width.
const FOREIGN_TO_MODELS: [&str; 7] = ["DType", "codec::", "tessera_cpu", "tessera_cuda", "avx", "cuda", "f16"];
const MODELS: &str = "crates/engine/src/models/";

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut found = Vec::new();
    for s in sources {
        if s.path.ends_with("Cargo.toml") && s.path != "Cargo.toml" && !s.path.contains("/fuzz/") {
            found.extend(manifest(s));
        }
        if s.is_rust() && s.path.starts_with(MODELS) {
            found.extend(model_file(s));
        }
    }
    found
}

fn manifest(s: &Source) -> Vec<Finding> {
    let name = s.path.trim_end_matches("/Cargo.toml").rsplit('/').next().unwrap_or("");
    let Some((_, allowed)) = MAY_USE.iter().find(|(n, _)| *n == name) else {
        return vec![format!("{}:1: crate {name} has no row in xtask/src/tidy/layers.rs; add what it may use", s.path)];
    };
    let normal = s.text.split("[dev-dependencies]").next().unwrap_or("");
    let lines = normal.lines().enumerate();
    lines
        .filter_map(|(i, line)| {
            let used = line.strip_prefix("tessera-")?.split(['.', ' ', '=']).next()?;
            (!allowed.contains(&used))
                .then(|| format!("{}:{}: {name} may not know {used} (ARCHITECTURE.md, \"Crates\")", s.path, i + 1))
        })
        .collect()
}

fn model_file(s: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (i, line) in s.text.lines().enumerate() {
        for word in FOREIGN_TO_MODELS.iter().filter(|w| line.contains(**w)) {
            found.push(format!("{}:{}: a model names no device and no format, so not `{word}`", s.path, i + 1));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_run_downward() {
        let find = |path: &str, text: &str| check(&[Source { path: path.into(), text: text.into() }]);
        let good = "[dependencies]\ntessera-formats.workspace = true\n";
        let bad = "[dependencies]\ntessera-engine.workspace = true\n";
        let test_only = "[dependencies]\n[dev-dependencies]\ntessera-cpu.workspace = true\n";
        assert_eq!(find("crates/ops/Cargo.toml", good).len(), 0);
        assert_eq!(find("crates/ops/Cargo.toml", bad).len(), 1);
        assert_eq!(find("crates/engine/Cargo.toml", test_only).len(), 0);
        assert_eq!(find("crates/unknown/Cargo.toml", good).len(), 1);
        assert_eq!(find("crates/engine/src/models/llama.rs", "//! x\nuse tessera_formats::DType;\n").len(), 1);
    }
}
