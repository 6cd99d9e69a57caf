//! One call as it is read: what all shapes have in common, and the shape of a JSON object.

use super::{
    format::{Calls, Mark, Marks},
    json::{JsonReader, Read},
    literal::Literal,
    pairs::Pairs,
    tools::Tools,
};

/// What is known of a call.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) name: Option<String>,
    /// JSON that was not given on yet.
    pub(super) arguments: String,
}

/// What came of a character or a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    More,
    /// The call is whole; a mark of its end may follow.
    Done,
    /// No call goes on like this.
    Broken,
}

/// What stands between the marks of a call.
#[derive(Debug)]
pub(super) enum Body {
    Json(JsonCall),
    Pairs(Pairs),
    Literal(Literal),
    /// The arguments alone; the name is known.
    Arguments(JsonReader),
}

impl Body {
    /// A body of the family's shape.
    pub(super) fn new(calls: &Calls, valued: bool) -> Option<Body> {
        Some(match *calls {
            Calls::None | Calls::Channels { .. } => return None,
            Calls::Json { name, arguments, .. } => Body::Json(JsonCall::new(name, arguments)),
            Calls::Pairs { typing, line, trim, .. } => Body::Pairs(Pairs::new(typing, line, trim, valued)),
            Calls::Literal { lead, .. } => Body::Literal(Literal::new(lead)),
        })
    }

    /// The marks that count now.
    pub(super) fn active(&self) -> Marks {
        const CLOSE: Marks = Marks::of(&[Mark::CallClose]);
        const MESSAGE: Marks = Marks::of(&[Mark::End, Mark::Start, Mark::Channel]);
        match self {
            Body::Json(json) if json.reader.in_text() => Marks::NONE,
            Body::Json(_) => CLOSE,
            Body::Pairs(pairs) => pairs.active(),
            Body::Literal(literal) => literal.active(),
            Body::Arguments(reader) if reader.in_text() => Marks::NONE,
            Body::Arguments(_) => MESSAGE,
        }
    }

    /// Whether no text can go on here.
    pub(super) fn awaits_mark(&self) -> bool {
        matches!(self, Body::Pairs(pairs) if pairs.awaits_mark())
    }

    /// Reads the next character.
    pub(super) fn char(&mut self, c: char, call: &mut Progress, tools: &Tools) -> Step {
        match self {
            Body::Json(json) => json.char(c, call),
            Body::Pairs(pairs) => pairs.char(c, call, tools),
            Body::Literal(literal) => literal.char(c, call),
            Body::Arguments(reader) => {
                if reader.is_new() && !c.is_whitespace() && c != '{' {
                    return Step::Broken; // arguments are an object
                }
                let read = reader.push(c);
                call.arguments += &reader.take();
                match read {
                    Read::More => Step::More,
                    Read::Done => Step::Done,
                    Read::DoneBefore | Read::Bad => Step::Broken,
                }
            }
        }
    }

    /// Reads a mark that is the body's own; none if it is not, and ends the call.
    pub(super) fn mark(&mut self, mark: Mark, text: &str, call: &mut Progress, tools: &Tools) -> Option<Step> {
        match self {
            Body::Json(_) | Body::Arguments(_) => None,
            Body::Pairs(pairs) => pairs.mark(mark, text, call, tools),
            Body::Literal(literal) => literal.mark(mark, call),
        }
    }

    /// Ends the call here, closing what is open. `cut`: the reply ends too. Gives whether the call was whole.
    pub(super) fn end(&mut self, call: &mut Progress, cut: bool, tools: &Tools) -> bool {
        match self {
            Body::Json(json) => json.end(call, cut),
            Body::Pairs(pairs) => pairs.end(call, cut, tools),
            Body::Literal(literal) => literal.end(call, cut),
            Body::Arguments(reader) => {
                let whole = reader.is_new() || reader.is_done();
                if reader.is_new() && !cut {
                    call.arguments += "{}";
                }
                reader.close(cut);
                call.arguments += &reader.take();
                whole
            }
        }
    }
}

