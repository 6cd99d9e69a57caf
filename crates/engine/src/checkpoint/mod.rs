//! A model as it lies on disk, in one vocabulary: GGUF's names for tensors and metadata, whatever the container.

mod draft;
mod folder;

use std::{collections::HashMap, path::Path};

use tessera_formats::{Gguf, Tensor, gguf::Value};

use crate::{Error, Tokenizer};
pub use draft::DraftError;
use folder::Folder;

/// An opened model file, or folder of files.
pub struct Checkpoint {
    file: String,
    container: Container,
}

enum Container {
    Gguf(Gguf),
    Folder(Folder),
}

impl Checkpoint {
    /// Opens a GGUF file, or a folder with `config.json`, `tokenizer.json` and safetensors as MLX writes them.
    ///
    /// # Errors
    /// If the files cannot be read or are not sound.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let file = path.display().to_string();
        if path.is_dir() {
            return Ok(Checkpoint { file, container: Container::Folder(Folder::open(path)?) });
        }
        let gguf = Gguf::open(path)?;
        match gguf.get("split.count").and_then(Value::as_u64) {
            Some(count) if count > 1 => Err(Error::Split { file, count }),
            _ => Ok(Checkpoint { file, container: Container::Gguf(gguf) }),
        }
    }

    /// A checkpoint from a GGUF file that is already open; `file` is named in errors.
    pub fn from_gguf(file: &str, gguf: Gguf) -> Checkpoint {
        Checkpoint { file: file.to_owned(), container: Container::Gguf(gguf) }
    }

    /// The path, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.container {
            Container::Gguf(gguf) => Some(gguf),
            Container::Folder(_) => None,
        }
    }

    /// A metadata value, by GGUF's key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match &self.container {
            Container::Gguf(gguf) => gguf.get(key),
            Container::Folder(folder) => folder.metadata.get(key),
        }
    }

    /// All metadata, by GGUF's keys.
    pub fn metadata(&self) -> Vec<(&str, &Value)> {
        match &self.container {
            Container::Gguf(gguf) => gguf.metadata().collect(),
            Container::Folder(folder) => folder.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect(),
        }
    }

    /// A tensor, by GGUF's name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match &self.container {
            Container::Gguf(gguf) => gguf.tensor(name),
            Container::Folder(folder) => folder.tensor(name),
        }
    }

    /// All tensors.
    pub fn tensors(&self) -> &[Tensor] {
        match &self.container {
            Container::Gguf(gguf) => gguf.tensors(),
            Container::Folder(folder) => folder.tensors(),
        }
    }

    /// The architecture's name.
    ///
    /// # Errors
    /// If the metadata does not say.
    pub fn architecture(&self) -> Result<&str, Error> {
        let key = "general.architecture";
        let missing = || Error::MissingKey { file: self.file.clone(), key: key.to_owned() };
        self.get(key).and_then(Value::as_str).ok_or_else(missing)
    }

    /// Whether query and key rows lie as in the published weights. GGUF's converter re-orders those of the llama
    /// architecture for interleaved pairs; folders keep them.
    pub fn keeps_row_order(&self) -> bool {
        matches!(self.container, Container::Folder(_))
    }

    /// What must be added to a norm's stored weight: published Gemma weights are offsets from one, and GGUF's
    /// converter adds it.
    pub fn norm_offset(&self) -> f32 {
        match &self.container {
            Container::Folder(folder) if folder.norms_are_offsets() => 1.0,
            _ => 0.0,
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If there is none, or it is of an unknown kind or contradicts itself.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let read = match &self.container {
            Container::Gguf(gguf) => Tokenizer::from_gguf(gguf),
            Container::Folder(folder) => {
                let (tokenizer, config) = folder.tokenizer()?;
                Tokenizer::from_json(&tokenizer, config.as_deref())
            }
        };
        read.map_err(|source| Error::Tokenizer { file: self.file.clone(), source })
    }

    /// The text of the chat template, if the model has one.
    ///
    /// # Errors
    /// If a template's file cannot be read.
    pub fn chat_template(&self) -> Result<Option<String>, Error> {
        match &self.container {
            Container::Gguf(gguf) => Ok(gguf.get("tokenizer.chat_template").and_then(Value::as_str).map(str::to_owned)),
            Container::Folder(folder) => folder.chat_template(),
        }
    }
}

/// Metadata by GGUF's keys.
type Metadata = HashMap<String, Value>;
