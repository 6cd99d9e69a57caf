//! Questions to the Hugging Face hub: what a repository holds, and a stretch of one of its files.
//!
//! `hf-hub` knows the addresses and the token and builds the requests. Its own downloads take any answer for the rest of
//! the file, so ranges are asked for and checked here. Nothing that a hub says is trusted: answers are read up to a
//! limit, a stalled one times out, and names are escaped before they become part of an address.

use std::{
    env, fs,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder},
};
use serde::Deserialize;
use ureq::{
    Body, RequestBuilder,
    http::{Response, StatusCode, header},
    tls::{RootCerts, TlsConfig},
    typestate::WithoutBody,
};

use super::{
    reference::HubReference,
    trouble::{Trouble, persistently},
};

/// How long a connection may take to be made, and then to bring the next bytes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest listing that is read: about a hundred thousand files.
const LISTING_LIMIT: u64 = 64 << 20;
/// The longest explanation of a refusal that is read.
const REFUSAL_LIMIT: u64 = 4096;

/// A repository of the hub.
pub(super) struct Client {
    api: Api,
    repository: String,
}

/// What a repository holds, at one commit.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    #[serde(rename = "sha")]
    pub(super) commit: String,
    #[serde(default, rename = "siblings")]
    pub(super) files: Vec<ListedFile>,
}

/// A file as the hub describes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListedFile {
    pub(super) rfilename: String,
    pub(super) size: Option<u64>,
    /// The content's id in git: changes with the content.
    pub(super) blob_id: Option<String>,
    /// Present for large files.
    pub(super) lfs: Option<LargeFile>,
}

/// What the hub tells of large files only.
#[derive(Debug, Deserialize)]
pub(super) struct LargeFile {
    pub(super) sha256: Option<String>,
}

impl Client {
    /// Of a repository at the hub that HF_ENDPOINT names, with the token of HF_TOKEN or of a file.
    pub(super) fn new(reference: &HubReference, folder: &Path) -> Result<Client, Trouble> {
        // hf-hub caches nothing for this client, but wants a folder.
        let mut builder = ApiBuilder::from_cache(Cache::new(folder.to_owned())).with_token(token());
        builder = builder.with_user_agent("tessera", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api = builder.build().map_err(|error| Trouble::Setting(error.to_string()))?;
        Ok(Client { api, repository: escaped(&format!("{}/{}", reference.owner, reference.repo)) })
    }

    /// The files of the main branch's newest commit.
    pub(super) fn listing(&self) -> Result<Listing, Trouble> {
        let request = || self.api.model(self.repository.clone()).info_request().query("blobs", "true");
        persistently(|| {
            let mut response = answer(request())?;
            let reader = response.body_mut().with_config().limit(LISTING_LIMIT).reader();
            let listing: Listing =
                serde_json::from_reader(io::BufReader::new(reader)).map_err(|e| match e.is_io() {
                    true => Trouble::Network(e.into()),
                    false => Trouble::Odd(format!("the answer is no list of files: {e}")),
                })?;
            match is_id(&listing.commit) {
                true => Ok(listing),
                false => Err(Trouble::Odd("the list of files names no commit".to_owned())),
            }
        })
    }

    /// A file's size, for a hub whose listing does not tell.
    pub(super) fn size(&self, commit: &str, path: &str) -> Result<u64, Trouble> {
        persistently(|| match answer(self.request(commit, path, 0..1)) {
            Ok(response) => match response.status() {
                StatusCode::PARTIAL_CONTENT => content_range(&response).and_then(|(_, size)| size),
                _ => response.body().content_length(),
            }
            .ok_or_else(|| Trouble::Odd(format!("the hub does not tell the size of {path}"))),
            // What an empty file has no first byte for.
            Err(Trouble::Refused { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) => Ok(0),
            Err(trouble) => Err(trouble),
        })
    }

    /// Bytes `wanted` of a file of `wanted.end` bytes. The reader may still bring fewer or more.
    pub(super) fn rest(&self, commit: &str, path: &str, wanted: Range<u64>) -> Result<impl Read + use<>, Trouble> {
        let response = answer(self.request(commit, path, wanted.clone()))?;
        let Range { start, end } = wanted;
        // The whole file, from a server that knows no ranges.
        if response.status() == StatusCode::OK {
            let mut reader = response.into_body().into_reader();
            let skipped = io::copy(&mut reader.by_ref().take(start), &mut io::sink());
            return skipped.map(|_| reader).map_err(|error| Trouble::Network(error.into()));
        }
        let (range, size) = content_range(&response).unwrap_or_default();
        if range != Some(start..end) || size.is_some_and(|size| size != end) {
            let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let (status, got) = (response.status(), range.unwrap_or("no range"));
            return Err(Trouble::Odd(format!("asked for bytes {start}..{end} of {path}, got {got} (status {status})")));
        }
        Ok(response.into_body().into_reader())
    }

    fn request(&self, commit: &str, path: &str, range: Range<u64>) -> RequestBuilder<WithoutBody> {
        let repo = Repo::with_revision(self.repository.clone(), RepoType::Model, commit.to_owned());
        let repository = self.api.repo(repo);
        let address = repository.url(&escaped(path));
        // A range of a compressed answer would be a range of something else.
        let request = repository.info_request().uri(address).header(header::ACCEPT_ENCODING, "identity");
        request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1))
    }
}

