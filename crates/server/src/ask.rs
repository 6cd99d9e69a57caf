//! What is asked of a model, whichever API it came through; and how it becomes jobs of the engine.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use tessera_engine::{
    ChatFormat, Request, SamplingParams, Special,
    serving::{Constraint, Job, Speculation},
};

use crate::{
    again::Again,
    answer::Answer,
    app::App,
    calls::{self, From},
    catalog::Model,
    conversation::{Conversation, Prepared, Reader},
    grammar::{Held, Shape, Thoughts},
    problem::Problem,
    tools::ToolUse,
};

/// What a reply goes on from.
#[derive(Clone, Debug)]
pub(crate) enum Prompt {
    Conversation(Box<Conversation>),
    /// To be continued as it is.
    Text(String),
    Tokens(Vec<u32>),
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) prompts: Vec<Prompt>,
    /// Replies to each.
    pub(crate) replies: usize,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: Vec<String>,
    pub(crate) tokens_max: Option<usize>,
    pub(crate) ignore_end: bool,
    /// Asks for embeddings of the prompts in the place of replies.
    pub(crate) embed: bool,
    /// What replies must look like, with the field that says so.
    pub(crate) shape: Option<(Shape, String)>,
    pub(crate) speculation: Speculation,
    pub(crate) priority: i32,
    pub(crate) deadline: Option<Duration>,
}

impl Ask {
    /// A request for one reply to each prompt, as APIs have it by default: drawn from the model's own distribution.
    pub(crate) fn new(prompts: Vec<Prompt>) -> Ask {
        let sampling = SamplingParams { temperature: 1.0, seed: RandomState::new().hash_one(()), ..Default::default() };
        Ask {
            prompts,
            replies: 1,
            sampling,
            stop: Vec::new(),
            tokens_max: None,
            ignore_end: false,
            embed: false,
            shape: None,
            speculation: Speculation::Auto,
            priority: 0,
            deadline: None,
        }
    }

    /// Hands it to the model's engine. Templates, tokenizers and grammars may take their time: this waits on another thread.
    pub(crate) async fn submit(self, app: &Arc<App>, model: &Arc<Model>) -> Result<Answer, Problem> {
        let (app, model) = (app.clone(), model.clone());
        let task = tokio::task::spawn_blocking(move || self.submit_here(&app, &model));
        task.await.unwrap_or_else(|e| Err(Problem::internal(format!("the request could not be read: {e}"))))
    }

    fn submit_here(self, app: &App, model: &Arc<Model>) -> Result<Answer, Problem> {
        let (choices, most) = (self.prompts.len() * self.replies, app.settings.choices_max);
        if choices > most {
            let message = format!("{choices} replies are asked for; this server gives at most {most} to a request");
            return Err(Problem::invalid(message).about("n"));
        }
        let deadline = match (self.deadline, app.settings.deadline) {
            (Some(own), Some(server)) => Some(own.min(server)),
            (own, server) => own.or(server),
        };
        let mut jobs = Vec::with_capacity(choices);
        for prompt in &self.prompts {
            let prepared = prepare(prompt, model)?;
            let calls = may_call(prompt, &prepared);
            for reply in 0..self.replies {
                let job = self.job(prompt, &prepared, reply, deadline, model)?;
                let again = calls.as_ref().map(|(format, tools)| Again::new(&job, format, tools.clone()));
                jobs.push((job, reader(&prepared, model), again));
            }
        }
        Answer::submit(model.clone(), app.metrics.clone(), jobs)
    }

    /// The job of a reply to a prompt. Replies to one prompt differ in their seeds; the first has the one that was asked for.
    fn job(
        &self,
        prompt: &Prompt,
        prepared: &Prepared,
        reply: usize,
        deadline: Option<Duration>,
        model: &Model,
    ) -> Result<Job, Problem> {
        let seed = self.sampling.seed.wrapping_add(reply as u64);
        let request = Request {
            prompt: prepared.tokens.clone(),
            sampling: SamplingParams { seed, ..self.sampling.clone() },
            stop: self.stop.clone(),
            tokens_max: self.tokens_max,
            ignore_end: self.ignore_end,
            specials: prepared.chat.is_some(),
        };
        let constraint = self.constraint(prompt, prepared, model)?;
        let (speculation, priority) = (self.speculation, self.priority);
        Ok(Job { request, constraint, speculation, priority, embed: self.embed, deadline })
    }

    /// What a reply to a prompt is held to, if it is.
    fn constraint(
        &self,
        prompt: &Prompt,
        prepared: &Prepared,
        model: &Model,
    ) -> Result<Option<Box<dyn Constraint>>, Problem> {
        let shape = self.shape.as_ref().map(|(shape, param)| (shape, param.as_str()));
        let mut held = Held { shape, calls: None, thoughts: None };
        if let (Prompt::Conversation(conversation), Some(chat)) = (prompt, &prepared.chat) {
            let tools = &conversation.tools;
            let (must, may) = (tools.must_call(), shape.is_some() && tools.callable().next().is_some());
            if must || may {
                let rules = calls::rules(chat.format, model.tokenizer(), tools, From::First);
                held.calls = rules.map(|rules| (rules, must));
            }
            if held.calls.is_some() || shape.is_some() {
                let open = chat.parser(model).thinking();
                held.thoughts = Thoughts::of(chat.format, model.tokenizer(), open, !chat.no_thoughts);
            }
        }
        let asked = held.shape.is_some() || held.calls.is_some();
        asked.then(|| model.grammars().constraint(&held)).transpose()
    }
}

/// The tools that a reply may call, and how calls are written.
fn may_call(prompt: &Prompt, prepared: &Prepared) -> Option<(&'static ChatFormat, Arc<ToolUse>)> {
    let (Prompt::Conversation(conversation), Some(chat)) = (prompt, &prepared.chat) else { return None };
    let may = conversation.tools.callable().next().is_some();
    may.then(|| (chat.format, Arc::new(conversation.tools.clone())))
}

fn reader(prepared: &Prepared, model: &Model) -> Reader {
    prepared.chat.as_ref().map_or_else(Reader::plain, |chat| chat.reader(model))
}

fn prepare(prompt: &Prompt, model: &Model) -> Result<Prepared, Problem> {
    let tokens = match prompt {
        Prompt::Conversation(conversation) => return conversation.prompt(model),
        Prompt::Tokens(tokens) => tokens.clone(),
        Prompt::Text(text) => {
            let tokens = model.tokenizer().encode(text, Special::Plain, true);
            tokens.map_err(|e| Problem::invalid(e.to_string()).about("prompt"))?
        }
    };
    Ok(Prepared { tokens, chat: None })
}
