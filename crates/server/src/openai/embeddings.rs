//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tessera_engine::serving::Refused;

use super::{chat::IGNORED, completions};
use crate::{
    answer::{Totals, Whole},
    app::App,
    ask::Ask,
    body,
    catalog::Model,
    problem::{Problem, ok},
};

/// OpenAI's limit.
const TEXTS_MAX: usize = 2048;

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut fields = body::object(&app, request).await?;
    let name = fields.text("model")?;
    let model = app.catalog.find(name.as_deref())?;
    if model.engine().pooling().is_none() {
        return Err(Refused::NoEmbeddings.into());
    }
    let texts = completions::prompts(&mut fields, "input")?;
    if texts.is_empty() || texts.len() > TEXTS_MAX {
        return Err(fields.problem("input", format_args!("holds {} texts; 1 to {TEXTS_MAX} are embedded", texts.len())));
    }
    let in_base64 = fields.word("encoding_format", &["float", "base64"])? == Some("base64");
    let numbers = fields.whole("dimensions", 1..=model.engine().hidden() as u64)?.map(|n| n as usize);
    fields.ignore(&IGNORED);
    fields.finish()?;
    // A few at a time, so that one request does not fill the queue.
    let (mut texts, mut all) = (texts.into_iter().peekable(), Vec::new());
    while texts.peek().is_some() {
        let prompts = texts.by_ref().take(model.engine().options().slots).collect();
        let ask = Ask { tokens_max: Some(0), embed: true, ..Ask::new(prompts) };
        all.extend(ask.submit(&app, &model).await?.whole().await?);
    }
    Ok(ok(&told(&all, &model, in_base64, numbers)?))
}

fn told(all: &[Whole], model: &Model, in_base64: bool, numbers: Option<usize>) -> Result<Value, Problem> {
    let one = |(index, whole): (usize, &Whole)| {
        let embedding = whole.end.as_ref().and_then(|end| end.embedding.as_deref());
        let embedding = embedding.ok_or_else(|| Problem::internal("the engine gave no embedding"))?;
        let embedding = shortened(embedding, numbers);
        Ok(json!({
            "object": "embedding",
            "index": index,
            "embedding": if in_base64 { json!(base64(&embedding)) } else { json!(embedding) },
        }))
    };
    let data = all.iter().enumerate().map(one).collect::<Result<Vec<_>, Problem>>()?;
    let tokens = Totals::of(all, 1).prompt_tokens;
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(json!({ "object": "list", "model": model.name, "data": data, "usage": usage }))
}

/// The first numbers of a vector, made one of length one again: what is left means something where the model was trained for
/// it (Kusupati et al. 2022).
fn shortened(embedding: &[f32], numbers: Option<usize>) -> Vec<f32> {
    let Some(numbers) = numbers.filter(|n| *n < embedding.len()) else { return embedding.to_vec() };
    let first = &embedding[..numbers];
    let length = first.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    first.iter().map(|x| if length > 0.0 { (f64::from(*x) / length) as f32 } else { 0.0 }).collect()
}

/// Little-endian numbers, as OpenAI's clients read them.
fn base64(embedding: &[f32]) -> String {
    BASE64_STANDARD.encode(embedding.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}
