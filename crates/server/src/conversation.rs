//! Messages on their way to a prompt, and the text of a reply on its way to thoughts, words and calls.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
pub(crate) use tessera_engine::chat::{ChatEvent, Message, Reply, ToolCall};
use tessera_engine::{
    ChatFormat, ReplyParser, Special, TemplateOptions,
    chat::{self, Calls, LostCall, PromptError, Rest, Think, Tools},
};

use crate::{
    app::fresh_id,
    catalog::Model,
    described,
    problem::Problem,
    tools::{Choice, ToolUse},
};

/// A conversation that is to go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: ToolUse,
    /// How much to think: `on`, `none`, `minimal`, or in the model's own words; none: as the model does by itself.
    pub(crate) think: Option<String>,
    /// How the reply begins: it goes on from there.
    pub(crate) begun: String,
    /// More variables of the template.
    pub(crate) variables: BTreeMap<String, Value>,
}

/// A prompt, and what is known of the replies to it.
pub(crate) struct Prepared {
    pub(crate) tokens: Vec<u32>,
    /// None: a text to be continued.
    pub(crate) chat: Option<Chat>,
}

/// What is known of the replies in a conversation.
pub(crate) struct Chat {
    /// The prompt's text.
    prompt: String,
    pub(crate) format: &'static ChatFormat,
    /// None: there are to be no calls, for none were offered or none are wanted. What looks like one is content.
    tools: Option<Arc<Tools>>,
    one_only: bool,
    /// Whether thinking was switched off.
    pub(crate) no_thoughts: bool,
}

impl Chat {
    /// A parser for a reply.
    pub(crate) fn parser(&self, model: &Model) -> ReplyParser {
        let parser = ReplyParser::new(self.format, self.tools.clone().unwrap_or_default());
        let parser = if self.tools.is_some() { parser } else { parser.without_calls() };
        let parser = parser.with_tokenizer(model.tokenizer());
        parser.with_ids(fresh_id("call_") + "_").after_prompt(&self.prompt)
    }

    /// Reads a reply.
    pub(crate) fn reader(&self, model: &Model) -> Reader {
        Reader { parser: Some(Box::new(self.parser(model))), one_only: self.one_only, called: false }
    }
}

/// Reads a reply as it comes.
#[derive(Debug)]
pub(crate) struct Reader {
    /// None: all of it is content.
    parser: Option<Box<ReplyParser>>,
    one_only: bool,
    called: bool,
}

impl Reader {
    /// Reads a text that is no conversation.
    pub(crate) fn plain() -> Reader {
        Reader { parser: None, one_only: false, called: false }
    }

    pub(crate) fn read(&mut self, text: String, out: &mut Vec<ChatEvent>) {
        match &mut self.parser {
            Some(parser) => parser.read(&text, out),
            None if text.is_empty() => {}
            None => out.push(ChatEvent::Content(text)),
        }
        self.cut(out);
    }

    /// At the end of the reply.
    pub(crate) fn finish(&mut self, out: &mut Vec<ChatEvent>) {
        if let Some(parser) = &mut self.parser {
            parser.finish(out);
        }
        self.cut(out);
    }

    /// Where a reply that is cut here can go on with a call, if it can.
    pub(crate) fn rest(&self) -> Option<Rest> {
        self.parser.as_ref().and_then(|parser| parser.rest())
    }

    /// The first call in what was read since the last time that broke beyond repair.
    pub(crate) fn take_lost(&mut self, read: &[ChatEvent]) -> Option<LostCall> {
        let lost = self.parser.as_mut().and_then(|parser| parser.take_lost());
        lost.filter(|lost| lost.event < read.len()) // it may have been left out
    }

    /// Whether a call was told to its end.
    pub(crate) fn has_called(&self) -> bool {
        self.parser.as_ref().is_some_and(|parser| parser.calls() > 0)
    }

    /// What is read next follows the last place before this call where the reply could be cut.
    pub(crate) fn restart(&mut self, lost: LostCall) {
        if let Some(parser) = &mut self.parser {
            parser.restart(lost);
        }
    }

    /// Whether nothing more of the reply is wanted: it called a tool, and no more than one call was asked for.
    pub(crate) fn is_done(&self) -> bool {
        self.one_only && self.called
    }

