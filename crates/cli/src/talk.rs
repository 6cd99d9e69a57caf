//! Conversations: the flags of `run` and `chat`, messages to tokens, and replies shown as they come.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use clap::{Args, builder::PossibleValuesParser};
use serde_json::json;
use tessera_engine::{
    ChatEvent, ChatFormat, ChatTemplate, Message, ReplyParser, TemplateOptions, Tokenizer,
    chat::{self, FAMILIES, Reply, Think, Tools},
    chat_template::BUILT_IN,
};

use crate::ui::{self, Failure};

/// How messages become a prompt, and a reply becomes thoughts, words and calls.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Conversation")]
pub(crate) struct Talk {
    /// Use a built-in chat template in place of the model's own
    #[arg(long, value_name = "NAME", value_parser = templates())]
    pub(crate) template: Option<String>,
    /// How thinking and calls are written, if it is not as the template says
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(FAMILIES.each_ref().map(|f| f.name)))]
    pub(crate) chat_format: Option<String>,
    /// Think first, if the model can be asked to; some take how much: --think=low, medium or high
    #[arg(long, value_name = "EFFORT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(crate) think: Option<String>,
    /// Answer without thinking, or with as little as the model can
    #[arg(long, conflicts_with = "think")]
    pub(crate) no_think: bool,
    /// Print thoughts too where the output is no terminal
    #[arg(long)]
    pub(crate) show_thinking: bool,
    /// Print no thoughts on a terminal either
    #[arg(long, conflicts_with = "show_thinking")]
    pub(crate) hide_thinking: bool,
}

/// The names of the built-in chat templates.
pub(crate) fn templates() -> PossibleValuesParser {
    PossibleValuesParser::new(BUILT_IN.map(|(name, _)| name))
}

/// A template, and what is known of the replies to it.
pub(crate) struct Conversation {
    template: ChatTemplate,
    format: &'static ChatFormat,
    options: TemplateOptions,
    tools: Arc<Tools>,
}

impl Conversation {
    /// With the template `own` of a model, unless the flags name another, and the tools of a file.
    ///
    /// # Errors
    /// Where there is no template or it does not compile, or the tools cannot be read.
    pub(crate) fn new(
        flags: &Talk,
        own: impl FnOnce() -> Result<ChatTemplate>,
        tokenizer: &Tokenizer,
        tools: Option<&Path>,
    ) -> Result<Conversation> {
        let template = match &flags.template {
            Some(name) => ChatTemplate::built_in(name, tokenizer)?,
            None => own()?,
        };
        let named = flags.chat_format.as_deref().and_then(ChatFormat::named);
        let has_token = |text: &str| tokenizer.token_id(text).is_some();
        let format = named.unwrap_or_else(|| ChatFormat::recognise(template.source(), has_token));
        let mut options = TemplateOptions::default();
        if let Some(think) = flags.asked_for() {
            options.variables = format.variables(&think);
            if !options.variables.keys().any(|name| template.mentions(name)) {
                ui::note("note: this model has no switch for thinking");
            }
        }
        let mut known = Tools::default();
        if let Some(path) = tools {
            let text = read_tools(path)?;
            known = Tools::parse(&text)?;
            options.tools = Some(text);
            if !template.mentions("tools") {
                ui::note("note: the chat template of this model knows no tools; it will not hear of them");
            }
        }
        Ok(Conversation { template, format, options, tools: Arc::new(known) })
    }

    /// The tokens up to where the model is to speak, and what reads its reply.
    ///
    /// # Errors
    /// Where the template fails or refuses the messages.
    pub(crate) fn prompt(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<(Vec<u32>, ReplyParser)> {
        let (text, tokens) = chat::prompt(&self.template, self.format, tokenizer, messages, &self.options)?;
        let parser = ReplyParser::new(self.format, self.tools.clone());
        Ok((tokens, parser.with_tokenizer(tokenizer).after_prompt(&text)))
    }
}

impl Talk {
    fn asked_for(&self) -> Option<Think> {
        match &self.think {
            _ if self.no_think => Some(Think::Off),
            Some(effort) if effort.is_empty() => Some(Think::On),
            Some(effort) => Some(Think::Effort(effort.clone())),
            None => None,
        }
    }
}

fn read_tools(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other));
    let failed =
        |e| Failure::new(format!("cannot read the tools in {}", path.display()), "name a JSON file").caused_by(e);
    Ok(bytes.map_err(failed)?)
}

