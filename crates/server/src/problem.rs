//! Why a request is not answered, in the words and shapes of each API.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};
use tessera_engine::serving::Refused;

/// Whose shapes a route speaks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    /// By the path of a request.
    pub(crate) fn of(path: &str) -> Dialect {
        if path.starts_with("/v1/messages") { Dialect::Anthropic } else { Dialect::OpenAi }
    }
}

/// What kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Invalid,
    Key,
    NotFound,
    Method,
    TooLarge,
    MediaType,
    Busy,
    Internal,
    Unavailable,
    Timeout,
}

impl Kind {
    /// Status, OpenAI's type and code, Anthropic's type.
    fn names(self) -> (u16, &'static str, Option<&'static str>, &'static str) {
        let request = "invalid_request_error";
        match self {
            Kind::Invalid => (400, request, None, request),
            Kind::Key => (401, request, Some("invalid_api_key"), "authentication_error"),
            Kind::NotFound => (404, request, Some("not_found"), "not_found_error"),
            Kind::Method => (405, request, Some("method_not_allowed"), request),
            Kind::TooLarge => (413, request, Some("request_too_large"), "request_too_large"),
            Kind::MediaType => (415, request, Some("unsupported_media_type"), request),
            Kind::Busy => (429, "rate_limit_error", Some("queue_full"), "rate_limit_error"),
            Kind::Internal => (500, "server_error", Some("internal_error"), "api_error"),
            Kind::Unavailable => (503, "server_error", Some("unavailable"), "overloaded_error"),
            Kind::Timeout => (504, "server_error", Some("timeout"), "timeout_error"),
        }
    }
}

/// Why a request is not answered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    /// The field of the request that it is about.
    pub(crate) param: Option<String>,
    /// OpenAI's code, where there is a better one than the kind's.
    pub(crate) code: Option<&'static str>,
    /// Seconds after which to try again.
    pub(crate) retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Problem {
        Problem { kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// The request asks for what cannot be.
    pub(crate) fn invalid(message: impl Into<String>) -> Problem {
        Problem::new(Kind::Invalid, message)
    }

    /// The model or the server failed.
    pub(crate) fn internal(message: impl Into<String>) -> Problem {
        Problem::new(Kind::Internal, message)
    }

    /// What was asked for cannot be had now. For a [`crate::Loader`]: the model does not load.
    pub fn unavailable(message: impl Into<String>) -> Problem {
        Problem::new(Kind::Unavailable, message)
    }

    pub(crate) fn about(mut self, param: impl Into<String>) -> Problem {
        self.param = Some(param.into()).filter(|param| !param.is_empty());
        self
    }

    pub(crate) fn coded(mut self, code: &'static str) -> Problem {
        self.code = Some(code);
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.kind.names().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The body of the error.
    pub(crate) fn json(&self, dialect: Dialect) -> Value {
        let (_, openai, code, anthropic) = self.kind.names();
        match dialect {
            Dialect::OpenAi => json!({ "error": {
                "message": self.message,
                "type": openai,
                "param": self.param,
                "code": self.code.or(code),
            } }),
            Dialect::Anthropic => json!({
                "type": "error",
                "error": { "type": anthropic, "message": self.message },
            }),
        }
    }

    pub(crate) fn response(&self, dialect: Dialect) -> Response {
        let mut response = json_response(self.status(), &self.json(dialect));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == Kind::Key {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let message = refused.to_string();
        match refused {
            Refused::QueueFull { .. } => Problem { retry_after: Some(1), ..Problem::new(Kind::Busy, message) },
            Refused::TooLong { .. } => Problem::invalid(message).coded("context_length_exceeded"),
            Refused::NoEmbeddings => Problem::invalid(message).about("model"),
            Refused::EmptyPrompt | Refused::Token { .. } | Refused::Sampling(_) => Problem::invalid(message),
            Refused::Stopped => Problem::unavailable(message),
        }
    }
}

/// A response with a JSON body.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response that all is well.
pub(crate) fn ok(value: &Value) -> Response {
    json_response(StatusCode::OK, value)
}
