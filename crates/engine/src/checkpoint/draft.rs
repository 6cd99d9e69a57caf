//! A layer that drafts, from a file of its own: found there, held to the model that it is to draft for, and joined to it.
//!
//! Two forms of such files are about. One names the layer `mtp.0.`; the other names it as the block behind the model's last, `blk.N.`, with
//! what joins its inputs under `nextn`, and its own end by the names of a model's end.

use tessera_formats::{Gguf, Tensor};

use super::Checkpoint;
use crate::{Error, config::latent};

/// How tensors of a layer begin that is in a file of its own.
const OWN: &str = "mtp.0.";

/// Why a file cannot draft for a model.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum DraftError {
    #[error("both must be GGUF files; convert them")]
    Container,
    #[error("models of architecture `{architecture}` take no layer that drafts; leave it out")]
    Architecture { architecture: String },
    #[error("the model's own file holds a layer that drafts; leave this one out")]
    Twice,
    #[error(
        "it holds no layer that drafts (neither `mtp.0.e_proj.weight` nor `blk.N.nextn.eh_proj.weight`); name the file that does"
    )]
    NoLayer,
    #[error(
        "it is layer {found} of its model, and this one's would be {expected}; take the one that was made for this model"
    )]
    Place { found: String, expected: usize },
    #[error(
        "its tensor `{tensor}` has shape {found:?}, and the model's layers have {expected:?}; take the one that was made for this model"
    )]
    Shape { tensor: String, found: Vec<usize>, expected: Vec<usize> },
}

impl Checkpoint {
    /// The same model with the tensors of a layer that drafts, which a file of their own holds. What both have is the model's.
    ///
    /// # Errors
    /// If either is no GGUF file, or the layer does not fit the model.
    pub fn with_draft_layer(self, draft: &Checkpoint) -> Result<Checkpoint, Error> {
        let tensors = self.joined(draft);
        let tensors = tensors.map_err(|source| {
            let (file, model) = (draft.file.clone(), self.file.clone());
            Error::DraftLayer { file, model, source }
        })?;
        let metadata = self.metadata().into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        // What is wrong with a tensor may be wrong in either.
        let file = format!("{} with {}", self.file, draft.file);
        let gguf = Gguf::from_parts(&file, metadata, tensors)?;
        Ok(Checkpoint::from_gguf(&file, gguf))
    }

    /// The tensors of both.
    fn joined(&self, draft: &Checkpoint) -> Result<Vec<Tensor>, DraftError> {
        let (Some(own), Some(other)) = (self.gguf(), draft.gguf()) else { return Err(DraftError::Container) };
        let architecture = self.architecture().unwrap_or_default();
        if architecture != latent::ARCHITECTURE {
            return Err(DraftError::Architecture { architecture: architecture.to_owned() });
        }
        if own.tensors().iter().any(|t| is_mark(&t.name)) {
            return Err(DraftError::Twice);
        }
        let mark = other.tensors().iter().find(|t| is_mark(&t.name)).ok_or(DraftError::NoLayer)?;
        let joint = mark.name.strip_suffix("nextn.eh_proj.weight");
        let expected = layers(own);
        if let Some(layer) = joint.filter(|layer| *layer != format!("blk.{expected}.")) {
            return Err(DraftError::Place { found: layer.trim_matches(['b', 'l', 'k', '.']).to_owned(), expected });
        }
        // A layer's own end has the name of the model's in such a file.
        let renamed = |name: &str| match (joint, name.strip_prefix("output_hc_")) {
            (Some(layer), Some(part)) => format!("{layer}nextn.hc_head_{part}"),
            _ => name.to_owned(),
        };
        let block = joint.unwrap_or(OWN);
        for tensor in other.tensors() {
            check(own, tensor, block, expected)?;
        }
        let new = other.tensors().iter().map(|t| Tensor { name: renamed(&t.name), ..t.clone() });
        let mut tensors = own.tensors().to_vec();
        tensors.extend(new.filter(|t| own.tensor(&t.name).is_none()));
        Ok(tensors)
    }
}

/// Whether this is a tensor that every layer that drafts has, and nothing else.
fn is_mark(name: &str) -> bool {
    name == "mtp.0.e_proj.weight" || name.starts_with("blk.") && name.ends_with(".nextn.eh_proj.weight")
}

/// Layers of a model, by its tensors.
fn layers(model: &Gguf) -> usize {
    let layer = |name: &str| name.strip_prefix("blk.")?.split_once('.')?.0.parse::<usize>().ok();
    model.tensors().iter().filter_map(|t| layer(&t.name)).max().map_or(0, |last| last + 1)
}

/// Holds a tensor of the layer to that of the model's last layer that has one.
fn check(model: &Gguf, tensor: &Tensor, block: &str, layers: usize) -> Result<(), DraftError> {
    let Some(part) = tensor.name.strip_prefix(block) else { return Ok(()) };
    let known = (0..layers).rev().find_map(|layer| model.tensor(&format!("blk.{layer}.{part}")));
    match known.filter(|known| known.shape != tensor.shape) {
        None => Ok(()),
        Some(known) => Err(DraftError::Shape {
            tensor: tensor.name.clone(),
            found: tensor.shape.clone(),
            expected: known.shape.clone(),
        }),
    }
}
