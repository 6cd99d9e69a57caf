//! `tessera serve`: models for many users, over HTTP.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{
    Args,
    builder::{PossibleValuesParser, RangedU64ValueParser},
};
use tessera_engine::{
    ChatTemplate, Checkpoint, LoadOptions, Pooling, Sequences, Tokenizer, models,
    serving::{Engine, EngineHandle, MonotonicClock, Options, speculation::DraftModel},
};
use tessera_server::{ApiKeys, Loaded, Loader, Problem, Server, Settings};

use crate::{
    args::{Cache, Compute, Placement},
    commands::kernels,
    device::Opened,
    model::{self, Mtp},
    ui::{self, Failure},
};

/// Tokens of the cache where no flag says how many.
const CACHE_TOKENS: usize = 16_384;

/// Serve models to many users over HTTP.
#[derive(Debug, Args)]
#[command(
    after_help = "The APIs of OpenAI (/v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings) and Anthropic (/v1/messages); \
/openapi.json lists all routes, / is a page to chat with. A reply depends on its request and seed alone, whoever else is \
served. Without --api-key everybody who can reach the address may ask. TLS is left to a proxy.

Examples:
  tessera serve                                     the default model, on http://127.0.0.1:8080
  tessera serve gemma3:270m small=smollm2:135m      two models; requests name `gemma3:270m` or `small`
  tessera serve model.gguf --max-batch 32 --cache-tokens 65536
  tessera serve deepseek-v4-flash.gguf --mtp deepseek-v4-flash-mtp.gguf
  tessera serve model.gguf --host 0.0.0.0 --api-key-file keys.txt
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Name three rivers.\"}]}'"
)]
pub(crate) struct Serve {
    /// The models, as MODEL or NAME=MODEL
    #[arg(value_name = "MODEL", default_value = crate::store::DEFAULT)]
    models: Vec<String>,
    /// Models that can be loaded by /v1/models/load, and are not at the start; may be repeated
    #[arg(long, value_name = "MODEL")]
    unloaded: Vec<String>,
    /// Built-in chat template for models that have none of their own
    #[arg(long, value_name = "NAME", value_parser = crate::talk::templates())]
    template: Option<String>,
    /// A small model with the same vocabulary that guesses for the one that is served, where the prompt gives no guess
    #[arg(long, value_name = "MODEL")]
    draft: Option<String>,
    #[command(flatten)]
    mtp: Mtp,
    /// How embeddings are made of a text's rows [default: as the model was trained; one that was not makes none]
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(Pooling::NAMES.map(|(name, _)| name)))]
    pooling: Option<String>,
    /// The address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen at; 0: any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Answer only who sends this key; may be repeated
    #[arg(long, value_name = "KEY", env = "TESSERA_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// Answer only who sends one of the keys in a file, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Let web pages of this origin ask, such as https://example.org; may be repeated; `*`: all
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    cache: Cache,
}

/// What is served at most.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
struct Limits {
    /// Requests of a model that are computed at once, 1 to 1024
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    max_batch: usize,
    /// Requests of a model that may wait; more get status 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = RangedU64ValueParser::<usize>::new().range(0..=65536))]
    queue: usize,
    /// Tokens of the longest prompt with its reply [default: what the model was trained for, as far as the cache holds it]
    #[arg(long, value_name = "TOKENS", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    context: Option<usize>,
    /// Tokens in the cache of a model, over all its requests; the memory is reserved at the start
    #[arg(long, value_name = "TOKENS", default_value_t = CACHE_TOKENS,
        value_parser = RangedU64ValueParser::<usize>::new().range(64..))]
    cache_tokens: usize,
    /// Tokens computed in one step, 2 to 65536 [default: 512, on a card 2048]. Beside replies, prompts have no more of them than a step
    /// has time for
    #[arg(long, value_name = "TOKENS", value_parser = RangedU64ValueParser::<usize>::new().range(2..=65536))]
    step_tokens: Option<usize>,
    /// Seconds from a request to the end of its reply; what there is by then is the reply [default: any]
    #[arg(long, value_name = "SECONDS", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    timeout: Option<u64>,
    /// Largest body of a request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    max_body: usize,
    /// Seconds that replies may go on when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u64,
}

