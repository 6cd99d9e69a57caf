//! JSON, read character by character, and given on as soon as it can no longer turn out wrong.
//!
//! What was given can be closed at any time into valid JSON: a comma, a key, a number, half an escape wait until the
//! value that follows has begun, or they are whole. Small errors that models make are mended on the way: line breaks
//! inside texts, escapes that there are not, half of a surrogate pair, a comma before the end, Python's `True`.

/// Objects and arrays inside one another.
const DEPTH_MAX: usize = 100;

/// What came of a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    More,
    /// The value is whole.
    Done,
    /// The value was whole before this character, which is not part of it.
    DoneBefore,
    /// No JSON has this here.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    FirstKey,
    Key,
    KeyText,
    Colon,
    FirstItem,
    Item,
    Text,
    Scalar,
    After,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    Unicode(String),
}

/// Reads one value.
#[derive(Clone, Debug)]
pub(super) struct JsonReader {
    /// For each open object true, for each open array false.
    stack: Vec<bool>,
    state: State,
    /// Read, but not to be given yet.
    held: String,
    /// Where the number or word in `held` begins.
    scalar: usize,
    /// To be given.
    out: String,
    escape: Escape,
    /// The first half of a surrogate pair.
    high: Option<u16>,
}

impl JsonReader {
    pub(super) fn new() -> JsonReader {
        JsonReader {
            stack: Vec::new(),
            state: State::Value,
            held: String::new(),
            scalar: 0,
            out: String::new(),
            escape: Escape::None,
            high: None,
        }
    }

    /// Whether nothing was read yet.
    pub(super) fn is_new(&self) -> bool {
        self.state == State::Value && self.stack.is_empty()
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether a text is open, in which all marks are text.
    pub(super) fn in_text(&self) -> bool {
        matches!(self.state, State::Text | State::KeyText)
    }

    /// What may be given since the last time.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    /// Reads the next character.
    pub(super) fn push(&mut self, c: char) -> Read {
        match (self.state, c) {
            (State::Text | State::KeyText, _) => self.text(c),
            (State::Scalar, _) => self.scalar(c),
            (State::Done, _) => Read::Bad,
            (_, ' ' | '\t' | '\r' | '\n') => {
                if !self.held.is_empty() {
                    self.held.push(c);
                } else if !self.is_new() {
                    self.out.push(c);
                }
                Read::More
            }
            (State::FirstKey | State::Key, '"') => {
                self.held.push('"');
                self.state = State::KeyText;
                Read::More
            }
            (State::FirstKey | State::Key, '}') | (State::FirstItem | State::Item, ']') => {
                self.held.clear(); // a comma before the end
                self.pop(c)
            }
            (State::Colon, ':') => {
                self.held.push(':');
                self.state = State::Value;
                Read::More
            }
            (State::After, ',') => {
                self.held.push(',');
                self.state = if self.stack.last() == Some(&true) { State::Key } else { State::Item };
                Read::More
            }
            (State::After, '}') if self.stack.last() == Some(&true) => self.pop(c),
            (State::After, ']') if self.stack.last() == Some(&false) => self.pop(c),
            (State::Value | State::FirstItem | State::Item, _) => self.value(c),
            (State::FirstKey | State::Key | State::Colon | State::After, _) => Read::Bad,
        }
    }

    fn value(&mut self, c: char) -> Read {
        match c {
            '{' | '[' => {
                if self.stack.len() == DEPTH_MAX {
                    return Read::Bad;
                }
                self.give_held();
                self.out.push(c);
                self.stack.push(c == '{');
                self.state = if c == '{' { State::FirstKey } else { State::FirstItem };
            }
            '"' => {
                self.give_held();
                self.out.push('"');
                self.state = State::Text;
            }
            '-' | '0'..='9' | 'a'..='z' | 'A'..='Z' => {
                self.scalar = self.held.len();
                self.held.push(c);
                self.state = State::Scalar;
            }
            _ => return Read::Bad,
        }
        Read::More
    }

    fn scalar(&mut self, c: char) -> Read {
        if c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.') {
            self.held.push(c);
            return Read::More;
        }
        if !self.end_scalar() {
            return Read::Bad;
        }
        if self.after_value() == Read::Done { Read::DoneBefore } else { self.push(c) }
    }

