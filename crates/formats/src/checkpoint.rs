//! Checkpoints in Hugging Face's layout: a directory with `config.json`, `tokenizer.json` and one or several
//! safetensors files, plain or with MLX's quantized groups (see [`crate::mlx`]).

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{Bytes, FormatError, Tensor, error::TensorFault, mlx, mmap, safetensors};

/// Far more than any configuration or index has.
const MAX_JSON: usize = 64 << 20;

const INDEX: &str = "model.safetensors.index.json";

/// An opened and checked checkpoint. Tensors keep their names; their shapes are in ggml's order, row length first.
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    tensors: Vec<Tensor>,
    names: HashMap<String, usize>,
}

impl Checkpoint {
    /// Reads `config.json` and maps all of `model*.safetensors`. Plain tensors stay in the mapped files; quantized
    /// ones are assembled in memory.
    ///
    /// # Errors
    /// If a file is missing or damaged, or if a tensor's parts do not fit each other or the configuration.
    pub fn open(dir: &Path) -> Result<Checkpoint, FormatError> {
        let config_path = dir.join("config.json");
        let config = read_json(&config_path)?;
        let quantization = mlx::Quantization::from_config(&config_path.display().to_string(), &config)?;
        let mut stored = Vec::new();
        let mut seen = HashMap::new();
        for path in weight_files(dir)? {
            let file = path.display().to_string();
            for tensor in safetensors::open(&path)? {
                if seen.insert(tensor.name.clone(), ()).is_some() {
                    return Err(FormatError::Tensor { file, tensor: tensor.name, fault: TensorFault::Duplicate });
                }
                stored.push((file.clone(), tensor));
            }
        }
        check_index(dir, &seen)?;
        let tensors = mlx::assemble(stored, &quantization)?;
        let names = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Checkpoint { dir: dir.to_owned(), config, tensors, names })
    }

    /// The contents of `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Another file of the directory, such as `tokenizer.json`.
    ///
    /// # Errors
    /// If there is none or it cannot be read.
    pub fn file(&self, name: &str) -> Result<Bytes, FormatError> {
        mmap::map(&self.dir.join(name))
    }

    /// Whether the directory has this file.
    pub fn has_file(&self, name: &str) -> bool {
        self.dir.join(name).is_file()
    }

    /// All tensors, in the order of the files.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// One tensor, by its whole name (`model.norm.weight`).
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.names.get(name).map(|&i| &self.tensors[i])
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.dir.display(), self.tensors.len())
    }
}

fn wrong(path: &Path, problem: String) -> FormatError {
    FormatError::Checkpoint { file: path.display().to_string(), problem }
}

fn read_json(path: &Path) -> Result<Value, FormatError> {
    let bytes = mmap::map(path)?;
    if bytes.len() > MAX_JSON {
        return Err(wrong(path, format!("{} bytes are too many for this file; download it again", bytes.len())));
    }
    serde_json::from_slice(&bytes).map_err(|e| wrong(path, format!("not valid JSON: {e}; download it again")))
}

/// The index's table from tensor names to file names, where there is an index.
fn read_index(dir: &Path) -> Result<Option<serde_json::Map<String, Value>>, FormatError> {
    let path = dir.join(INDEX);
    if !path.exists() {
        return Ok(None);
    }
    match read_json(&path)?.get_mut("weight_map").map(Value::take) {
        Some(Value::Object(map)) => Ok(Some(map)),
        _ => Err(wrong(&path, "has no table `weight_map`; download it again".to_owned())),
    }
}

/// The files that the index names, or else all of `model*.safetensors`, sorted.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let mut files = BTreeSet::new();
    if let Some(map) = read_index(dir)? {
        for (tensor, file) in &map {
            // A name with a slash could lead anywhere on the disk.
            match file.as_str() {
                Some(name) if is_weight_file(name) => files.insert(dir.join(name)),
                _ => {
                    return Err(wrong(
                        &dir.join(INDEX),
                        format!(
                            "tensor `{tensor}` is said to be in {file}, which is no `*.safetensors` beside it; download it again"
                        ),
                    ));
                }
            };
        }
        if let Some(absent) = files.iter().find(|f| !f.is_file()) {
            return Err(wrong(absent, format!("missing, and {INDEX} names it; download it again")));
        }
    } else {
        let failed = |source| FormatError::Io { file: dir.display().to_string(), source };
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.starts_with("model") && is_weight_file(name) {
                files.insert(path);
            }
        }
    }
    if files.is_empty() {
        return Err(wrong(dir, "has no model*.safetensors; is this the model's directory?".to_owned()));
    }
    Ok(files.into_iter().collect())
}

fn is_weight_file(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains(['/', '\\'])
}

/// Every tensor that the index names must be in some file.
fn check_index(dir: &Path, seen: &HashMap<String, ()>) -> Result<(), FormatError> {
    for (tensor, file) in read_index(dir)?.into_iter().flatten() {
        if !seen.contains_key(&tensor) {
            let file = dir.join(file.as_str().unwrap_or_default()).display().to_string();
            let fault = TensorFault::Other(format!("{INDEX} says it is here, and it is not; download the file again"));
            return Err(FormatError::Tensor { file, tensor, fault });
        }
    }
    Ok(())
}
