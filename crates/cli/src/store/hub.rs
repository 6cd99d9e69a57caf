//! Fetching from the Hugging Face hub, through `hf-hub`.
//!
//! The crate's own downloads begin anew when they are interrupted, so files are asked for in ranges and appended to
//! what is there. A file's name while it grows holds its content's id, so that ranges of two versions never meet.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Component, Path},
};

use anyhow::Result;
use hf_hub::{HFClient, HFError, HFRepositorySync, RepoTypeModel, repository::RepoTreeEntry};
use indicatif::ProgressBar;

use super::{
    Manifest, StoredFile,
    digest::{self, Sum, disk_failure},
    reference::HubReference,
};
use crate::ui::{self, Failure};

/// Bytes asked for at a time: what an interruption can lose.
const RANGE: u64 = 16 << 20;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RemoteFile {
    path: String,
    bytes: u64,
    /// The content's id in git: changes with the content.
    oid: String,
    /// Known for large files.
    sha256: Option<String>,
}

/// Fetches what a reference stands for into `folder`.
///
/// # Errors
/// Where the hub refuses, has no fitting file, or the network or the disk fail.
pub(super) fn fetch(reference: &HubReference, name: &str, folder: &Path) -> Result<Manifest> {
    let failed = |error: HFError| explain(name, error);
    let client = HFClient::builder().cache_enabled(false).build_sync().map_err(failed)?;
    let repository = client.model(&reference.owner, &reference.repo);
    // One commit for all files: the repository may change meanwhile.
    let commit = repository.info().send().map_err(failed)?.sha;
    let entries = repository.list_tree().maybe_revision(commit.clone()).recursive(true).send().map_err(failed)?;
    let files: Vec<_> = entries.into_iter().filter_map(remote_file).collect();
    let (wanted, main) = choose(name, &files, reference.file.as_deref())?;
    let total = wanted.iter().map(|file| file.bytes).sum();
    ui::note(&format!("pulling {name} ({})", ui::size(total)));
    let bar = ui::bytes_bar(&reference.repo, total);
    let mut stored = Vec::new();
    for file in wanted {
        let source = Source { name, repository: &repository, commit: commit.as_deref() };
        stored.push(source.fetch_file(file, folder, &bar)?);
    }
    bar.finish_and_clear();
    Ok(Manifest { name: name.to_owned(), main, files: stored })
}

fn remote_file(entry: RepoTreeEntry) -> Option<RemoteFile> {
    match entry {
        // A path that would leave the model's folder is nothing to fetch.
        RepoTreeEntry::File { oid, size, path, lfs, .. }
            if Path::new(&path).components().all(|c| matches!(c, Component::Normal(_))) =>
        {
            Some(RemoteFile { path, bytes: size, sha256: lfs.and_then(|lfs| lfs.sha256), oid })
        }
        _ => None,
    }
}

/// The files to fetch, and the one to open (none: the folder).
fn choose<'a>(
    name: &str,
    files: &'a [RemoteFile],
    file: Option<&str>,
) -> Result<(Vec<&'a RemoteFile>, Option<String>)> {
    let one = |file: &'a RemoteFile| (vec![file], Some(file.path.clone()));
    // Projectors for images are GGUF files too, and a file in pieces cannot be opened by its first piece.
    let is_model = |file: &&RemoteFile| {
        let path = file.path.to_ascii_lowercase();
        path.ends_with(".gguf") && !path.contains("mmproj") && !path.contains("-of-0")
    };
    let models: Vec<_> = files.iter().filter(is_model).collect();
    let list = |of: &[&RemoteFile]| of.iter().map(|f| f.path.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(wanted) = file {
        return files.iter().find(|f| f.path == wanted).map(one).ok_or_else(|| {
            let remedy = match models.is_empty() {
                true => "it has no GGUF file at all: choose another repository".to_owned(),
                false => format!("its GGUF files are: {}", list(&models)),
            };
            Failure::new(format!("{name}: the repository has no such file"), remedy).into()
        });
    }
    let preferred: Vec<_> = models.iter().filter(|f| f.path.to_ascii_uppercase().contains("Q4_K_M")).collect();
    match (models.as_slice(), preferred.as_slice()) {
        ([only], _) => return Ok(one(only)),
        (_, [preferred]) => return Ok(one(preferred)),
        ([], _) => {}
        _ => {
            let remedy = format!("write {name}/FILE with one of: {}", list(&models));
            return Err(Failure::new(format!("{name}: the repository has several GGUF files"), remedy).into());
        }
    }
    let is_checkpoint = |file: &&RemoteFile| {
        let top = !file.path.contains('/');
        top && [".json", ".safetensors", ".jinja"].iter().any(|end| file.path.ends_with(end))
    };
    let has = |end: &str| files.iter().any(|f| !f.path.contains('/') && f.path.ends_with(end));
    if has("config.json") && has("tokenizer.json") && has(".safetensors") {
        return Ok((files.iter().filter(is_checkpoint).collect(), None));
    }
    let remedy = "choose a repository with a GGUF file, or with an MLX checkpoint (config.json, tokenizer.json and \
                  *.safetensors)";
    Err(Failure::new(format!("{name}: the repository holds no model that can be read"), remedy).into())
}

/// One commit of a repository.
struct Source<'a> {
    name: &'a str,
    repository: &'a HFRepositorySync<RepoTypeModel>,
    commit: Option<&'a str>,
}

