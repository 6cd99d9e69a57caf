//! What to fetch of a repository of the Hugging Face hub: the choice among its files.

use std::path::{Component, Path};

use anyhow::Result;

use super::{
    MANIFEST, Manifest,
    client::{Client, ListedFile, is_id},
    download::{Source, Wanted},
    reference::HubReference,
    trouble::Trouble,
};
use crate::ui::{self, Failure};

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RemoteFile {
    path: String,
    bytes: Option<u64>,
    /// Changes with the content.
    id: Option<String>,
    /// Known for large files.
    sha256: Option<String>,
}

/// Fetches what a reference stands for into `folder`.
///
/// # Errors
/// Where the hub refuses, has no fitting file, or the network or the disk fail.
pub(super) fn fetch(reference: &HubReference, name: &str, folder: &Path) -> Result<Manifest> {
    let failed = |trouble: Trouble| trouble.explain(name);
    let client = Client::new(reference, folder).map_err(failed)?;
    let listing = client.listing().map_err(failed)?;
    // One commit for all files: the repository may change meanwhile.
    let commit = listing.commit.as_str();
    let files: Vec<_> = listing.files.into_iter().filter_map(remote_file).collect();
    let (chosen, main) = choose(name, &files, reference.file.as_deref())?;
    let mut wanted = Vec::new();
    for file in chosen {
        let bytes = file.bytes.map_or_else(|| client.size(commit, &file.path), Ok).map_err(failed)?;
        // Without an id of its own, a file is no longer the same at the next commit.
        let id = file.id.as_deref().unwrap_or(commit);
        wanted.push(Wanted { path: &file.path, bytes, id, sha256: file.sha256.as_deref() });
    }
    let total = wanted.iter().fold(0u64, |sum, file| sum.saturating_add(file.bytes));
    ui::note(&format!("pulling {name} ({})", ui::size(total)));
    let bar = ui::bytes_bar(&reference.repo, total);
    let source = Source { name, client: &client, commit };
    let stored = wanted.iter().map(|file| source.fetch_file(file, folder, &bar)).collect::<Result<_>>()?;
    bar.finish_and_clear();
    Ok(Manifest { name: name.to_owned(), main, files: stored })
}

fn remote_file(file: ListedFile) -> Option<RemoteFile> {
    let ListedFile { rfilename: path, size: bytes, blob_id, lfs } = file;
    // A path that would leave the model's folder is nothing to fetch.
    let inside = Path::new(&path).components().all(|part| matches!(part, Component::Normal(_)));
    let sha256 = lfs.and_then(|lfs| lfs.sha256).map(|sum| sum.to_ascii_lowercase());
    let id = [blob_id, sha256.clone()].into_iter().flatten().find(|id| is_id(id));
    inside.then_some(RemoteFile { path, bytes, id, sha256 })
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
        // The store's own record would overwrite a file of its name.
        top && file.path != MANIFEST && [".json", ".safetensors", ".jinja"].iter().any(|end| file.path.ends_with(end))
    };
    let has = |end: &str| files.iter().any(|f| !f.path.contains('/') && f.path.ends_with(end));
    if has("config.json") && has("tokenizer.json") && has(".safetensors") {
        return Ok((files.iter().filter(is_checkpoint).collect(), None));
    }
    let remedy = "choose a repository with a GGUF file, or with an MLX checkpoint (config.json, tokenizer.json and \
                  *.safetensors)";
    Err(Failure::new(format!("{name}: the repository holds no model that can be read"), remedy).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<RemoteFile> {
        let file = |path: &&str| RemoteFile { path: path.to_string(), bytes: Some(1), id: None, sha256: None };
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
                &["config.json", "tokenizer.json", "model.safetensors", "README.md", "onnx/x.json", "model.json"],
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