/// Serves until it is told to stop.
pub(crate) fn main(args: &Serve) -> Result<()> {
    let names: Vec<Named> = args.models.iter().chain(&args.unloaded).map(|text| Named::parse(text)).collect();
    if let Some(twice) = names.iter().enumerate().find(|(i, n)| names[..*i].iter().any(|m| m.name == n.name)) {
        let message = format!("two models have the name `{}`", twice.1.name);
        return Err(Failure::new(message, "give one another name: NAME=MODEL").into());
    }
    let settings = settings(args)?;
    if !args.host.is_loopback() && settings.keys.is_empty() {
        ui::note(&format!("warning: everybody who can reach {} may ask; --api-key closes the server", args.host));
    }
    let all: Vec<String> = names.iter().map(|named| named.name.clone()).collect();
    let loader = Models { names, args: ModelArgs::of(args), device: OnceLock::new() };
    let host = args.host.to_string();
    let server = Server::bind((&host, args.port), all.clone(), Box::new(loader), settings);
    let server = server.map_err(|e| {
        let remedy = "free the address, or choose another with --host and --port";
        Failure::new(format!("cannot listen at {host}, port {}", args.port), remedy).caused_by(e)
    })?;
    for name in &all[..args.models.len()] {
        server.load(name).with_context(|| format!("cannot load `{name}`"))?;
    }
    let address = server.address();
    let closing = server.on_signal(move |count| told(count, address)).run().context("the server failed")?;
    ui::note(&match (closing.open, closing.cut_off) {
        (0, _) => "stopped".to_owned(),
        (open, 0) => format!("stopped; {open} open requests were finished"),
        (open, cut_off) => format!("stopped; of {open} open requests {cut_off} replies were cut off"),
    });
    Ok(())
}

/// A signal came, the first or another; or none yet, and would be heard.
fn told(count: usize, address: SocketAddr) {
    match count {
        0 => ui::note(&format!("listening at http://{address}")),
        1 => ui::note("stopping when all replies are done; another signal stops at once"),
        _ => std::process::exit(130),
    }
}

fn settings(args: &Serve) -> Result<Settings> {
    let mut keys = ApiKeys::new(args.api_key.iter().cloned())?;
    if let Some(file) = &args.api_key_file {
        keys = keys.with_file(file)?;
    }
    Ok(Settings {
        keys,
        cors_origins: args.cors_origin.clone(),
        body_bytes_max: args.limits.max_body << 20,
        deadline: args.limits.timeout.map(Duration::from_secs),
        grace: Duration::from_secs(args.limits.grace),
        ..Settings::default()
    })
}

/// A model and what requests call it.
struct Named {
    name: String,
    model: String,
}

impl Named {
    /// `NAME=MODEL`, or a model that is its own name. (`synth:` models have `=` in them, and no name has a colon before it.)
    fn parse(text: &str) -> Named {
        let sound =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        match text.split_once('=') {
            Some((name, model)) if sound(name) => Named { name: name.to_owned(), model: model.to_owned() },
            _ => Named { name: text.to_owned(), model: text.to_owned() },
        }
    }
}

/// What loading needs of the flags.
struct ModelArgs {
    template: Option<String>,
    draft: Option<String>,
    mtp: Mtp,
    pooling: Option<Pooling>,
    limits: Limits,
    compute: Compute,
    placement: Placement,
    cache: Cache,
}

impl ModelArgs {
    fn of(args: &Serve) -> ModelArgs {
        ModelArgs {
            template: args.template.clone(),
            draft: args.draft.clone(),
            mtp: args.mtp.clone(),
            pooling: args.pooling.as_deref().and_then(Pooling::parse),
            limits: args.limits.clone(),
            compute: args.compute.clone(),
            placement: args.placement.clone(),
            cache: args.cache.clone(),
        }
    }
}

/// Loads models by their names. All run on one device, which takes their steps in turns.
struct Models {
    names: Vec<Named>,
    args: ModelArgs,
    device: OnceLock<Opened>,
}

