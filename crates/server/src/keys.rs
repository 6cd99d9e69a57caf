//! API keys: who may ask, compared in a time that tells nothing of them.

use std::path::Path;

use axum::http::{HeaderMap, header};

/// The keys that the server takes; without any, everybody may ask.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<String>);

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum KeyError {
    #[error("cannot read the API keys in {file}: {problem}")]
    File { file: String, problem: std::io::Error },
    #[error("{file} holds no API key; write one on each line")]
    NoKey { file: String },
    #[error("an API key is empty or holds white space or other characters that no header can carry")]
    Unusable,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({} keys)", self.0.len()) // a key is never printed
    }
}

impl ApiKeys {
    /// These keys.
    ///
    /// # Errors
    /// If one is empty, or no client could send it.
    pub fn new(keys: impl IntoIterator<Item = String>) -> Result<ApiKeys, KeyError> {
        let keys: Vec<String> = keys.into_iter().collect();
        let usable = |key: &String| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        if keys.iter().all(usable) { Ok(ApiKeys(keys)) } else { Err(KeyError::Unusable) }
    }

    /// Adds the keys of a file: one a line; empty lines and lines that begin with `#` are no keys.
    ///
    /// # Errors
    /// If it cannot be read, or has no key or an unusable one.
    pub fn with_file(self, path: &Path) -> Result<ApiKeys, KeyError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|problem| KeyError::File { file: file.clone(), problem })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let found: Vec<String> = lines.map(str::to_owned).collect();
        if found.is_empty() {
            return Err(KeyError::NoKey { file });
        }
        ApiKeys::new(self.0.into_iter().chain(found))
    }

    /// Whether everybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request may be answered: `Authorization: Bearer KEY`, or `x-api-key: KEY`.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        if self.is_empty() {
            return true;
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        let given = [bearer, headers.get("x-api-key").map(|value| value.as_bytes())];
        let known = |given: &[u8]| self.0.iter().fold(false, |found, key| found | same(key.as_bytes(), given));
        given.into_iter().flatten().fold(false, |found, given| found | known(given))
    }
}

/// Whether two texts are the same, in a time that depends on their lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differ) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_header_opens_and_nothing_else() {
        let keys = ApiKeys::new(["one".to_owned(), "second-key".to_owned()]).unwrap();
        let admits = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            keys.admit(&headers)
        };
        for good in ["Bearer one", "bearer second-key"] {
            assert!(admits("authorization", good), "{good}");
        }
        for bad in ["Bearer on", "Bearer onee", "Bearer ", "one", "Basic one", "", "Bearer  one"] {
            assert!(!admits("authorization", bad), "{bad}");
        }
        assert!(admits("x-api-key", "one"));
        assert!(!admits("x-api-key", "two"));
        assert!(!keys.admit(&HeaderMap::new()));
        assert!(ApiKeys::default().admit(&HeaderMap::new()));
    }

    #[test]
    fn keys_that_no_client_can_send_are_refused_and_none_is_printed() {
        for bad in ["", "a b", "schlüssel", "a\n"] {
            assert!(ApiKeys::new([bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert_eq!(format!("{:?}", ApiKeys::new(["secret".to_owned()]).unwrap()), "ApiKeys(1 keys)");
    }
}
