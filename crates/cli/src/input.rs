//! Text that comes from the command line, a file or stdin.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::Path,
};

use anyhow::Result;

use crate::{
    store::{DEFAULT, Reference},
    ui::Failure,
};

/// More than any model's context holds; a stream without end must not fill the memory.
const BYTES_MAX: u64 = 64 << 20;

/// MODEL and TEXT from two optional arguments: a lone argument that names no model is the text.
pub(crate) fn model_and_text(model: Option<&str>, text: Option<&str>) -> (String, Option<String>) {
    match (model, text) {
        (Some(text), None) if !Reference::is_model(text) => (DEFAULT.to_owned(), Some(text.to_owned())),
        (model, text) => (model.unwrap_or(DEFAULT).to_owned(), text.map(str::to_owned)),
    }
}

/// The text given as an argument, or all of stdin where it is `-` or missing.
///
/// # Errors
/// If there is neither, or stdin cannot be read; `what` names the text.
pub(crate) fn text_or_stdin(text: Option<String>, what: &str) -> Result<Vec<u8>> {
    match text {
        Some(text) if text != "-" => return Ok(text.into_bytes()),
        None if io::stdin().is_terminal() => {
            let remedy =
                format!("give the {what} as an argument or through a pipe; `tessera chat` holds a conversation");
            return Err(Failure::new(format!("there is no {what}"), remedy).into());
        }
        _ => {}
    }
    read_all(io::stdin().lock(), "stdin")
}

/// All of a file.
///
/// # Errors
/// If it cannot be read or is too large for a text.
pub(crate) fn text_file(path: &Path) -> Result<Vec<u8>> {
    let name = path.display().to_string();
    let file =
        File::open(path).map_err(|e| Failure::new(format!("cannot open {name}"), "check the path").caused_by(e))?;
    read_all(file, &name)
}

fn read_all(reader: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = reader.take(BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::new(format!("cannot read {name}"), "check that it is open and a file").caused_by(e))?;
    if bytes.len() as u64 > BYTES_MAX {
        let message = format!("{name} holds more than {} MiB, which is no text for a model", BYTES_MAX >> 20);
        return Err(Failure::new(message, "give a part of it").into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_argument_is_a_model_or_a_text() {
        let cases = [
            ((None, None), (DEFAULT, None)),
            ((Some("gemma3:270m"), None), ("gemma3:270m", None)),
            ((Some("Why?"), None), (DEFAULT, Some("Why?"))),
            ((Some("-"), None), (DEFAULT, Some("-"))),
            ((Some("Why?"), Some("text")), ("Why?", Some("text"))),
            ((Some("m.gguf"), Some("")), ("m.gguf", Some(""))),
        ];
        for ((model, text), (expect_model, expect_text)) in cases {
            let (found_model, found_text) = model_and_text(model, text);
            assert_eq!(
                (found_model.as_str(), found_text.as_deref()),
                (expect_model, expect_text),
                "{model:?} {text:?}"
            );
        }
    }

    #[test]
    fn streams_without_end_are_refused() {
        let error = read_all(io::repeat(b'a'), "x").unwrap_err();
        assert!(error.to_string().contains("more than 64 MiB"), "{error}");
        assert_eq!(read_all(&b"abc"[..], "x").unwrap(), b"abc");
    }
}