impl Loader for Models {
    fn load(&self, name: &str) -> Result<Loaded, Problem> {
        self.loaded(name).map_err(|e| Problem::unavailable(ui::describe(&e, false).trim_end().to_owned()))
    }
}

impl Models {
    fn device(&self) -> Result<Opened> {
        if let Some(device) = self.device.get() {
            return Ok(device.clone());
        }
        let device = Opened::open(&self.args.compute, &self.args.placement)?;
        Ok(self.device.get_or_init(|| device).clone())
    }

    fn loaded(&self, name: &str) -> Result<Loaded> {
        let named = self.names.iter().find(|named| named.name == name).context("no such model")?;
        let checkpoint = self.args.mtp.join(model::open_checkpoint(&named.model)?)?;
        let tokenizer = Arc::new(checkpoint.tokenizer()?);
        let template = self.template(name, &checkpoint, &tokenizer)?;
        let (device, limits) = (self.device()?, &self.args.limits);
        let sequences = self.sequences(&checkpoint)?;
        let options = Options {
            slots: limits.max_batch,
            queue: limits.queue,
            step_tokens: self.step_tokens()?,
            context: limits.context,
            pooling: self.args.pooling,
            ..Options::default()
        };
        let reserved = (sequences.total_pages() * tessera_ops::PAGE_TOKENS, sequences.cache_bytes());
        let mut engine = Engine::new(sequences, tokenizer.clone(), options, Box::new(MonotonicClock::default()));
        if let Some(draft) = &self.args.draft {
            let checkpoint = model::open_checkpoint(draft)?;
            let small = DraftModel::new(self.sequences(&checkpoint)?, &checkpoint.tokenizer()?, &tokenizer);
            engine =
                engine.with_drafter(Box::new(small.with_context(|| format!("`{draft}` cannot guess for `{name}`"))?));
        }
        ui::note(&format!(
            "{name}: {}; cache of {} tokens reserved, {}; {} of a request at most, {} requests at once",
            device.name(),
            reserved.0,
            ui::size(reserved.1 as u64),
            engine.context(),
            limits.max_batch,
        ));
        let largest = kernels::largest(&checkpoint)?;
        Ok(Loaded {
            engine: EngineHandle::start(engine).context("no thread for the engine")?,
            template,
            device: device.name(),
            kernel: Box::new(move |rows| {
                let kernel = largest.and_then(|shape| device.kernel(&shape, rows));
                kernel.unwrap_or_else(|| "none".to_owned())
            }),
        })
    }

    /// Tokens of a step: what the flags say, or what the device likes best.
    fn step_tokens(&self) -> Result<usize> {
        Ok(self.args.limits.step_tokens.unwrap_or(self.device()?.chunk()))
    }

    /// The model's own template, or the one that the flags name for models without.
    fn template(&self, name: &str, checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let own = checkpoint.chat_template()?.filter(|source| !source.trim().is_empty());
        if let Some(source) = own {
            return Ok(Some(ChatTemplate::new(checkpoint.file(), Some(&source), tokenizer)?));
        }
        if let Some(named) = &self.args.template {
            return Ok(Some(ChatTemplate::built_in(named, tokenizer)?));
        }
        ui::note(&format!("note: `{name}` has no chat template, so it continues texts only; --template names one"));
        Ok(None)
    }

    /// The model on the device, with its cache.
    fn sequences(&self, checkpoint: &Checkpoint) -> Result<Sequences> {
        models::check_architecture(checkpoint)?;
        let options = LoadOptions {
            context: Some(self.args.limits.cache_tokens),
            sequences: self.args.limits.max_batch,
            step_rows: self.step_tokens()?,
            ..self.args.cache.options()
        };
        let bar = ui::bytes_bar("loading", checkpoint.tensors().iter().map(|t| t.bytes.len() as u64).sum());
        let model = self.device()?.load(checkpoint, &options, &mut |progress| {
            bar.set_position(progress.bytes_done);
        });
        bar.finish_and_clear();
        Ok(Sequences::new(model?))
    }
}
