//! The shape of a literal: `call:name{key:<|"|>text<|"|>,n:1,list:[true,{a:null}]}`. Keys are bare, texts stand between marks;
//! keys and texts in the quotes of JSON are understood too.

use super::{
    call::{Progress, Step},
    format::{Mark, Marks},
    json::{JsonReader, Read, escape, quoted, scalar},
};

/// Objects and lists inside one another.
const DEPTH_MAX: usize = 100;

/// A call as a literal.
#[derive(Debug)]
pub(super) struct Literal {
    /// What is left of the word before the name.
    lead: &'static str,
    state: State,
    /// For each open object true, for each open list false.
    stack: Vec<bool>,
    /// A name, a key, or a bare value.
    text: String,
    /// A comma and a key that wait for their value.
    held: String,
    reader: JsonReader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Lead,
    Name,
    /// A key, or the end of the object.
    Key,
    /// Between marks or, if true, in the quotes of JSON.
    QuotedKey(bool),
    Colon,
    Value,
    /// In a list: a value or the end.
    Item,
    Text,
    JsonText,
    Bare,
    After,
    Done,
}

impl Literal {
    pub(super) fn new(lead: &'static str) -> Literal {
        let (stack, text, held) = Default::default();
        Literal { lead, state: State::Lead, stack, text, held, reader: JsonReader::new() }
    }

    pub(super) fn active(&self) -> Marks {
        match self.state {
            State::Text | State::QuotedKey(false) => Marks::of(&[Mark::Quote]),
            State::JsonText | State::QuotedKey(true) => Marks::NONE,
            _ => Marks::of(&[Mark::Quote, Mark::CallClose]),
        }
    }

    pub(super) fn char(&mut self, c: char, call: &mut Progress) -> Step {
        match (self.state, c) {
            (State::Lead, c) => match self.lead.strip_prefix(c) {
                Some(rest) => {
                    self.lead = rest;
                    self.go(if rest.is_empty() { State::Name } else { State::Lead })
                }
                None => Step::Broken,
            },
            (State::Name, '{') if !self.text.is_empty() => {
                call.name = Some(std::mem::take(&mut self.text));
                self.open('{', call)
            }
            (State::Name, c) if c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/') => {
                self.text.push(c);
                Step::More
            }
            (State::Text, c) => {
                escape(c, &mut call.arguments, true);
                Step::More
            }
            (State::QuotedKey(true) | State::JsonText, c) => self.json(c, call),
            (State::QuotedKey(false), c) => {
                self.text.push(c);
                Step::More
            }
            (State::Bare, ',' | '}' | ']') => {
                self.end_bare(call);
                self.char(c, call)
            }
            (State::Bare, c) => {
                self.text.push(c);
                Step::More
            }
            (State::Name | State::Done, _) => Step::Broken,
            (_, c) => self.structure(c, call),
        }
    }

    /// A character between keys and values.
    fn structure(&mut self, c: char, call: &mut Progress) -> Step {
        match (self.state, c) {
            (State::Key, ':') if !self.text.trim().is_empty() => {
                self.hold_key();
                self.go(State::Value)
            }
            (State::Key, '}') if self.text.trim().is_empty() => self.close(c, call),
            (State::Key, '"') if self.text.trim().is_empty() => self.json_text(State::QuotedKey(true), call),
            (State::Key, ',' | '}') => Step::Broken, // a key without a value
            (State::Key, c) => {
                self.text.push(c);
                Step::More
            }
            (_, c) if c.is_whitespace() => Step::More,
            (State::Colon, ':') => self.go(State::Value),
            (State::After, ',') => {
                self.held = ", ".to_owned();
                let object = self.stack.last() == Some(&true);
                self.go(if object { State::Key } else { State::Item })
            }
            (State::After, '}') | (State::After | State::Item, ']') => self.close(c, call),
            (State::Value | State::Item, '{' | '[') => self.open(c, call),
            (State::Value | State::Item, '"') => {
                self.give_held(call);
                self.json_text(State::JsonText, call)
            }
            (State::Value | State::Item, c) if !matches!(c, ',' | '}' | ']' | ':') => {
                self.text.push(c);
                self.go(State::Bare)
            }
            _ => Step::Broken,
        }
    }

    pub(super) fn mark(&mut self, mark: Mark, call: &mut Progress) -> Option<Step> {
        if mark != Mark::Quote {
            return None;
        }
        Some(match self.state {
            State::Text => {
                call.arguments.push('"');
                self.go(State::After)
            }
            State::Value | State::Item => {
                self.give_held(call);
                call.arguments.push('"');
                self.go(State::Text)
            }
            State::Key if self.text.trim().is_empty() => {
                self.text.clear();
                self.go(State::QuotedKey(false))
            }
            State::QuotedKey(_) => {
                self.hold_key();
                self.go(State::Colon)
            }
            _ => Step::Broken,
        })
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::More
    }

    fn open(&mut self, c: char, call: &mut Progress) -> Step {
        if self.stack.len() == DEPTH_MAX {
            return Step::Broken;
        }
        self.give_held(call);
        call.arguments.push(c);
        self.stack.push(c == '{');
        self.go(if c == '{' { State::Key } else { State::Item })
    }

    fn close(&mut self, c: char, call: &mut Progress) -> Step {
        if self.stack.last() != Some(&(c == '}')) {
            return Step::Broken;
        }
        self.stack.pop();
        self.held.clear(); // a comma before the end
        self.text.clear();
        call.arguments.push(c);
        self.state = if self.stack.is_empty() { State::Done } else { State::After };
        if self.stack.is_empty() { Step::Done } else { Step::More }
    }

    fn hold_key(&mut self) {
        self.held += &quoted(std::mem::take(&mut self.text).trim());
        self.held += ": ";
    }

    fn give_held(&mut self, call: &mut Progress) {
        call.arguments += &std::mem::take(&mut self.held);
    }

    /// Begins a key or a text in the quotes of JSON.
    fn json_text(&mut self, state: State, call: &mut Progress) -> Step {
        self.text.clear();
        self.reader = JsonReader::new();
        self.state = state;
        self.json('"', call)
    }

    fn json(&mut self, c: char, call: &mut Progress) -> Step {
        let read = self.reader.push(c);
        let given = self.reader.take();
        let is_key = self.state == State::QuotedKey(true);
        if is_key {
            self.held += &given
        } else {
            call.arguments += &given
        }
        match read {
            Read::More => Step::More,
            Read::Done if is_key => {
                self.held += ": ";
                self.go(State::Colon)
            }
            Read::Done => self.go(State::After),
            Read::DoneBefore | Read::Bad => Step::Broken,
        }
    }

    /// A bare value: a number or a word of JSON, or else a text that lacks its marks.
    fn end_bare(&mut self, call: &mut Progress) {
        let text = std::mem::take(&mut self.text);
        let text = text.trim();
        self.give_held(call);
        call.arguments += &scalar(text).unwrap_or_else(|| quoted(text));
        self.state = State::After;
    }

    pub(super) fn end(&mut self, call: &mut Progress, cut: bool) -> bool {
        match self.state {
            State::Text => call.arguments.push('"'),
            State::JsonText => {
                self.reader.close(cut);
                call.arguments += &self.reader.take();
            }
            State::Bare if !cut => self.end_bare(call),
            _ => {}
        }
        while let Some(object) = self.stack.pop() {
            call.arguments.push(if object { '}' } else { ']' });
        }
        self.state = State::Done;
        false
    }
}
