//! Running the binary in a home of its own.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tessera_formats::{DType, Gguf, GgufWriter, Tensor, gguf::Value};

/// A home folder for one test, with an empty model store.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where models go.
    pub(crate) fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// Writes a file into the home.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The binary, not yet started, with stdin closed.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
        command
            .args(args)
            .current_dir(self.path())
            .env("HOME", self.path())
            .env("TESSERA_CACHE", self.store())
            .env_remove("TESSERA_TUNING")
            .env_remove("HF_TOKEN")
            .env_remove("HF_TOKEN_PATH")
            .env_remove("HF_HUB_DISABLE_IMPLICIT_TOKEN")
            .env_remove("HF_ENDPOINT")
            .env("HF_HOME", self.path().join("hf"))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// Runs it with text on stdin.
    pub(crate) fn run_with(&self, args: &[&str], input: &str) -> Ran {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that reads no stdin may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Ran::of(child.wait_with_output().unwrap())
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
        let ran = Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!ran.err.contains("panicked") && !ran.err.contains("stack backtrace"), "{ran:?}");
        ran
    }

    /// Requires success and returns stdout.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Requires exit status 1, an empty stdout, and one error on stderr that holds all of `words`.
    #[track_caller]
    pub(crate) fn bad(self, words: &[&str]) -> Ran {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.out.is_empty(), "{self:?}");
        let errors = self.err.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no `{word}` in {self:?}");
        }
        self
    }

    /// Stdout as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let out = self.good();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

/// A tiny model that other crates test with too: `llama`, `qwen2` or `qwen3`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures");
    folder.join(name).join("model.gguf").canonicalize().unwrap()
}

/// A tiny model taken apart, to be changed and written again.
pub(crate) struct Parts {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

impl Parts {
    pub(crate) fn of(name: &str) -> Parts {
        let gguf = Gguf::open(&fixture(name)).unwrap();
        let metadata = gguf.metadata().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        Parts { metadata, tensors: gguf.tensors().to_vec() }
    }

    /// Sets or replaces a metadata value.
    pub(crate) fn set(mut self, key: &str, value: impl Into<Value>) -> Parts {
        self = self.without_key(key);
        self.metadata.push((key.to_owned(), value.into()));
        self
    }

    pub(crate) fn without_key(mut self, key: &str) -> Parts {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    pub(crate) fn without_tensor(mut self, name: &str) -> Parts {
        let count = self.tensors.len();
        self.tensors.retain(|tensor| tensor.name != name);
        assert_eq!(self.tensors.len() + 1, count, "there is no tensor {name}");
        self
    }

    /// Replaces a tensor's format, shape and bytes.
    pub(crate) fn with_tensor(mut self, name: &str, format: &str, shape: &[usize], bytes: Vec<u8>) -> Parts {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of the model");
        tensor.dtype = DType::from_name(format).unwrap();
        tensor.shape = shape.to_vec();
        tensor.bytes = bytes.into();
        self
    }

    /// Writes it into the home as `FILE.gguf`.
    pub(crate) fn write(self, home: &Home, file: &str) -> String {
        let path = home.path().join(format!("{file}.gguf"));
        let mut writer = GgufWriter::new();
        for (key, value) in self.metadata {
            writer = writer.set(key, value);
        }
        for tensor in self.tensors {
            writer = writer.tensor(tensor.name, tensor.dtype, tensor.shape, tensor.bytes);
        }
        writer.write_to(&mut std::fs::File::create(&path).unwrap()).unwrap();
        path.into_os_string().into_string().unwrap()
    }
}

/// A committed file of these tests.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}
