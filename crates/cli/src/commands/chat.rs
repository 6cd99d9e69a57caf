//! `tessera chat`: a conversation of many turns.
//!
//! Ctrl-C while the model speaks stops the reply and keeps what was said; at the prompt it clears the line. Ctrl-D and
//! `/exit` leave. Where stdin is no terminal each line is a turn, and nothing but replies is printed.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use rustyline::{DefaultEditor, error::ReadlineError};
use tessera_engine::Message;

use crate::{
    args::Chat,
    generation::{Piece, reply, request},
    model::Model,
    store::Store,
    talk::{Conversation, Show},
    ui::{self, Failure},
};

const HELP: &str = "\
/help         this
/clear        forget the conversation
/save FILE    write the conversation as JSON
/exit         leave, as Ctrl-D does
Ctrl-C        stop the reply";
/// Lines kept in the history file.
const HISTORY_LINES: usize = 1000;

/// Holds the conversation until its user leaves.
pub(crate) fn main(args: &Chat) -> Result<()> {
    let mut model = Model::open(&args.model, &args.engine)?.keeping(&args.keep);
    let talk = model.conversation(&args.talk, None)?;
    let mut input = Input::open()?;
    let stop = Arc::new(AtomicBool::new(false));
    let handler = stop.clone();
    // The only handler of this process; at the prompt the terminal is raw and Ctrl-C is a key like others.
    let set = ctrlc::set_handler(move || handler.store(true, Ordering::Relaxed));
    set.map_err(|e| Failure::new("Ctrl-C cannot be watched", "use `tessera run`").caused_by(e))?;
    if input.is_terminal() {
        ui::note(&format!("{}: /help shows the commands, Ctrl-D leaves", args.model));
    }
    let opening: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut turns = opening.clone();
    while let Some(line) = input.line()? {
        match Line::parse(&line) {
            Line::Empty => {}
            Line::Exit => break,
            Line::Help => ui::note(HELP),
            Line::Clear => turns.clone_from(&opening),
            Line::Save(path) => report(save(&path, &turns), || format!("saved to {}", path.display())),
            Line::Unknown(command) => ui::note(&format!("there is no command {command}; /help shows the commands")),
            Line::Say(text) => {
                turns.push(Message::new("user", text));
                stop.store(false, Ordering::Relaxed);
                match answer(args, &mut model, &talk, &turns, &stop) {
                    Ok(message) => turns.push(message),
                    // Nobody reads any more: that ends the program, and not with an error.
                    Err(error) if crate::closed_output(&error) => return Err(error),
                    // Such as a full context: the conversation can be cleared or saved.
                    Err(error) => {
                        turns.pop();
                        if !input.is_terminal() {
                            return Err(error);
                        }
                        ui::print_error(&error);
                    }
                }
            }
        }
    }
    model.save_state()
}

/// Generates a reply to the conversation so far, printing it as it comes.
fn answer(
    args: &Chat,
    model: &mut Model,
    talk: &Conversation,
    turns: &[Message],
    stop: &AtomicBool,
) -> Result<Message> {
    let (tokens, parser) = talk.prompt(model.tokenizer(), turns)?;
    let request = request(&args.sampling, None, tokens);
    let mut show = Show::new(&args.talk);
    let reply = reply(model, &request, Some(parser), stop, &mut |piece| match piece {
        Piece::Chat(event) => show.event(&event),
        Piece::Token(_) => Ok(()),
    })?;
    writeln!(io::stdout())?;
    if args.engine.stats {
        ui::note(&reply.stats());
    }
    Ok(reply.message.message())
}

/// Tells how something went, without ending the conversation.
fn report(result: Result<()>, good: impl FnOnce() -> String) {
    match result {
        Ok(()) => ui::note(&good()),
        Err(error) => ui::print_error(&error),
    }
}

fn save(path: &Path, turns: &[Message]) -> Result<()> {
    let text = serde_json::to_string_pretty(turns)?;
    let failed = |e| Failure::new(format!("cannot write {}", path.display()), "give another file").caused_by(e);
    Ok(std::fs::write(path, text + "\n").map_err(failed)?)
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Line {
    Empty,
    Say(String),
    Help,
    Clear,
    Save(PathBuf),
    Exit,
    Unknown(String),
}

impl Line {
    fn parse(line: &str) -> Line {
        let line = line.trim();
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("", _) => Line::Empty,
            ("/help", "") => Line::Help,
            ("/clear", "") => Line::Clear,
            ("/exit", "") => Line::Exit,
            ("/save", path) if !path.is_empty() => Line::Save(PathBuf::from(path)),
            // A path or a comment may begin with a slash too, but then it holds another one.
            (command, _) if command.starts_with('/') && !command[1..].contains('/') => {
                Line::Unknown(command.to_owned())
            }
            _ => Line::Say(line.to_owned()),
        }
    }
}

/// Where lines come from.
enum Input {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Lines,
}

impl Input {
    fn open() -> Result<Input> {
        if !io::stdin().is_terminal() {
            return Ok(Input::Lines);
        }
        let config = rustyline::Config::builder().max_history_size(HISTORY_LINES)?.build();
        let mut editor = Box::new(DefaultEditor::with_config(config)?);
        // A conversation without a history file is better than none.
        let history = Store::open().ok().map(|store| store.root().join("chat_history"));
        if let Some(path) = &history {
            let _ = editor.load_history(path);
        }
        Ok(Input::Terminal { editor, history })
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal { .. })
    }

    /// The next line; none at the end.
    fn line(&mut self) -> Result<Option<String>> {
        match self {
            Input::Lines => {
                let mut bytes = Vec::new();
                let read = io::stdin().lock().read_until(b'\n', &mut bytes)?;
                Ok((read > 0).then(|| String::from_utf8_lossy(&bytes).into_owned()))
            }
            Input::Terminal { editor, history } => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        if !line.trim().is_empty() {
                            let _ = editor.add_history_entry(line.as_str());
                            if let Some(path) = history {
                                let _ = editor.save_history(path);
                            }
                        }
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => ui::note("(Ctrl-D or /exit leaves)"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_words() {
        let say = |text: &str| Line::Say(text.to_owned());
        let cases = [
            ("", Line::Empty),
            ("  \r\n", Line::Empty),
            (" hello there\n", say("hello there")),
            ("/help", Line::Help),
            ("/clear ", Line::Clear),
            ("/exit\r\n", Line::Exit),
            ("/save a b.json", Line::Save("a b.json".into())),
            ("/save", Line::Unknown("/save".into())),
            ("/exit now", Line::Unknown("/exit".into())),
            ("/nonsense x", Line::Unknown("/nonsense".into())),
            ("/usr/bin is what?", say("/usr/bin is what?")),
            ("1 / 2", say("1 / 2")),
        ];
        for (line, expect) in cases {
            assert_eq!(Line::parse(line), expect, "{line:?}");
        }
    }
}