    /// Gives a number or a word if it is one.
    fn end_scalar(&mut self) -> bool {
        let Some(json) = scalar(&self.held[self.scalar..]) else { return false };
        self.held.truncate(self.scalar);
        self.give_held();
        self.out.push_str(&json);
        true
    }

    fn after_value(&mut self) -> Read {
        self.state = if self.stack.is_empty() { State::Done } else { State::After };
        if self.stack.is_empty() { Read::Done } else { Read::More }
    }

    fn pop(&mut self, c: char) -> Read {
        self.stack.pop();
        self.out.push(c);
        self.after_value()
    }

    fn give_held(&mut self) {
        self.out.push_str(&self.held);
        self.held.clear();
    }

    fn text(&mut self, c: char) -> Read {
        match std::mem::replace(&mut self.escape, Escape::None) {
            Escape::None if c == '\\' => self.escape = Escape::Begun,
            Escape::None => {
                self.end_pair();
                if c == '"' {
                    self.target().push('"');
                    if self.state == State::Text {
                        return self.after_value();
                    }
                    self.state = State::Colon;
                } else {
                    escape(c, self.target(), false);
                }
            }
            Escape::Begun if c == 'u' => self.escape = Escape::Unicode(String::new()),
            Escape::Begun => {
                self.end_pair();
                let known = matches!(c, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't');
                let target = self.target();
                target.push_str(if known { "\\" } else { "\\\\" });
                if known { target.push(c) } else { escape(c, target, true) }
            }
            Escape::Unicode(mut digits) if c.is_ascii_hexdigit() => {
                digits.push(c);
                match u16::from_str_radix(&digits, 16) {
                    Ok(unit) if digits.len() == 4 => self.unit(unit),
                    _ => self.escape = Escape::Unicode(digits),
                }
            }
            Escape::Unicode(digits) => {
                self.end_pair();
                self.target().push_str(&format!("\\\\u{digits}"));
                return self.text(c);
            }
        }
        Read::More
    }

    /// A unit of UTF-16 that was written as an escape.
    fn unit(&mut self, unit: u16) {
        match (unit, self.high) {
            (0xd800..=0xdbff, _) => {
                self.end_pair();
                self.high = Some(unit);
            }
            (0xdc00..=0xdfff, Some(high)) => {
                self.high = None;
                self.target().push_str(&format!("\\u{high:04x}\\u{unit:04x}"));
            }
            (0xdc00..=0xdfff, None) => self.target().push(char::REPLACEMENT_CHARACTER),
            _ => {
                self.end_pair();
                self.target().push_str(&format!("\\u{unit:04x}"));
            }
        }
    }

    /// A first half that nothing follows.
    fn end_pair(&mut self) {
        if self.high.take().is_some() {
            self.target().push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn target(&mut self) -> &mut String {
        if self.state == State::KeyText { &mut self.held } else { &mut self.out }
    }

    /// Closes what is open. What was begun and cannot be closed is left out: a key without a value, and at the end of a `cut`
    /// text a number or word, which may have gone on.
    pub(super) fn close(&mut self, cut: bool) {
        match self.state {
            State::Text => {
                self.end_pair();
                self.out.push('"');
            }
            State::Scalar if !cut => {
                self.end_scalar();
            }
            _ => {}
        }
        self.held.clear();
        while let Some(object) = self.stack.pop() {
            self.out.push(if object { '}' } else { ']' });
        }
        self.state = State::Done;
    }
}

/// A number or a word of JSON, or of Python, as JSON has it.
pub(super) fn scalar(text: &str) -> Option<String> {
    let text = match text {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    let is_scalar = text.starts_with(|c: char| c == '-' || c.is_ascii_alphanumeric());
    (is_scalar && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()).then(|| text.to_owned())
}

/// Writes a character of a text. `all`: those too that only end or escape a text, as they come from elsewhere.
pub(super) fn escape(c: char, out: &mut String, all: bool) {
    match c {
        '"' | '\\' if all => out.extend(['\\', c]),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\0'..='\x1f' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => out.push(c),
    }
}

/// A text as JSON.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    text.chars().for_each(|c| escape(c, &mut out, true));
    out.push('"');
    out
}
