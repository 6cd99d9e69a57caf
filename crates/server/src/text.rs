//! `POST /tokenize` and `/detokenize`: text to tokens and back.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use serde_json::{Value, json};
use tessera_engine::Special;

use crate::{
    app::App,
    body,
    openai::token_list,
    problem::{Problem, ok},
};

/// `{"model", "text", "special": false, "pieces": false}` → `{"tokens": […], "count", "pieces": […]}`. With `special`,
/// names of special tokens mean these, and what begins a text of this model is added.
pub(crate) async fn tokenize(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut fields = body::object(&app, request).await?;
    let (name, text) = (fields.text("model")?, fields.text("text")?);
    let text = fields.need("text", text)?;
    let (special, pieces) = (fields.flag("special")?.unwrap_or(false), fields.flag("pieces")?.unwrap_or(false));
    fields.finish()?;
    let model = app.catalog.find(name.as_deref())?;
    let task = tokio::task::spawn_blocking(move || {
        let tokenizer = model.tokenizer();
        let tokens = tokenizer.encode(&text, if special { Special::Parse } else { Special::Plain }, special);
        let tokens = tokens.map_err(|e| Problem::invalid(e.to_string()).about("text"))?;
        let mut object = json!({ "model": model.name, "count": tokens.len(), "tokens": tokens });
        if pieces {
            let piece = |id: &u32| json!(String::from_utf8_lossy(tokenizer.token_bytes(*id)));
            object["pieces"] = tokens.iter().map(piece).collect::<Value>();
        }
        Ok(ok(&object))
    });
    task.await.unwrap_or_else(|e| Err(Problem::internal(format!("the text could not be cut: {e}"))))
}

/// `{"model", "tokens": […]}` → `{"text"}`.
pub(crate) async fn detokenize(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut fields = body::object(&app, request).await?;
    let (name, tokens) = (fields.text("model")?, token_list(&mut fields, "tokens")?);
    let tokens = fields.need("tokens", tokens)?;
    fields.finish()?;
    let model = app.catalog.find(name.as_deref())?;
    let vocabulary = model.tokenizer().vocab_len();
    if let Some(id) = tokens.iter().find(|id| **id as usize >= vocabulary) {
        let message = format!("token {id} does not exist; the vocabulary has {vocabulary}");
        return Err(Problem::invalid(message).about("tokens"));
    }
    let text = String::from_utf8_lossy(&model.tokenizer().decode(&tokens)).into_owned();
    Ok(ok(&json!({ "model": model.name, "text": text })))
}
