//! Stop strings: text that ends a reply, however the tokens cut it.
//!
//! Text that may turn out to be the beginning of a stop string is held back until the next text decides. The stop
//! string itself, and what follows it, is never given.

use super::SamplingError;

/// Watches a stream of text for the first stop string.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
    /// The one that came.
    stopped: Option<usize>,
}

impl StopStrings {
    /// Watches for these.
    ///
    /// # Errors
    /// If one of them is empty.
    pub fn new(strings: Vec<String>) -> Result<StopStrings, SamplingError> {
        if strings.iter().any(String::is_empty) {
            return Err(SamplingError::EmptyStopString);
        }
        Ok(StopStrings { strings, held: String::new(), stopped: None })
    }

    /// Takes the next text and gives what surely stands before any stop string.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped() {
            return String::new();
        }
        self.held.push_str(text);
        // The first to begin wins; where two begin together, they end the reply at the same place.
        let found = |(which, s): (usize, &String)| Some((self.held.find(s.as_str())?, which));
        if let Some((at, which)) = self.strings.iter().enumerate().filter_map(found).min() {
            self.stopped = Some(which);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let doubtful = self.doubtful();
        let rest = self.held.split_off(self.held.len() - doubtful);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether text is held back, or swallowed.
    pub fn holds(&self) -> bool {
        self.stopped() || !self.held.is_empty()
    }

    /// Whether a stop string has come. Everything after it is swallowed.
    pub fn stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The stop string that has come: of several that begin together, the first that was given.
    pub fn matched(&self) -> Option<&str> {
        self.stopped.map(|which| self.strings[which].as_str())
    }

    /// At the end of the stream: what was held back and did not become a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The length in bytes of the longest end of the held text that begins a stop string.
    fn doubtful(&self) -> usize {
        let begins = |s: &String| {
            let longest = (s.len() - 1).min(self.held.len());
            (1..=longest).rev().find(|&n| self.held.as_bytes().ends_with(&s.as_bytes()[..n]))
        };
        // Both are UTF-8, so an equal end begins at a character: a first byte is never a continuation byte.
        self.strings.iter().filter_map(begins).max().unwrap_or(0)
    }
}
