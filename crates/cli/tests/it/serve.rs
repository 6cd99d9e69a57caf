//! `tessera serve`, as a process that is started, asked, and told to stop.

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::Home;

const MODEL: &str = "tiny=synth:llama,layers=1,width=64,head_dim=32,feed_forward=64,vocabulary=512,format=Q8_0";

/// A server that was started.
struct Running {
    child: Child,
    err: Lines<BufReader<ChildStderr>>,
    url: String,
    said: String,
}

impl Running {
    fn start(home: &Home, args: &[&str]) -> Running {
        let mut all = vec!["serve", MODEL, "--port", "0"];
        all.extend(args);
        let mut child = home.command(&all).stderr(Stdio::piped()).spawn().unwrap();
        let err = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut running = Running { child, err, url: String::new(), said: String::new() };
        loop {
            let line = running.err.next().unwrap_or_else(|| panic!("it ended: {}", running.said)).unwrap();
            if let Some(url) = line.strip_prefix("listening at ") {
                running.url = url.to_owned();
                return running;
            }
            running.said += &(line + "\n");
        }
    }

    fn post(&self, path: &str, key: &str, body: &Value) -> (u16, Value) {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent: ureq::Agent = config.timeout_global(Some(Duration::from_secs(60))).build().into();
        let request = agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let mut response = request.header("x-api-key", key).send(body.to_string()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap())
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The rest of what it says, and how it ended.
    fn end(mut self) -> (String, ExitStatus) {
        let rest: Vec<String> = self.err.by_ref().map(Result::unwrap).collect();
        (rest.join("\n"), self.child.wait().unwrap())
    }
}

#[test]
fn it_serves_and_stops_by_a_signal() {
    for signal in ["TERM", "INT"] {
        let home = Home::new();
        let server = Running::start(&home, &["--api-key", "secret", "--max-batch", "2", "--cache-tokens", "1000"]);
        assert!(server.url.starts_with("http://127.0.0.1:"), "{}", server.url);
        assert!(
            server.said.contains("tiny: ") && server.said.contains("cache of 1024 tokens reserved"),
            "{}",
            server.said
        );
        let body = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 4 });
        let (status, reply) = server.post("/v1/chat/completions", "secret", &body);
        assert_eq!((status, &reply["object"]), (200, &json!("chat.completion")), "{reply}");
        assert_eq!(server.post("/v1/chat/completions", "other", &body).0, 401);
        server.signal(signal);
        let (said, status) = server.end();
        assert!(status.success() && said.contains("stopping when all replies are done"), "{status}: {said}");
        assert!(said.ends_with("stopped"), "{said}");
    }
}

#[test]
fn what_cannot_be_served_is_said_at_once() {
    let home = Home::new();
    let table: [(&[&str], &str); 5] = [
        (&["serve", "a=smollm2:135m", "a=gemma3:270m"], "two models have the name `a`"),
        (&["serve", "nothing-like-this"], "cannot load `nothing-like-this`"),
        (&["serve", MODEL, "--api-key", "with space"], "an API key is empty or holds white space"),
        (&["serve", MODEL, "--api-key-file", "missing.txt"], "missing.txt"),
        (&["serve", MODEL, "--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
    ];
    for (args, message) in table {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(1), "{args:?}: {ran:?}");
        assert!(ran.err.contains(message), "{args:?}: {}", ran.err);
    }
}

#[test]
fn an_open_door_is_warned_of() {
    let home = Home::new();
    let server = Running::start(&home, &["--host", "0.0.0.0"]);
    assert!(server.said.contains("warning: everybody who can reach 0.0.0.0 may ask"), "{}", server.said);
    server.signal("TERM");
    assert!(server.end().1.success());
}
