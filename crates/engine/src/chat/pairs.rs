//! The shape of marked pairs: a name, then keys and values, each between marks. Values are bare text; whether one is a number
//! or a text that looks like one is for the tool's schema to say.

use super::{
    call::{Progress, Step},
    format::{Mark, Marks, Typing},
    json::{escape, quoted},
    tools::{Accepts, Tools},
};

/// A call in pairs.
#[derive(Debug)]
pub(super) struct Pairs {
    typing: Typing,
    line: bool,
    trim: bool,
    /// Whether values have a mark at their beginning.
    valued: bool,
    state: State,
    /// The name, a key, or what is known of a value that is not given yet.
    text: String,
    key: String,
    pairs: usize,
    /// What may be the end of a call, or text inside a value: from a mark that ends a call on.
    tail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Name,
    Between,
    Key,
    /// Between a key and its value.
    Flag,
    /// A text, given on as it comes; whether it has begun.
    Text(bool),
    /// Another value, which must be whole.
    Whole(Accepts),
    Done,
}

impl Pairs {
    pub(super) fn new(typing: Typing, line: bool, trim: bool, valued: bool) -> Pairs {
        let (text, key, tail) = Default::default();
        Pairs { typing, line, trim, valued, state: State::Name, text, key, pairs: 0, tail }
    }

    pub(super) fn active(&self) -> Marks {
        match self.state {
            State::Name => Marks::of(&[Mark::NameEnd, Mark::KeyOpen, Mark::CallClose]),
            State::Between | State::Done => Marks::of(&[Mark::KeyOpen, Mark::CallClose]),
            State::Key => Marks::of(&[Mark::KeyClose]),
            State::Flag => Marks::of(&[Mark::ValueOpen]),
            State::Text(_) => Marks::of(&[Mark::ValueClose, Mark::ValueEscape, Mark::CallClose]),
            State::Whole(_) => Marks::of(&[Mark::ValueClose, Mark::CallClose]),
        }
    }

    pub(super) fn awaits_mark(&self) -> bool {
        matches!(self.state, State::Between | State::Done)
    }

    pub(super) fn char(&mut self, c: char, call: &mut Progress, _: &Tools) -> Step {
        match self.state {
            State::Name if self.line && c == '\n' && !self.text.trim().is_empty() => return self.named(call),
            State::Between | State::Done if !c.is_whitespace() => return Step::Broken,
            State::Between | State::Done => {}
            State::Name | State::Key | State::Flag => self.text.push(c),
            State::Text(_) | State::Whole(_) if !self.tail.is_empty() => self.tail.push(c),
            State::Text(_) => self.text_char(c, call),
            State::Whole(_) => self.text.push(c),
        }
        Step::More
    }

    /// A line break on either side of a value waits until it is known not to be the last.
    fn text_char(&mut self, c: char, call: &mut Progress) {
        let first = self.state == State::Text(false);
        self.state = State::Text(true);
        if self.trim && c == '\n' {
            if !first {
                self.give_break(call);
                self.text.push('\n');
            }
            return;
        }
        self.give_break(call);
        escape(c, &mut call.arguments, true);
    }

    fn give_break(&mut self, call: &mut Progress) {
        std::mem::take(&mut self.text).chars().for_each(|c| escape(c, &mut call.arguments, true));
    }

    pub(super) fn mark(&mut self, mark: Mark, text: &str, call: &mut Progress, tools: &Tools) -> Option<Step> {
        match (self.state, mark) {
            (State::Name, Mark::NameEnd) => return Some(self.named(call)),
            (State::Name, Mark::KeyOpen) => {
                if self.named(call) == Step::Broken {
                    return Some(Step::Broken);
                }
                self.state = State::Key;
            }
            (State::Between | State::Done, Mark::KeyOpen) => self.state = State::Key,
            (State::Key, Mark::KeyClose) => {
                let key = std::mem::take(&mut self.text);
                self.key = self.plain(key.trim());
                self.state = State::Flag;
                if !self.valued {
                    self.begin_value(call, tools);
                }
            }
            (State::Flag, Mark::ValueOpen) => self.begin_value(call, tools),
            (State::Text(_) | State::Whole(_), Mark::ValueClose) => self.end_value(call),
            (State::Text(_), Mark::ValueEscape) => {
                let text = self.plain(text);
                text.chars().for_each(|c| {
                    self.char(c, call, tools);
                });
            }
            (State::Text(_) | State::Whole(_), _) => self.tail.push_str(text),
            _ => return None,
        }
        Some(Step::More)
    }

    fn named(&mut self, call: &mut Progress) -> Step {
        let name = std::mem::take(&mut self.text).trim().to_owned();
        if name.is_empty() || name.contains(['\n', '<', '{']) {
            return Step::Broken;
        }
        call.name = Some(self.plain(&name));
        call.arguments.push('{');
        self.state = State::Between;
        Step::More
    }

    /// What an attribute says.
    fn plain(&self, attribute: &str) -> String {
        match self.typing {
            Typing::Schema => attribute.to_owned(),
            // The ampersand last: what it makes is not read again.
            Typing::Flag(_) => [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")]
                .iter()
                .fold(attribute.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain)),
        }
    }

    fn begin_value(&mut self, call: &mut Progress, tools: &Tools) {
        let flag = std::mem::take(&mut self.text);
        let accepts = match self.typing {
            Typing::Schema => tools.accepts(call.name.as_deref().unwrap_or_default(), &self.key),
            Typing::Flag(word) if flag.trim() == word => Accepts::TEXT,
            Typing::Flag(_) => Accepts::ANY,
        };
        if accepts == Accepts::TEXT {
            self.begin_pair(call);
            call.arguments.push('"');
            self.state = State::Text(false);
        } else {
            self.state = State::Whole(accepts);
        }
    }

    fn begin_pair(&mut self, call: &mut Progress) {
        call.arguments += if self.pairs > 0 { ", " } else { "" };
        call.arguments += &quoted(&self.key);
        call.arguments += ": ";
        self.pairs += 1;
    }

    fn end_value(&mut self, call: &mut Progress) {
        let tail = std::mem::take(&mut self.tail);
        match self.state {
            State::Text(_) => {
                tail.chars().for_each(|c| self.text_char(c, call));
                self.text.clear(); // the last line break
                call.arguments.push('"');
            }
            State::Whole(accepts) => {
                let text = std::mem::take(&mut self.text) + &tail;
                let text = if self.trim { text.strip_prefix('\n').unwrap_or(&text) } else { &text };
                let text = if self.trim { text.strip_suffix('\n').unwrap_or(text) } else { text };
                self.begin_pair(call);
                call.arguments += &accepts.json(text);
            }
            _ => {}
        }
        self.state = State::Between;
    }

    pub(super) fn end(&mut self, call: &mut Progress, cut: bool, _: &Tools) -> bool {
        let whole = matches!(self.state, State::Name | State::Between);
        if self.state == State::Name && (cut || self.named(call) == Step::Broken) {
            return false; // half a name is none
        }
        // A mark that ended the call was its end, and not text of the value.
        self.tail.clear();
        match self.state {
            State::Text(_) => self.end_value(call),
            State::Whole(_) if !self.text.is_empty() => self.end_value(call),
            _ => {}
        }
        self.state = State::Done;
        call.arguments.push('}');
        whole && !cut
    }
}