/// `{"name": "f", "arguments": {…}}`, its keys in any order. Arguments may be a text that holds the object, or null.
#[derive(Debug)]
pub(super) struct JsonCall {
    names: &'static [&'static str],
    arguments: &'static [&'static str],
    state: Outer,
    reader: JsonReader,
    /// What the reader gave of a name, a key, or arguments in a text.
    text: String,
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outer {
    Start,
    KeyOrEnd,
    Key,
    Colon(Field),
    Value(Field),
    Comma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Arguments,
    /// Arguments that are no object: a text that holds one, or null.
    Wrapped,
    Other,
}

impl JsonCall {
    fn new(names: &'static [&'static str], arguments: &'static [&'static str]) -> JsonCall {
        let (reader, text) = (JsonReader::new(), String::new());
        JsonCall { names, arguments, state: Outer::Start, reader, text, begun: false }
    }

    fn char(&mut self, c: char, call: &mut Progress) -> Step {
        match (self.state, c) {
            (Outer::Key | Outer::Value(_), _) => self.inner(c, call),
            (_, c) if c.is_whitespace() => Step::More,
            (Outer::Start, '{') | (Outer::Comma, ',') => self.go(Outer::KeyOrEnd),
            (Outer::KeyOrEnd, '"') => {
                self.start_value();
                self.reader.push('"');
                self.go(Outer::Key)
            }
            (Outer::Colon(field), ':') => {
                self.start_value();
                self.go(Outer::Value(field))
            }
            (Outer::KeyOrEnd | Outer::Comma, '}') if call.name.is_some() => {
                self.without_arguments(call);
                Step::Done
            }
            _ => Step::Broken,
        }
    }

    fn go(&mut self, state: Outer) -> Step {
        self.state = state;
        Step::More
    }

    fn start_value(&mut self) {
        self.reader = JsonReader::new();
        self.text.clear();
    }

    fn without_arguments(&mut self, call: &mut Progress) {
        if !self.begun {
            self.begun = true;
            call.arguments += "{}";
        }
    }

    /// A character of a key or a value.
    fn inner(&mut self, c: char, call: &mut Progress) -> Step {
        if self.state == Outer::Value(Field::Arguments) && self.reader.is_new() && !c.is_whitespace() {
            if c == '{' {
                self.begun = true;
            } else {
                self.state = Outer::Value(Field::Wrapped);
            }
        }
        let read = self.reader.push(c);
        let given = self.reader.take();
        match self.state {
            Outer::Value(Field::Arguments) => call.arguments += &given,
            Outer::Value(Field::Other) => {}
            _ => self.text += &given,
        }
        match read {
            Read::More => Step::More,
            Read::Bad => Step::Broken,
            Read::Done => self.value_done(call),
            Read::DoneBefore => match self.value_done(call) {
                Step::More => self.char(c, call),
                other => other,
            },
        }
    }

    fn value_done(&mut self, call: &mut Progress) -> Step {
        let text = || serde_json::from_str::<String>(&self.text).ok();
        match self.state {
            Outer::Key => {
                let Some(key) = text() else { return Step::Broken };
                let field = match key.as_str() {
                    key if self.names.contains(&key) && call.name.is_none() => Field::Name,
                    key if self.arguments.contains(&key) && !self.begun => Field::Arguments,
                    _ => Field::Other,
                };
                return self.go(Outer::Colon(field));
            }
            Outer::Value(Field::Name) => match text().filter(|name| !name.is_empty()) {
                Some(name) => call.name = Some(name),
                None => return Step::Broken,
            },
            Outer::Value(Field::Wrapped) if self.text != "null" => match text().and_then(|text| object(&text)) {
                Some(json) => {
                    self.begun = true;
                    call.arguments += &json;
                }
                None => return Step::Broken,
            },
            _ => {}
        }
        self.go(Outer::Comma)
    }

    fn end(&mut self, call: &mut Progress, cut: bool) -> bool {
        if self.state == Outer::Value(Field::Arguments) {
            self.reader.close(cut);
            call.arguments += &self.reader.take();
        } else if !cut && self.state == Outer::Comma && call.name.is_some() {
            self.without_arguments(call); // only the last brace is missing
        }
        false
    }
}

/// The JSON of a text if it is one object.
fn object(text: &str) -> Option<String> {
    let mut reader = JsonReader::new();
    let text = text.trim();
    let mut chars = text.chars();
    let whole = text.starts_with('{')
        && chars.by_ref().find_map(|c| Some(reader.push(c)).filter(|r| *r != Read::More))? == Read::Done;
    (whole && chars.next().is_none()).then(|| reader.take())
}