/// Prints a reply as it comes: content as it is, thoughts dimmed on a terminal, calls as JSON.
pub(crate) struct Show {
    thoughts: bool,
    colours: bool,
    /// What was printed last.
    last: Last,
    reply: Reply,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Thoughts,
    Content,
    Call,
}

impl Show {
    /// As the flags and the terminal have it.
    pub(crate) fn new(flags: &Talk) -> Show {
        let thoughts = flags.show_thinking || io::stdout().is_terminal() && !flags.hide_thinking;
        Show { thoughts, colours: ui::stdout_colours(), last: Last::Nothing, reply: Reply::default() }
    }

    /// Prints the next piece.
    ///
    /// # Errors
    /// Where the output is closed.
    pub(crate) fn event(&mut self, event: &ChatEvent) -> Result<()> {
        Ok(self.write(event, &mut io::stdout().lock())?)
    }

    fn write(&mut self, event: &ChatEvent, out: &mut impl Write) -> io::Result<()> {
        self.reply.add(event);
        match event {
            ChatEvent::Reasoning(text) if self.thoughts => {
                self.between(Last::Thoughts, out)?;
                out.write_all(ui::styled(text, "2", self.colours).as_bytes())?;
            }
            ChatEvent::Content(text) => {
                self.between(Last::Content, out)?;
                out.write_all(text.as_bytes())?;
            }
            ChatEvent::ToolCallEnd { index, .. } => {
                self.between(Last::Call, out)?;
                out.write_all(line(&self.reply.calls[*index]).as_bytes())?;
            }
            _ => {}
        }
        out.flush()
    }

    /// What stands between the last piece and one of another kind.
    fn between(&mut self, next: Last, out: &mut impl Write) -> io::Result<()> {
        let gap = match (self.last, next) {
            (Last::Nothing, _) | (Last::Thoughts, Last::Thoughts) | (Last::Content, Last::Content) => "",
            (Last::Thoughts, _) => "\n\n",
            _ => "\n",
        };
        self.last = next;
        out.write_all(gap.as_bytes())
    }
}

/// A call as one line of JSON. The arguments stay as they were written, with their keys in order.
fn line(call: &chat::ToolCall) -> String {
    format!("{{\"name\": {}, \"arguments\": {}}}", json!(call.function.name), call.function.arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_shown_by_kind() {
        let parser = || ReplyParser::new(ChatFormat::named("qwen3").unwrap(), Arc::default());
        let reply = "<think>\nHm.\n</think>\n\nI look.\n<tool_call>{\"name\":\"f\",\"arguments\":{\"b\":1, \"a\":2}}</tool_call>\
                     <tool_call>{\"name\":\"g\"}</tool_call>Done.";
        let calls = "I look.\n{\"name\": \"f\", \"arguments\": {\"b\":1, \"a\":2}}\n{\"name\": \"g\", \"arguments\": {}}\nDone.";
        let cases = [
            (false, false, calls.to_owned()),
            (true, false, format!("Hm.\n\n{calls}")),
            (true, true, format!("\x1b[2mHm.\x1b[0m\n\n{calls}")),
        ];
        for (thoughts, colours, expect) in cases {
            let (mut parser, mut events, mut out) = (parser(), Vec::new(), Vec::new());
            let mut show = Show { thoughts, colours, last: Last::Nothing, reply: Reply::default() };
            parser.push(reply, &mut events);
            parser.finish(&mut events);
            events.iter().for_each(|event| show.write(event, &mut out).unwrap());
            assert_eq!(String::from_utf8(out).unwrap(), expect);
        }
    }
}
