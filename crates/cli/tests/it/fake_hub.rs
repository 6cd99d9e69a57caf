//! A hub of our own on this machine: enough HTTP for `hf-hub` to list a repository and fetch ranges of its files.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use sha2::{Digest, Sha256};

/// A commit's id.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The hub; it serves until the test process ends.
pub(crate) struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Files of the only repository, `org/repo`.
    files: BTreeMap<String, Vec<u8>>,
    /// What the listing claims of a file in place of its real sum.
    wrong_sums: BTreeMap<String, String>,
    /// Requests for contents: file and range.
    fetched: Vec<String>,
    /// Requests for contents that still succeed; none: all.
    patience: Option<usize>,
}

impl Hub {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, content)| (name.to_string(), content.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || serve(stream, &state));
            }
        });
        Hub { address, state }
    }

    /// For HF_ENDPOINT.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn claim_sum(&self, file: &str, sum: &str) {
        self.state.lock().unwrap().wrong_sums.insert(file.into(), sum.into());
    }

    /// Lets that many requests for contents succeed and refuses the rest.
    pub(crate) fn set_patience(&self, requests: Option<usize>) {
        self.state.lock().unwrap().patience = requests;
    }

    /// The requests for contents since the last call, as `file start-end`.
    pub(crate) fn take_fetched(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().fetched)
    }
}

/// Answers requests until the client hangs up.
fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let mut words = lines[0].split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let range = lines.iter().find_map(|l| l.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let (status, headers, body) = answer(method, target, range.as_deref(), &mut state.lock().unwrap());
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n");
        let body = if method == "HEAD" { Vec::new() } else { body };
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
            return;
        }
    }
}

type Answer = (&'static str, String, Vec<u8>);

fn answer(method: &str, target: &str, range: Option<&str>, state: &mut State) -> Answer {
    let json = "content-type: application/json\r\n".to_owned();
    let path = target.split('?').next().unwrap_or("");
    if path == "/api/models/org/repo" || path == format!("/api/models/org/repo/revision/{COMMIT}") {
        let info = serde_json::json!({ "_id": "1", "id": "org/repo", "sha": COMMIT, "private": false });
        return ("200 OK", json, info.to_string().into_bytes());
    }
    if path.starts_with("/api/models/org/repo/tree/") {
        return ("200 OK", json, listing(state).into_bytes());
    }
    let prefix = format!("/org/repo/resolve/{COMMIT}/");
    let Some((name, content)) = path.strip_prefix(&prefix).and_then(|n| Some((n, state.files.get(n)?))) else {
        let headers = format!("{json}x-error-code: RepoNotFound\r\n");
        return ("404 Not Found", headers, b"{\"error\":\"not found\"}".to_vec());
    };
    let mut headers = format!("etag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\naccept-ranges: bytes\r\n", sum(content));
    if method == "HEAD" {
        return ("200 OK", headers, content.clone());
    }
    if state.patience == Some(0) {
        return ("403 Forbidden", json, b"{\"error\":\"enough for today\"}".to_vec());
    }
    state.patience = state.patience.map(|n| n - 1);
    state.fetched.push(format!("{name} {}", range.unwrap_or("whole")));
    match range.and_then(|range| range.split_once('-')) {
        Some((start, end)) => {
            let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
            headers += &format!("content-range: bytes {start}-{end}/{}\r\n", content.len());
            ("206 Partial Content", headers, content[start..=end].to_vec())
        }
        None => ("200 OK", headers, content.clone()),
    }
}

/// The tree of the repository. Files of 100 bytes and more are "large" and have a SHA-256.
fn listing(state: &State) -> String {
    let entries = state.files.iter().map(|(name, content)| {
        let oid = &sum(content)[..40];
        let mut entry = serde_json::json!({ "type": "file", "oid": oid, "size": content.len(), "path": name });
        if content.len() >= 100 {
            let sha256 = state.wrong_sums.get(name).cloned().unwrap_or_else(|| sum(content));
            entry["lfs"] =
                serde_json::json!({ "oid": sha256, "sha256": sha256, "size": content.len(), "pointerSize": 134 });
        }
        entry
    });
    serde_json::Value::Array(entries.collect()).to_string()
}

fn sum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
