//! `POST /v1/messages` and `/v1/messages/count_tokens`.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use serde_json::json;

use super::{read, reply::Blocks};
use crate::{
    answer::Told,
    app::App,
    body,
    problem::{Problem, ok},
    sse::{self, Lines, Narrator},
};

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut fields = body::object(&app, request).await?;
    let name = fields.text("model")?;
    let model = app.catalog.find(name.as_deref())?;
    let (ask, stream) = read::request(fields)?;
    let mut answer = ask.submit(&app, &model).await?;
    let mut blocks = Blocks::new(&model);
    if stream {
        return Ok(sse::stream(&app, answer, blocks));
    }
    // The same as is streamed, told to nobody.
    while let Some((choice, told)) = answer.next().await {
        if let Told::Failed(problem) = told {
            return Err(problem);
        }
        blocks.tell(choice, told, &mut Lines::default());
    }
    Ok(ok(&blocks.message()))
}

/// Counts the tokens of a prompt.
pub(crate) async fn count(app: Arc<App>, request: Request) -> Result<Response, Problem> {
    let mut fields = body::object(&app, request).await?;
    let name = fields.text("model")?;
    let model = app.catalog.find(name.as_deref())?;
    let conversation = read::prompt(fields)?;
    let task = tokio::task::spawn_blocking(move || {
        let prepared = conversation.prompt(&model)?;
        Ok(ok(&json!({ "input_tokens": prepared.tokens.len() })))
    });
    task.await.unwrap_or_else(|e| Err(Problem::internal(format!("the tokens could not be counted: {e}"))))
}
