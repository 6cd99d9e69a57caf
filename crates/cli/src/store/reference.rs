//! What users write for MODEL: a known name, `hf:org/repo[/file]`, `synth:…`, or a path.

use std::path::PathBuf;

use anyhow::Result;
use tessera_engine::{
    Error,
    synth::{self, Spec},
};

use super::registry::{self, Known};
use crate::ui::Failure;

/// Where a model is to come from.
#[derive(Clone, Debug)]
pub(crate) enum Reference {
    /// A row of the table of names.
    Known(&'static Known),
    /// A repository of the Hugging Face hub.
    Hub(HubReference),
    /// A model that is made where it is used.
    Synthetic(Box<Spec>),
    /// A file or folder that is there already.
    Path(PathBuf),
}

/// `hf:owner/repo[/file]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubReference {
    pub(crate) owner: String,
    pub(crate) repo: String,
    /// A path inside the repository; none: the store chooses.
    pub(crate) file: Option<String>,
}

impl Reference {
    /// Reads what a user wrote.
    pub(crate) fn parse(text: &str) -> Result<Reference> {
        if let Some(rest) = text.strip_prefix("hf:") {
            return HubReference::parse(text, rest).map(Reference::Hub);
        }
        if text.starts_with(synth::PREFIX) {
            return Ok(Reference::Synthetic(Box::new(Spec::parse(text).map_err(Error::from)?)));
        }
        if let Some(known) = registry::MODELS.iter().find(|m| m.name == text) {
            return Ok(Reference::Known(known));
        }
        if looks_like_path(text) {
            return Ok(Reference::Path(PathBuf::from(text)));
        }
        let names: Vec<_> = registry::MODELS.iter().map(|m| m.name).collect();
        let remedy = format!(
            "use {}, hf:OWNER/REPO[/FILE], or synth:ARCHITECTURE,… or the path of a GGUF file",
            names.join(", ")
        );
        Err(Failure::new(format!("there is no model named `{text}`"), remedy).into())
    }

    /// Whether `text` is meant as a model, right or wrong, so that `tessera run TEXT` does not take it as a prompt.
    pub(crate) fn is_model(text: &str) -> bool {
        let word = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
        let named = text.split_once(':').is_some_and(|(family, size)| word(family) && word(size));
        let family = registry::MODELS.iter().any(|m| m.name.split(':').next() == Some(text));
        text.starts_with("hf:") || text.starts_with(synth::PREFIX) || named || family || looks_like_path(text)
    }

    /// The name in the store, which is also how the user wrote it; none for what is not kept there.
    pub(crate) fn name(&self) -> Option<String> {
        match self {
            Reference::Known(known) => Some(known.name.to_owned()),
            Reference::Hub(hub) => Some(hub.name()),
            Reference::Synthetic(_) | Reference::Path(_) => None,
        }
    }
}

impl HubReference {
    fn parse(text: &str, rest: &str) -> Result<HubReference> {
        let mut segments = rest.splitn(3, '/').map(str::to_owned);
        let (owner, repo, file) = (segments.next(), segments.next(), segments.next());
        let sound = |s: &str| {
            let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
            !s.is_empty() && s != "." && s != ".." && s.chars().all(allowed)
        };
        match (owner, repo) {
            (Some(owner), Some(repo))
                if sound(&owner) && sound(&repo) && file.as_deref().is_none_or(|f| f.split('/').all(sound)) =>
            {
                Ok(HubReference { owner, repo, file })
            }
            _ => Err(Failure::new(
                format!("`{text}` names no repository of the hub"),
                "write hf:OWNER/REPO, or hf:OWNER/REPO/FILE.gguf",
            )
            .into()),
        }
    }

    /// As the user writes it.
    pub(crate) fn name(&self) -> String {
        let file = self.file.as_ref().map(|f| format!("/{f}")).unwrap_or_default();
        format!("hf:{}/{}{file}", self.owner, self.repo)
    }
}

fn looks_like_path(text: &str) -> bool {
    let exists = !text.is_empty() && std::path::Path::new(text).exists();
    // A prompt may hold a slash, but then it mostly holds a space as well.
    let shaped = text.ends_with(".gguf") || (text.contains(['/', '\\']) && !text.contains(char::is_whitespace));
    exists || shaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> String {
        match Reference::parse(text) {
            Ok(Reference::Known(known)) => format!("known {}", known.name),
            Ok(Reference::Hub(hub)) => format!("hub {} {} {:?}", hub.owner, hub.repo, hub.file),
            Ok(Reference::Synthetic(spec)) => format!("synthetic {}", spec.architecture()),
            Ok(Reference::Path(path)) => format!("path {}", path.display()),
            Err(error) => format!("error {error}"),
        }
    }

    #[test]
    fn references_are_told_apart() {
        let cases = [
            ("smollm2:135m", "known smollm2:135m"),
            ("hf:a/b", "hub a b None"),
            ("hf:a/b/c.gguf", "hub a b Some(\"c.gguf\")"),
            ("hf:a/b/sub/c.gguf", "hub a b Some(\"sub/c.gguf\")"),
            ("./smollm2:135m", "path ./smollm2:135m"),
            ("model.gguf", "path model.gguf"),
            ("models/mlx", "path models/mlx"),
            ("synth:qwen3,layers=2", "synthetic qwen3"),
            ("synth:llama,width=1/2", "error synthetic model: width=1/2 is no whole number from 1 to 65536"),
            ("hf:a", "error `hf:a` names no repository of the hub"),
            ("hf:a/", "error `hf:a/` names no repository of the hub"),
            ("hf:../b", "error `hf:../b` names no repository of the hub"),
            ("hf:a/b/../c", "error `hf:a/b/../c` names no repository of the hub"),
            ("hf:a/b//c", "error `hf:a/b//c` names no repository of the hub"),
            ("hf:a/b?x", "error `hf:a/b?x` names no repository of the hub"),
            ("smollm3", "error there is no model named `smollm3`"),
            ("", "error there is no model named ``"),
        ];
        for (text, expect) in cases {
            assert_eq!(kind(text), expect, "{text}");
        }
    }

    #[test]
    fn a_prompt_is_no_model() {
        for text in ["Why is the sky blue?", "and/or what?", "hello", "Note: this", "a: b", ""] {
            assert!(!Reference::is_model(text), "{text}");
        }
        for text in
            ["hf:a/b", "hf:", "synth:llama", "synth:x", "smollm2:135m", "gemma9:1b", "gemma3", "x.gguf", "a/b", "."]
        {
            assert!(Reference::is_model(text), "{text}");
        }
    }
}
