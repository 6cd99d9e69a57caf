//! What may be set about the server. None of it changes a reply.

use std::time::Duration;

use crate::ApiKeys;

/// What may be set about the server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who may ask.
    pub keys: ApiKeys,
    /// Web pages of these origins may ask from a browser; `*` is all. None by default.
    pub cors_origins: Vec<String>,
    /// The longest body of a request.
    pub body_bytes_max: usize,
    /// How long a connection may take to send the head of a request, and how long one without requests is kept.
    pub head_time: Duration,
    /// The longest time from a request to the end of its reply; what there is by then is the reply.
    pub deadline: Option<Duration>,
    /// How long replies may go on when the server is to stop.
    pub grace: Duration,
    /// Replies to one request, at most: its prompts times `n`.
    pub choices_max: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            keys: ApiKeys::default(),
            cors_origins: Vec::new(),
            body_bytes_max: 32 << 20,
            head_time: Duration::from_secs(60),
            deadline: None,
            grace: Duration::from_secs(30),
            choices_max: 128,
        }
    }
}
