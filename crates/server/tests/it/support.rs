//! A server on a tiny model with random weights, and a client for it.

use std::{
    io::{BufRead, BufReader},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tessera_engine::{
    ChatFormat, ChatTemplate, Checkpoint, Config, Error, LanguageModel, LoadOptions, Sequences, Tokenizer, models,
    serving::{Engine, EngineHandle, MonotonicClock, Options},
    state::{Identity, Owner},
    synth::{self, Spec},
};
use tessera_formats::{Gguf, gguf::Value as Entry};
use tessera_ops::{Batch, reference::ReferenceDevice};
use tessera_server::{Closing, Loaded, Loader, Problem, Server, Settings, StopSwitch};

use crate::script::Script;

/// Templates of families, by which their ways of writing are known.
const TEMPLATES: [(&str, &str); 8] = [
    ("deepseek4", include_str!("../../../engine/src/chat_template/deepseek4.jinja")),
    ("gemma4", include_str!("../../../engine/tests/data/templates/gemma4.jinja")),
    ("glm4", include_str!("../../../engine/tests/data/templates/glm4.jinja")),
    ("gpt_oss", include_str!("../../../engine/tests/data/templates/gpt_oss.jinja")),
    ("hermes", include_str!("../../../engine/tests/data/templates/hermes.jinja")),
    ("llama3", include_str!("../../../engine/tests/data/templates/llama3.jinja")),
    ("qwen3_coder", include_str!("../../../engine/tests/data/templates/qwen3_coder.jinja")),
    ("qwen3", include_str!("../../../engine/tests/data/templates/qwen3.jinja")),
];

/// The models that test servers have: `tiny`, `slow` (20 ms a step), `bare` (no chat template), and those of [`TEMPLATES`],
/// as they are and with their marks as tokens (`qwen3+tokens`), each also slow (`qwen3+slow`).
pub(crate) struct Tiny {
    pub(crate) options: Options,
    /// Tokens of the cache.
    pub(crate) cache: usize,
    /// What the models say; none: what is random.
    pub(crate) script: Option<Script>,
}

impl Default for Tiny {
    fn default() -> Tiny {
        Tiny { options: Options { slots: 4, ..Options::default() }, cache: 4096, script: None }
    }
}

impl Loader for Tiny {
    fn load(&self, name: &str) -> Result<Loaded, Problem> {
        if name == "broken" {
            return Err(Problem::unavailable("its file is damaged"));
        }
        let line = "synth:llama,layers=1,width=64,head_dim=32,feed_forward=64,vocabulary=512,format=F32,context=2048";
        let spec = Spec::parse(line).unwrap();
        let checkpoint = synth::checkpoint(&spec, 1).unwrap();
        let options = LoadOptions { context: Some(self.cache), ..LoadOptions::default() };
        let mut model = models::load(&checkpoint, Arc::new(ReferenceDevice), &options, &mut |_| {}).unwrap();
        let (plain, slow) = name.strip_suffix("+slow").map_or((name, name == "slow"), |plain| (plain, true));
        if slow {
            model = Box::new(Slow(model));
        }
        let family = plain.strip_suffix("+tokens").unwrap_or(plain);
        let own = checkpoint.chat_template().unwrap();
        let found = TEMPLATES.iter().find(|(known, _)| *known == family);
        let tokenizer = match found {
            Some((_, template)) if plain != family => with_marks(&checkpoint, template),
            _ => checkpoint.tokenizer().unwrap(),
        };
        let tokenizer = Arc::new(tokenizer);
        if let Some(script) = &self.script {
            model = script.acted(name, model, &tokenizer);
        }
        let template = found.map(|(_, text)| *text).or(own.as_deref());
        let template = ChatTemplate::new(name, template, &tokenizer).unwrap();
        let clock = Box::new(MonotonicClock::default());
        let engine = Engine::new(Sequences::new(model), tokenizer, self.options.clone(), clock);
        Ok(Loaded {
            engine: EngineHandle::start(engine).unwrap(),
            template: (name != "bare").then_some(template),
            device: "reference".to_owned(),
            kernel: Box::new(|rows| format!("plain for {rows}")),
        })
    }
}

/// The model's tokenizer with the last words of its vocabulary replaced by the marks of a template's family.
fn with_marks(checkpoint: &Checkpoint, template: &str) -> Tokenizer {
    let format = ChatFormat::recognise(template, |_| false);
    // Of marks that hold a token, only that is one.
    let marks =
        format.marks.iter().map(|(_, mark)| *mark).filter(|mark| !format.pieces.iter().any(|p| mark.contains(p)));
    let marks: Vec<&str> = marks.filter(|mark| mark.starts_with('<')).chain(format.pieces.iter().copied()).collect();
    let metadata = checkpoint.gguf().unwrap().metadata().map(|(key, value)| {
        let strings = || value.as_array().and_then(|a| a.as_strings()).unwrap().to_vec();
        let value = match key {
            "tokenizer.ggml.tokens" => {
                let mut all = strings();
                let first = all.len() - marks.len();
                for (place, mark) in all[first..].iter_mut().zip(&marks) {
                    *place = (*mark).to_owned();
                }
                Entry::from(all)
            }
            "tokenizer.ggml.merges" => {
                let all = strings();
                Entry::from(all[..all.len() - marks.len()].to_vec())
            }
            "tokenizer.ggml.token_type" => {
                let mut all: Vec<i32> =
                    value.as_array().unwrap().to_i64s().unwrap().iter().map(|n| *n as i32).collect();
                let first = all.len() - marks.len();
                all[first..].fill(4); // GGUF's number of a token that is found whole in any text
                Entry::from(all)
            }
            _ => value.clone(),
        };
        (key.to_owned(), value)
    });
    let gguf = Gguf::from_parts("marked", metadata.collect(), Vec::new()).unwrap();
    Tokenizer::from_gguf(&gguf).unwrap()
}

/// A model that takes its time.
struct Slow(Box<dyn LanguageModel>);

impl LanguageModel for Slow {
    fn config(&self) -> &Config {
        self.0.config()
    }
    fn cache_tokens(&self) -> usize {
        self.0.cache_tokens()
    }
    fn cache_bytes(&self) -> usize {
        self.0.cache_bytes()
    }
    fn forward(&mut self, batch: &Batch, logits: &mut Vec<f32>) -> Result<(), Error> {
        thread::sleep(Duration::from_millis(20));
        self.0.forward(batch, logits)
    }
    fn forward_hidden(&mut self, batch: &Batch, logits: &mut Vec<f32>, hidden: &mut Vec<f32>) -> Result<(), Error> {
        self.0.forward_hidden(batch, logits, hidden)
    }
    fn owner(&self, identity: &Identity) -> Result<Owner, Error> {
        self.0.owner(identity)
    }
    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        self.0.read_page(page, out)
    }
    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), Error> {
        self.0.write_page(page, bytes)
    }
}