impl Source<'_> {
    /// Fetches one file, or what is missing of it, and checks it.
    fn fetch_file(&self, file: &RemoteFile, folder: &Path, bar: &ProgressBar) -> Result<StoredFile> {
        let path = folder.join(&file.path);
        let id: String = file.oid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        let growing = folder.join(format!("{}.{id}.part", file.path));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| disk_failure(parent, e))?;
        }
        // A file under its own name was checked by an earlier run; it may be of an earlier commit all the same.
        if let Ok(sum) = digest::of_file(&path, |_| {})
            && sum.bytes() == file.bytes
            && file.sha256.as_ref() == Some(&sum.hex())
        {
            bar.inc(file.bytes);
            return Ok(StoredFile { path: file.path.clone(), bytes: file.bytes, sha256: sum.hex() });
        }
        let sum = self.append_ranges(file, &growing, bar)?;
        let wrong = sum.bytes() != file.bytes || file.sha256.as_ref().is_some_and(|expected| *expected != sum.hex());
        if wrong {
            let _ = fs::remove_file(&growing);
            let expected = file.sha256.as_deref().unwrap_or("unknown");
            let message = format!(
                "{}: {} is not what it should be: its SHA-256 is {} ({} bytes), expected {expected} ({} bytes)",
                self.name,
                file.path,
                sum.hex(),
                sum.bytes(),
                file.bytes
            );
            return Err(Failure::new(message, "what was fetched is deleted: run the command again").into());
        }
        fs::rename(&growing, &path).map_err(|e| disk_failure(&path, e))?;
        Ok(StoredFile { path: file.path.clone(), bytes: file.bytes, sha256: sum.hex() })
    }

    /// Appends range after range to `growing` until the file has its size.
    fn append_ranges(&self, file: &RemoteFile, growing: &Path, bar: &ProgressBar) -> Result<Sum> {
        let disk = |error| disk_failure(growing, error);
        let mut sum = match File::open(growing) {
            Ok(_) => digest::of_file(growing, |n| bar.inc(n)).map_err(disk)?,
            Err(_) => Sum::default(),
        };
        let mut out = OpenOptions::new().create(true).append(true).open(growing).map_err(disk)?;
        while sum.bytes() < file.bytes {
            let start = sum.bytes();
            let end = (start + RANGE).min(file.bytes);
            let request = self.repository.download_file_to_bytes().filename(&file.path);
            let request = request.maybe_revision(self.commit).range(start..end);
            let bytes = request.send().map_err(|e| explain(self.name, e))?;
            // A server that ignores ranges answers with the whole file.
            if bytes.len() as u64 != end - start {
                let message =
                    format!("{}: asked for {} bytes of {}, got {}", self.name, end - start, file.path, bytes.len());
                return Err(Failure::new(message, "run the command again; what was fetched is kept").into());
            }
            out.write_all(&bytes).map_err(disk)?;
            sum.update(&bytes);
            bar.inc(bytes.len() as u64);
        }
        out.sync_all().map_err(disk)?;
        Ok(sum)
    }
}

/// Turns the hub's refusal into what its user may do.
fn explain(name: &str, error: HFError) -> Failure {
    let remedy = match &error {
        HFError::RepoNotFound { .. } => {
            "check the spelling; if the repository is private, set HF_TOKEN to an access token"
        }
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => {
            "accept the model's licence on its page, and set HF_TOKEN to an access token"
        }
        HFError::RateLimited { .. } => "wait a while and run the command again; what was fetched is kept",
        HFError::EntryNotFound { .. } | HFError::RevisionNotFound { .. } => "check the spelling",
        _ => "check the network and run the command again; what was fetched is kept",
    };
    Failure::new(format!("cannot fetch {name}"), remedy).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<RemoteFile> {
        let file = |path: &&str| RemoteFile { path: path.to_string(), bytes: 1, oid: String::new(), sha256: None };
        paths.iter().map(file).collect()
    }

    fn chosen(paths: &[&str], file: Option<&str>) -> String {
        match choose("hf:a/b", &files(paths), file) {
            Ok((files, main)) => {
                let paths: Vec<_> = files.iter().map(|f| f.path.as_str()).collect();
                format!("{} main {main:?}", paths.join(" "))
            }
            Err(error) => format!("{:?}", error.downcast_ref::<Failure>()),
        }
    }

    #[test]
    fn the_file_is_chosen_or_asked_for() {
        let cases: &[(&[&str], Option<&str>, &str)] = &[
            (&["a.gguf", "README.md"], None, "a.gguf main Some(\"a.gguf\")"),
            (&["a-Q8_0.gguf", "a-q4_k_m.gguf"], None, "a-q4_k_m.gguf main"),
            (&["a-Q4_K_M.gguf", "mmproj-a.gguf"], None, "a-Q4_K_M.gguf main"),
            (&["a-Q8_0.gguf", "a-Q4_0.gguf"], None, "one of: a-Q8_0.gguf, a-Q4_0.gguf"),
            (&["a-Q8_0.gguf", "a-Q4_0.gguf"], Some("a-Q4_0.gguf"), "a-Q4_0.gguf main"),
            (&["a-Q8_0.gguf"], Some("b.gguf"), "its GGUF files are: a-Q8_0.gguf"),
            (&["README.md"], Some("b.gguf"), "no GGUF file at all"),
            (&["README.md"], None, "no model that can be read"),
            (&["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], None, "no model that can be read"),
            (
                &["config.json", "tokenizer.json", "model.safetensors", "README.md", "onnx/model.json"],
                None,
                "config.json tokenizer.json model.safetensors main None",
            ),
            (&["config.json", "model.safetensors"], None, "no model that can be read"),
        ];
        for (paths, file, expect) in cases {
            let found = chosen(paths, *file);
            assert!(found.contains(expect), "{paths:?} {file:?}: {found}");
        }
    }
}
