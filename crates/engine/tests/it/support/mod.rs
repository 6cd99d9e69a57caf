//! What several tests need: committed files, and the real models where they have been fetched.

pub(crate) mod chat;

use std::path::{Path, PathBuf};

/// A file under `tests/`.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// A JSON file under `tests/`.
pub(crate) fn json(name: &str) -> serde_json::Value {
    let path = path(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A real model by its file name, from `TESSERA_TEST_MODELS`, from `TESSERA_CACHE`, or from the model store in the
/// platform's cache folder. The first command of the README fetches them; without it, says so and gives none.
pub(crate) fn real_model(file: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let under_home = |dir: &str| home.as_ref().map(|h| h.join(dir));
    let named = |key: &str| std::env::var_os(key).map(PathBuf::from);
    let folders = [
        named("TESSERA_TEST_MODELS"),
        named("TESSERA_CACHE"),
        named("XDG_CACHE_HOME").map(|dir| dir.join("tessera")),
        under_home(".cache/tessera"),
        under_home("Library/Caches/tessera"),
        named("LOCALAPPDATA").map(|dir| dir.join("tessera")),
    ];
    let found = folders.into_iter().flatten().find_map(|folder| find(&folder, file, 5));
    if found.is_none() {
        eprintln!("{file} is not in the model store: its test is left out (set TESSERA_TEST_MODELS to its folder)");
    }
    found
}

fn find(folder: &Path, file: &str, depth: usize) -> Option<PathBuf> {
    let direct = folder.join(file);
    if direct.is_file() {
        return Some(direct);
    }
    let deeper = depth.checked_sub(1)?;
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).find_map(|p| find(&p, file, deeper))
}