/// A running server; it stops when it is dropped.
pub(crate) struct Running {
    pub(crate) address: String,
    switch: StopSwitch,
    thread: Option<JoinHandle<Closing>>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The JSON of a reply that is fine.
    pub(crate) fn fine(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The events of a stream: names and data, to the end.
    pub(crate) fn events(&self) -> Vec<(Option<String>, String)> {
        assert_eq!(self.status, 200, "{}", self.text);
        assert!(self.header("content-type").unwrap().starts_with("text/event-stream"));
        let blocks = self.text.split("\n\n").filter(|block| !block.trim().is_empty());
        let read = |block: &str| {
            let mut name = None;
            let mut data = None;
            for line in block.lines() {
                match line.split_once(": ") {
                    Some(("event", value)) => name = Some(value.to_owned()),
                    Some(("data", value)) => assert!(data.replace(value.to_owned()).is_none(), "{block}"),
                    _ => assert!(line.starts_with(':'), "{line}"),
                }
            }
            data.map(|data| (name, data))
        };
        blocks.filter_map(read).collect()
    }

    /// The objects of OpenAI's streams, which end with `[DONE]`.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().unwrap(), (None, "[DONE]".to_owned()));
        events.into_iter().map(|(_, data)| serde_json::from_str(&data).unwrap()).collect()
    }

    /// The objects of streams whose events have names, which are their types.
    pub(crate) fn typed(&self) -> Vec<Value> {
        let object = |(name, data): (Option<String>, String)| {
            let value: Value = serde_json::from_str(&data).unwrap();
            assert_eq!(value["type"].as_str(), name.as_deref(), "{data}");
            value
        };
        self.events().into_iter().map(object).collect()
    }
}

pub(crate) fn start_with(names: &[&str], loader: Tiny, settings: Settings) -> Running {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let server = Server::bind(("127.0.0.1", 0), names.clone(), Box::new(loader), settings).unwrap();
    for name in names.iter().filter(|name| *name != "broken" && *name != "later") {
        server.load(name).unwrap();
    }
    let (address, switch) = (server.address().to_string(), server.switch());
    let thread = thread::spawn(move || server.run().unwrap());
    Running { address, switch, thread: Some(thread) }
}

/// A server of `tiny` with settings as by default.
pub(crate) fn start() -> Running {
    start_with(&["tiny"], Tiny::default(), Settings::default())
}

/// A client that keeps no connection.
pub(crate) fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).max_idle_connections(0);
    config.timeout_global(Some(Duration::from_secs(60))).build().into()
}

impl Running {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        read(agent().get(self.url(path)).call())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_with(path, body, &[])
    }

    pub(crate) fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Reply {
        let mut request = agent().post(self.url(path)).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send(body.to_string()))
    }

    /// A stream that is read line by line; dropping it goes away.
    pub(crate) fn open(&self, path: &str, body: &Value) -> impl Iterator<Item = String> + use<> {
        let request = agent().post(self.url(path)).header("content-type", "application/json");
        let response = request.send(body.to_string()).unwrap();
        assert_eq!(response.status(), 200);
        BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok)
    }

    /// The first model's part of `/v1/engine`.
    pub(crate) fn engine(&self) -> Value {
        self.get("/v1/engine").fine()["models"][0].clone()
    }

    /// Waits until the engine is as it should be.
    pub(crate) fn wait_until(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let engine = self.engine();
            if so(&engine) {
                return engine;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "never {what}: {engine}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until nothing is computed and nothing held.
    pub(crate) fn wait_idle(&self) {
        let idle = |e: &Value| e["running"] == 0 && e["waiting"] == 0 && e["cache"]["held"] == 0;
        self.wait_until("idle", idle);
    }

    pub(crate) fn switch(&self) -> StopSwitch {
        self.switch.clone()
    }

    /// Stops it and tells how it ended.
    pub(crate) fn stop(mut self) -> Closing {
        self.switch.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.switch.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server died");
        }
    }
}

pub(crate) fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    let mut response = response.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Reply { status, headers, text: response.body_mut().read_to_string().unwrap() }
}

/// A conversation of one message, with what else is asked for.
pub(crate) fn chat(text: &str, more: Value) -> Value {
    with(json!({ "model": "tiny", "messages": [{ "role": "user", "content": text }] }), more)
}

/// A text to be continued.
pub(crate) fn completion(text: &str, more: Value) -> Value {
    with(json!({ "model": "tiny", "prompt": text }), more)
}

/// An object with more fields.
pub(crate) fn with(mut object: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        object[name] = value.clone();
    }
    object
}
