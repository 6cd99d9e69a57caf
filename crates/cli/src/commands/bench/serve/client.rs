//! One request after another over loopback, and when each piece of its reply came.

use std::{
    io::{BufRead, BufReader},
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};
use ureq::{Agent, http::StatusCode};

use crate::ui::Failure;

/// Nothing takes longer: a server that hangs must not hang its measurement.
const PATIENCE: Duration = Duration::from_secs(300);

/// A client of one server.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    url: String,
    authorization: Option<String>,
}

/// A completion to ask for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) body: Value,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// With a whole reply.
    Whole { text: String, tokens: usize },
    /// It was cut off by us.
    Cut,
    /// The server said that it takes no more now: 429 or 503.
    Refused(u16),
    /// It broke.
    Failed(String),
}

/// What came of a request.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) began: Instant,
    /// When pieces of text came.
    pub(super) pieces: Vec<Instant>,
    pub(super) ended: Instant,
    pub(super) ending: Ending,
}

impl Outcome {
    /// The text of a whole reply.
    pub(super) fn text(&self) -> Result<&str, String> {
        match &self.ending {
            Ending::Whole { text, .. } => Ok(text),
            Ending::Cut => Err("it was cut off".to_owned()),
            Ending::Refused(status) => Err(format!("it was refused with status {status}")),
            Ending::Failed(problem) => Err(problem.clone()),
        }
    }
}

impl Client {
    pub(super) fn new(url: &str, key: Option<&str>) -> Client {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        let authorization = key.map(|key| format!("Bearer {key}"));
        Client { agent: config.build().into(), url: url.trim_end_matches('/').to_owned(), authorization }
    }

    /// A client with connections of its own.
    pub(super) fn apart(&self) -> Client {
        let key = self.authorization.as_deref().and_then(|a| a.strip_prefix("Bearer "));
        Client::new(&self.url, key)
    }

    /// The JSON at a path.
    ///
    /// # Errors
    /// If the server does not answer, or with something else.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let failed = |problem: String| {
            let message = format!("GET {}{path}: {problem}", self.url);
            Failure::new(message, "is a Tessera server listening there, and is --key right?")
        };
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.call().map_err(|e| failed(e.to_string()))?;
        if response.status() != StatusCode::OK {
            return Err(failed(format!("status {}", response.status())).into());
        }
        let text = response.body_mut().read_to_string().map_err(|e| failed(e.to_string()))?;
        serde_json::from_str(&text).map_err(|e| failed(e.to_string()).into())
    }

    /// The name of the first model that the server lists.
    ///
    /// # Errors
    /// As [`Client::get`], and if it has none.
    pub(super) fn model(&self) -> Result<String> {
        let models = self.get("/v1/models")?;
        let name = models["data"][0]["id"].as_str().map(str::to_owned);
        name.ok_or_else(|| Failure::new("the server has no model loaded", "load one").into())
    }

    /// Asks for a completion and reads it as it streams; hangs up after `cut_after` pieces, if that is given.
    pub(super) fn complete(&self, request: &Request, cut_after: Option<usize>) -> Outcome {
        let began = Instant::now();
        let mut pieces = Vec::new();
        let ending = self.stream(request, cut_after, &mut pieces).unwrap_or_else(Ending::Failed);
        Outcome { began, pieces, ended: Instant::now(), ending }
    }

    fn stream(&self, request: &Request, cut: Option<usize>, pieces: &mut Vec<Instant>) -> Result<Ending, String> {
        let mut post =
            self.agent.post(format!("{}/v1/completions", self.url)).header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            post = post.header("Authorization", authorization);
        }
        let mut response = post.send(request.body.to_string()).map_err(|e| e.to_string())?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return Ok(Ending::Refused(response.status().as_u16()));
            }
            status => {
                let told = response.body_mut().read_to_string().unwrap_or_default();
                return Err(format!("status {status}: {}", told.chars().take(300).collect::<String>()));
            }
        }
        let (mut text, mut tokens, mut done) = (String::new(), 0, false);
        for line in BufReader::new(response.body_mut().as_reader()).lines() {
            let line = line.map_err(|e| e.to_string())?;
            let Some(data) = line.strip_prefix("data:").map(str::trim_start) else { continue };
            if data == "[DONE]" {
                done = true;
                break;
            }
            let chunk: Value = serde_json::from_str(data).map_err(|e| format!("an event is no JSON: {e}"))?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                return Err(message.to_owned());
            }
            if let Some(piece) = chunk["choices"][0]["text"].as_str().filter(|piece| !piece.is_empty()) {
                pieces.push(Instant::now());
                text.push_str(piece);
                if cut.is_some_and(|most| pieces.len() >= most) {
                    return Ok(Ending::Cut);
                }
            }
            tokens = chunk["usage"]["completion_tokens"].as_u64().map_or(tokens, |n| n as usize);
        }
        if done { Ok(Ending::Whole { text, tokens }) } else { Err("the reply broke off".to_owned()) }
    }
}

impl Request {
    /// A greedy completion of `prompt` with at most `tokens` tokens. `speculation` is what it says of that.
    pub(super) fn new(model: &str, prompt: &str, tokens: usize, speculation: Option<&str>) -> Request {
        let mut body = json!({
            "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "stream": true, "stream_options": { "include_usage": true },
        });
        if let Some(word) = speculation {
            body["speculation"] = word.parse::<u64>().map_or_else(|_| json!(word), |drafts| json!(drafts));
        }
        Request { body }
    }
}
