//! The models that the server knows by name, loaded and unloaded.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tessera_engine::{ChatFormat, ChatTemplate, Tokenizer, serving::EngineHandle};

use crate::{
    app::now,
    grammar::Grammars,
    problem::{Kind, Problem},
    sampled::SampledCalls,
};

/// Makes engines from the names that the server was given. It is called on a thread that may wait.
pub trait Loader: Send + Sync + 'static {
    /// Loads the model of this name.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    fn load(&self, name: &str) -> Result<Loaded, Problem>;
}

/// A model that was loaded.
pub struct Loaded {
    /// Its engine, running.
    pub engine: EngineHandle,
    /// How messages become a prompt; without it, only plain completions are served.
    pub template: Option<ChatTemplate>,
    /// The device, for people.
    pub device: String,
    /// The name of the kernel that multiplies so many rows, for people.
    pub kernel: Box<dyn Fn(usize) -> String + Send + Sync>,
}

/// A model that requests can name.
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) loaded: Loaded,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// How it writes thoughts and calls.
    pub(crate) format: &'static ChatFormat,
    grammars: OnceLock<Grammars>,
    /// The calls that it made.
    pub(crate) calls: SampledCalls,
}

impl Model {
    fn new(name: &str, loaded: Loaded) -> Model {
        let tokenizer = loaded.engine.tokenizer();
        let source = loaded.template.as_ref().map_or("", ChatTemplate::source);
        let format = ChatFormat::recognise(source, |text| tokenizer.token_id(text).is_some());
        let (grammars, calls) = (OnceLock::new(), SampledCalls::default());
        Model { name: name.to_owned(), loaded, created: now(), format, grammars, calls }
    }

    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.loaded.engine
    }

    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        self.loaded.engine.tokenizer()
    }

    /// What makes constraints for its vocabulary; made when it is first needed.
    pub(crate) fn grammars(&self) -> &Grammars {
        self.grammars.get_or_init(|| Grammars::new(self.tokenizer()))
    }
}

/// Whether a model can be used.
#[derive(Clone)]
pub(crate) enum State {
    Unloaded,
    Loading,
    Loaded(Arc<Model>),
}

impl State {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            State::Unloaded => "unloaded",
            State::Loading => "loading",
            State::Loaded(_) => "loaded",
        }
    }
}

/// All models, in the order in which they were named.
pub(crate) struct Catalog {
    loader: Box<dyn Loader>,
    models: Mutex<Vec<(String, State)>>,
}

impl Catalog {
    pub(crate) fn new(loader: Box<dyn Loader>, names: Vec<String>) -> Catalog {
        let models = names.into_iter().map(|name| (name, State::Unloaded)).collect();
        Catalog { loader, models: Mutex::new(models) }
    }

    fn models(&self) -> MutexGuard<'_, Vec<(String, State)>> {
        // States are replaced as a whole, so a panic elsewhere leaves them sound.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All names with their states.
    pub(crate) fn all(&self) -> Vec<(String, State)> {
        self.models().clone()
    }

    /// The models that are loaded.
    pub(crate) fn loaded(&self) -> Vec<Arc<Model>> {
        let loaded = |(_, state): (String, State)| match state {
            State::Loaded(model) => Some(model),
            State::Unloaded | State::Loading => None,
        };
        self.all().into_iter().filter_map(loaded).collect()
    }

    /// The model that a request names. Without a name, the only one that the server has.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<Arc<Model>, Problem> {
        let models = self.models();
        let name = match (name, &models[..]) {
            (Some(name), _) => name,
            (None, [(only, _)]) => only,
            (None, _) => return Err(Problem::invalid("`model` is missing").about("model")),
        };
        match models.iter().find(|(known, _)| known == name) {
            Some((_, State::Loaded(model))) => Ok(model.clone()),
            Some((_, state)) => Err(absent(&format!("the model `{name}` is {}", state.name()))),
            None => {
                let names: Vec<&str> = models.iter().map(|(name, _)| name.as_str()).collect();
                let name: String = name.chars().take(100).collect();
                Err(absent(&format!("there is no model `{name}`; this server has `{}`", names.join("`, `"))))
            }
        }
    }

    fn replace(&self, name: &str, change: impl FnOnce(&State) -> Option<State>) -> Result<Option<State>, Problem> {
        let mut models = self.models();
        let Some((_, state)) = models.iter_mut().find(|(known, _)| known == name) else {
            return Err(absent(&format!(
                "there is no model `{name}`; only those that the server was started with load"
            )));
        };
        Ok(change(state).map(|new| std::mem::replace(state, new)))
    }

    /// Loads a model, unless it is loaded. Gives whether it had to be. It waits: not for a thread that serves.
    pub(crate) fn load(&self, name: &str) -> Result<bool, Problem> {
        let claimed = self.replace(name, |state| match state {
            State::Unloaded => Some(State::Loading),
            State::Loading | State::Loaded(_) => None,
        })?;
        if claimed.is_none() {
            return Ok(false);
        }
        // However the loading ends, the model does not stay half loaded.
        struct Claim<'a>(&'a Catalog, &'a str, State);
        impl Drop for Claim<'_> {
            fn drop(&mut self) {
                let state = std::mem::replace(&mut self.2, State::Unloaded);
                let _ = self.0.replace(self.1, |_| Some(state)); // the name is known
            }
        }
        let mut claim = Claim(self, name, State::Unloaded);
        let loaded = self.loader.load(name)?;
        claim.2 = State::Loaded(Arc::new(Model::new(name, loaded)));
        Ok(true)
    }

    /// Takes a model away from new requests at once, and ends it when its replies are done, or cut off after `within`. Gives
    /// how many were cut off; none if it was not loaded. It waits.
    pub(crate) fn unload(&self, name: &str, within: Duration) -> Result<Option<usize>, Problem> {
        let before = self.replace(name, |state| match state {
            State::Loaded(_) => Some(State::Unloaded),
            State::Unloaded | State::Loading => None,
        })?;
        match before {
            Some(State::Loaded(model)) => Ok(Some(model.engine().stop(within).unwrap_or(0))),
            _ => Ok(None),
        }
    }
}

fn absent(message: &str) -> Problem {
    Problem::new(Kind::NotFound, message).about("model").coded("model_not_found")
}