/// Makes the request.
fn answer(request: RequestBuilder<WithoutBody>) -> Result<Response<Body>, Trouble> {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let configured = request.config().http_status_as_error(false).tls_config(tls);
    let configured = configured.timeout_connect(Some(PATIENCE)).timeout_per_read(Some(PATIENCE));
    let mut response = configured.build().call().map_err(|error| match error {
        ureq::Error::Http(_) | ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl => {
            Trouble::Setting(error.to_string())
        }
        error => Trouble::Network(error.into()),
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (code, message) = (header("x-error-code").unwrap_or_default(), header("x-error-message"));
    let says = message.unwrap_or_else(|| {
        let mut text = Vec::new();
        // A refusal stays one, however much of its explanation arrives.
        let _ = response.body_mut().as_reader().take(REFUSAL_LIMIT).read_to_end(&mut text);
        let parsed = serde_json::from_slice::<serde_json::Value>(&text).ok();
        parsed.and_then(|value| value.get("error")?.as_str().map(str::to_owned)).unwrap_or_default()
    });
    Err(Trouble::Refused { status, code, says })
}

/// The range and the size of the whole in `Content-Range: bytes 0-99/1000`, either of which may be `*`; RFC 9110, 14.4.
fn content_range<T>(response: &Response<T>) -> Option<(Option<Range<u64>>, Option<u64>)> {
    let (range, size) =
        response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let range = match range {
        "*" => None,
        range => {
            let (first, last) = range.split_once('-')?;
            Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
        }
    };
    let size = match size {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    Some((range, size))
}

/// A path with all bytes escaped that could end or change an address; RFC 3986, 2.3.
fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Whether a commit's or a content's id is one that can be part of an address and of a file's name.
pub(super) fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// An environment variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// The access token, from where the hub's own tools take it.
fn token() -> Option<String> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let of_file = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    };
    let home = || {
        let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let caches = caches.or_else(|| Some(env::home_dir()?.join(".cache")));
        variable("HF_HOME").map(PathBuf::from).or_else(|| Some(caches?.join("huggingface")))
    };
    variable("HF_TOKEN")
        .or_else(|| of_file(variable("HF_TOKEN_PATH")?.into()))
        .or_else(|| of_file(home()?.join("token")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_or_refused() {
        let read = |text: &str| content_range(&Response::builder().header("content-range", text).body(()).unwrap());
        let cases = [
            ("bytes 0-99/1000", Some((Some(0..100), Some(1000)))),
            ("bytes 5-5/*", Some((Some(5..6), None))),
            ("bytes */1000", Some((None, Some(1000)))),
            ("bytes 0-18446744073709551615/1", None),
            ("bytes 0-99", None),
            ("bytes 0/9", None),
            ("bytes -5-9/10", None),
            ("items 0-9/10", None),
            ("", None),
        ];
        for (text, expect) in cases {
            assert_eq!(read(text), expect, "{text}");
        }
        assert_eq!(content_range(&Response::new(())), None);
    }

    #[test]
    fn names_cannot_change_an_address() {
        let cases =
            [("a/b-1_2.~/C", "a/b-1_2.~/C"), ("a b?c#d%2e&", "a%20b%3Fc%23d%252e%26"), ("é\r\n", "%C3%A9%0D%0A")];
        for (name, expect) in cases {
            assert_eq!(escaped(name), expect);
        }
    }
}
