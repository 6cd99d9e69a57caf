//! A hub of our own on this machine: enough HTTP for `hf-hub` to list a repository and fetch ranges of its files, with
//! the faults of real ones on demand.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use sha2::{Digest, Sha256};

/// A commit's id.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The hub; it serves until the test process ends.
pub(crate) struct Hub {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// What the hub holds and how it behaves.
#[derive(Default)]
pub(crate) struct State {
    /// Files of the only repository, `org/repo`.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// What the listing claims of a file in place of its real sum.
    pub(crate) wrong_sums: BTreeMap<String, String>,
    /// Names files and nothing more of them, as if it knew no `blobs=true`.
    pub(crate) terse: bool,
    /// Requests for contents that still succeed; none: all.
    patience: Option<usize>,
    /// Hangs up after so many bytes of a file.
    hangs_up_after: Option<usize>,
    /// How it takes a request for a range.
    pub(crate) ranges: Ranges,
    /// Contents are at this address, as a real hub's are.
    pub(crate) elsewhere: Option<String>,
    /// All requests are refused with this status and reason.
    pub(crate) refusal: Option<(&'static str, &'static str)>,
    /// Requests for contents: file and range.
    fetched: Vec<String>,
    /// The tokens that came with requests, each change once.
    tokens: Vec<Option<String>>,
}

/// How a hub takes a request for a range.
#[derive(Clone, Copy, Default)]
pub(crate) enum Ranges {
    #[default]
    Known,
    /// Answers with the whole file.
    Ignored,
    /// Answers with the first bytes, whatever is asked for.
    Mistaken,
}

/// A request, as far as it matters.
struct Request {
    target: String,
    range: Option<(usize, usize)>,
    token: Option<String>,
}

impl Hub {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let files = files.iter().map(|(name, content)| (name.to_string(), content.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || serve(stream, &state));
            }
        });
        Hub { port, state }
    }

    /// For HF_ENDPOINT.
    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The same under another host's name.
    pub(crate) fn other_address(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Its contents and manners, to be changed. The hub waits meanwhile.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets that many requests for contents succeed, each with that many bytes before the hub hangs up; none: all.
    pub(crate) fn set_faults(&self, patience: Option<usize>, hangs_up_after: Option<usize>) {
        let mut state = self.state();
        (state.patience, state.hangs_up_after) = (patience, hangs_up_after);
    }

    /// The requests for contents since the last call, as `file start-end`.
    pub(crate) fn take_fetched(&self) -> Vec<String> {
        std::mem::take(&mut self.state().fetched)
    }

    /// The tokens since the last call.
    pub(crate) fn take_tokens(&self) -> Vec<Option<String>> {
        std::mem::take(&mut self.state().tokens)
    }
}

/// Answers requests until one side hangs up.
fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader) {
        let (answer, hangs_up_after) = {
            let mut state = state.lock().unwrap();
            if state.tokens.last() != Some(&request.token) {
                state.tokens.push(request.token.clone());
            }
            (answer(&request, &mut state), state.hangs_up_after)
        };
        let (status, headers, body) = answer;
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        let is_content = headers.contains("accept-ranges");
        let sent = hangs_up_after.filter(|_| is_content).unwrap_or(body.len()).min(body.len());
        let written = writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body[..sent]));
        if written.is_err() || sent < body.len() {
            return;
        }
    }
}

/// The next request; none: the client hung up.
fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let (target, version) = lines[0].strip_prefix("GET ").unwrap().split_once(' ').unwrap();
    assert_eq!(version, "HTTP/1.1");
    let headers = lines.iter().filter_map(|line| line.split_once(": "));
    let header = |name: &str| headers.clone().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned());
    let range = header("range").map(|range| {
        let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (start.parse().unwrap(), end.parse().unwrap())
    });
    Some(Request { target: target.to_owned(), range, token: header("authorization") })
}

type Answer = (&'static str, String, Vec<u8>);

fn answer(request: &Request, state: &mut State) -> Answer {
    let json = "content-type: application/json\r\n".to_owned();
    if let Some((status, code)) = state.refusal {
        return (status, format!("{json}x-error-code: {code}\r\n"), b"{\"error\":\"refused by test\"}".to_vec());
    }
    if request.target == "/api/models/org/repo/revision/main?blobs=true" {
        return ("200 OK", json, listing(state).into_bytes());
    }
    let prefix = format!("/org/repo/resolve/{COMMIT}/");
    let name = request.target.strip_prefix(&prefix).map(unescaped);
    let Some((name, content)) = name.and_then(|name| Some((name.clone(), state.files.get(&name)?))) else {
        let headers = format!("{json}x-error-code: RepoNotFound\r\n");
        return ("404 Not Found", headers, b"{\"error\":\"not found\"}".to_vec());
    };
    if let Some(elsewhere) = &state.elsewhere {
        return ("302 Found", format!("location: {elsewhere}{}\r\n", request.target), Vec::new());
    }
    if state.patience == Some(0) {
        return ("403 Forbidden", json, b"{\"error\":\"enough for today\"}".to_vec());
    }
    state.patience = state.patience.map(|n| n - 1);
    let mut headers = "accept-ranges: bytes\r\n".to_owned();
    let Some((start, end)) = request.range else { panic!("{name} is asked for without a range") };
    state.fetched.push(format!("{name} {start}-{end}"));
    let (start, end) = match state.ranges {
        Ranges::Known if start >= content.len() => return ("416 Range Not Satisfiable", headers, Vec::new()),
        Ranges::Known => (start, end),
        Ranges::Ignored => return ("200 OK", headers, content.clone()),
        Ranges::Mistaken => (0, end - start),
    };
    headers += &format!("content-range: bytes {start}-{end}/{}\r\n", content.len());
    ("206 Partial Content", headers, content[start..=end].to_vec())
}

/// The commit and its files. Files of 100 bytes and more are "large" and have a SHA-256.
fn listing(state: &State) -> String {
    let siblings = state.files.iter().map(|(name, content)| {
        if state.terse {
            return serde_json::json!({ "rfilename": name });
        }
        let oid = &sum(content)[..40];
        let mut entry = serde_json::json!({ "rfilename": name, "size": content.len(), "blobId": oid });
        if content.len() >= 100 {
            let sha256 = state.wrong_sums.get(name).cloned().unwrap_or_else(|| sum(content));
            entry["lfs"] = serde_json::json!({ "sha256": sha256, "size": content.len(), "pointerSize": 134 });
        }
        entry
    });
    let siblings = serde_json::Value::Array(siblings.collect());
    serde_json::json!({ "_id": "1", "id": "org/repo", "sha": COMMIT, "private": false, "siblings": siblings })
        .to_string()
}

/// A path out of an address, its `%20` and the like resolved.
fn unescaped(path: &str) -> String {
    let mut pieces = path.split('%');
    let mut bytes = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        bytes.extend(&piece.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

fn sum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