    /// Leaves out what comes after the only call.
    fn cut(&mut self, out: &mut Vec<ChatEvent>) {
        if !self.one_only {
            return;
        }
        if self.called {
            return out.clear();
        }
        if let Some(at) = out.iter().position(|event| matches!(event, ChatEvent::ToolCallEnd { .. })) {
            out.truncate(at + 1);
            self.called = true;
        }
    }
}

impl Conversation {
    /// The tokens up to where the model is to speak, and what is known of the replies.
    pub(crate) fn prompt(&self, model: &Model) -> Result<Prepared, Problem> {
        let Some(template) = &model.loaded.template else {
            let message = format!("the model `{}` has no chat template; use /v1/completions", model.name);
            return Err(Problem::invalid(message).about("model"));
        };
        let tools = if self.tools.choice == Choice::None { &[][..] } else { &self.tools.list };
        let talks_of_tools =
            !tools.is_empty() || self.messages.iter().any(|m| !m.tool_calls.is_empty() || m.role == "tool");
        let own = model.format;
        let described = talks_of_tools && !(own.calls_tools() && template.mentions("tools"));
        let format = if described { described::format(own) } else { own };
        let mut options = TemplateOptions { variables: self.switches(model)?, ..TemplateOptions::default() };
        let list = serde_json::to_string(tools).unwrap_or_default();
        let mut messages = if described { described::messages(&self.messages, tools) } else { self.messages.clone() };
        model.calls.recall(&mut messages);
        let known = Tools::parse(&list).map_err(|e| Problem::invalid(e.to_string()).about("tools"))?;
        let known = (!tools.is_empty()).then(|| Arc::new(known));
        options.tools = Some(list).filter(|_| !described && !tools.is_empty());
        let (prompt, mut tokens) =
            chat::prompt(template, format, model.tokenizer(), &messages, &options).map_err(refused)?;
        let one_only = self.tools.one_only;
        let no_thoughts = self.think() == Some(Think::Off);
        let chat = Chat { prompt, format, tools: known, one_only, no_thoughts };
        tokens.extend(self.begun(&chat, model)?);
        Ok(Prepared { tokens, chat: Some(chat) })
    }

    /// The tokens of the reply's beginning.
    fn begun(&self, chat: &Chat, model: &Model) -> Result<Vec<u32>, Problem> {
        if self.begun.is_empty() {
            return Ok(Vec::new());
        }
        let why = match chat.format.calls {
            Calls::Channels { .. } => "heads each part of a reply by its kind",
            _ if chat.parser(model).thinking() => "thinks first; switch thinking off",
            _ => return model.tokenizer().encode(&self.begun, Special::Plain, false).map_err(|e| refused(e.into())),
        };
        let message = format!("a reply of the model `{}` cannot be begun: it {why}", model.name);
        Err(Problem::invalid(message).about("messages"))
    }

    fn think(&self) -> Option<Think> {
        Some(match self.think.as_deref()? {
            "on" => Think::On,
            "none" | "minimal" => Think::Off,
            // No model has a word for more.
            "xhigh" | "max" => Think::Effort("high".to_owned()),
            word => Think::Effort(word.to_owned()),
        })
    }

    /// The variables of the template: those that switch thinking, and those of the request.
    fn switches(&self, model: &Model) -> Result<BTreeMap<String, Value>, Problem> {
        let mut variables = BTreeMap::new();
        if let Some(think) = self.think() {
            variables = model.format.variables(&think);
            let template = model.loaded.template.as_ref();
            let heard = variables.keys().any(|name| template.is_some_and(|t| t.mentions(name)));
            // Who does not think is not to be kept from it.
            let moot = think == Think::Off && !model.format.thinks();
            if !heard && !moot {
                let message = format!("the thinking of the model `{}` cannot be switched; leave it out", model.name);
                return Err(Problem::invalid(message).about("reasoning_effort"));
            }
        }
        variables.extend(self.variables.clone());
        Ok(variables)
    }
}

fn refused(error: PromptError) -> Problem {
    Problem::invalid(error.to_string()).about("messages")
}
