//! What can go wrong between here and a hub: what may pass and is tried again, and what its user is told to do.

use std::{error::Error, thread, time::Duration};

use ureq::http::StatusCode;

use crate::ui::Failure;

/// How often a request is made again after a fault that may pass.
const RETRIES: u32 = 3;
/// How long the first of these waits; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The hub answered with this status; `code` is its own word for the reason, `says` its sentence.
    Refused { status: StatusCode, code: String, says: String },
    /// No answer, or half of one.
    Network(Box<dyn Error + Send + Sync>),
    /// An address or a token that no request can be made with.
    Setting(String),
    /// An answer to another question.
    Odd(String),
    /// What came could not be stored.
    Disk(Failure),
}

/// Makes an attempt again while it fails for a reason that may pass.
pub(super) fn persistently<T>(mut attempt: impl FnMut() -> Result<T, Trouble>) -> Result<T, Trouble> {
    for retry in 0..RETRIES {
        match attempt() {
            Err(trouble) if trouble.may_pass() => thread::sleep(FIRST_WAIT * 2u32.pow(retry)),
            done => return done,
        }
    }
    attempt()
}

impl Trouble {
    fn may_pass(&self) -> bool {
        match self {
            Trouble::Network(_) => true,
            Trouble::Refused { status, .. } => matches!(status.as_u16(), 408 | 500 | 502..=504),
            _ => false,
        }
    }

    /// What is said to the user of the model `name`.
    pub(super) fn explain(self, name: &str) -> Failure {
        let (remedy, cause) = match self {
            Trouble::Disk(failure) => return failure,
            Trouble::Refused { status, code, says } => {
                let remedy = match (code.as_str(), status.as_u16()) {
                    // The hub does not tell strangers which repositories there are: it says 401 for those there are not.
                    ("RepoNotFound", _) | ("", 404) => {
                        "check the spelling; if the repository is private, set HF_TOKEN to an access token"
                    }
                    (_, 404 | 410) => "check the spelling",
                    (_, 401 | 403) => "accept the model's licence on its page, and set HF_TOKEN to an access token",
                    (_, 429) => "wait a while and run the command again; what was fetched is kept",
                    _ => "check the network and run the command again; what was fetched is kept",
                };
                let words = [code, says];
                let words: Vec<_> = words.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
                (remedy, format!("the hub answered with status {status}: {}", words.join(": ")).into())
            }
            Trouble::Network(error) => ("check the network and run the command again; what was fetched is kept", error),
            Trouble::Setting(what) => ("check HF_ENDPOINT, HF_TOKEN and the proxy's address", what.into()),
            Trouble::Odd(what) => {
                ("check the network and run the command again; what was fetched is kept", what.into())
            }
        };
        Failure::new(format!("cannot fetch {name}"), remedy).caused_by(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> Trouble {
        let status = StatusCode::from_u16(status).unwrap();
        Trouble::Refused { status, code: code.into(), says: "so it is".into() }
    }

    #[test]
    fn each_trouble_has_its_remedy() {
        let cases = [
            (refused(401, "RepoNotFound"), "check the spelling; if the repository is private, set HF_TOKEN"),
            (refused(404, ""), "check the spelling; if"),
            (refused(404, "EntryNotFound"), "\"check the spelling\""),
            (refused(403, "GatedRepo"), "accept the model's licence"),
            (refused(401, ""), "set HF_TOKEN"),
            (refused(429, ""), "wait a while"),
            (refused(503, ""), "check the network"),
            (Trouble::Network("gone".into()), "check the network"),
            (Trouble::Setting("no scheme".into()), "HF_ENDPOINT"),
            (Trouble::Odd("so what".into()), "check the network"),
            (Trouble::Disk(Failure::new("full", "free some space")), "free some space"),
        ];
        for (trouble, remedy) in cases {
            let failure = format!("{:?}", trouble.explain("hf:a/b"));
            assert!(failure.contains(remedy), "{failure}: {remedy}");
        }
    }

    #[test]
    fn only_faults_that_may_pass_are_tried_again() {
        let attempts = |make: &dyn Fn() -> Trouble| {
            let mut count = 0;
            let result: Result<(), _> = persistently(|| {
                count += 1;
                Err(make())
            });
            assert!(result.is_err());
            count
        };
        assert_eq!(attempts(&|| Trouble::Network("gone".into())), 4);
        assert_eq!(attempts(&|| refused(503, "")), 4);
        assert_eq!(attempts(&|| refused(429, "")), 1, "who asks too often must not ask again at once");
        assert_eq!(attempts(&|| refused(404, "")), 1);
        assert_eq!(attempts(&|| Trouble::Odd("so what".into())), 1);
        let mut left = 2;
        let third = persistently(|| {
            left -= 1;
            if left == 0 { Ok(7) } else { Err(Trouble::Network("gone".into())) }
        });
        assert_eq!(third.unwrap(), 7);
    }
}
