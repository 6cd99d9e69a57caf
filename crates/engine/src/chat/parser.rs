//! Reads a reply as it comes: thoughts, content, and calls, whatever the pieces it comes in.
//!
//! Each character is looked at once, with the marks that count where it stands; a piece of text that may become such a
//! mark waits for the next. So the cuts of the pieces cannot matter. The rules:
//!
//! - A mark that the vocabulary has as a special token is that token; text that spells it is text.
//! - Nothing inside thinking is a call. Nothing inside a text of a call is a mark.
//! - A call begins to be told when its name and the beginning of its arguments are known. What breaks before that is
//!   content, marks and all. What breaks or ends after it is closed into valid JSON and told as [`CallState::Repaired`];
//!   text that follows the break is content. So no call is lost, and none is told that has no name.
//! - White space around marks belongs to the marks. A mark out of its place is text.
//! - Where no calls are wanted ([`ReplyParser::without_calls`]) what would be one is content, to the last character.

mod calls;

use std::sync::Arc;

use super::{
    call::{Body, Progress},
    channels::{Head, Message},
    event::{CallState, ChatEvent, LostCall, Rest, content, reasoning},
    format::{Calls, ChatFormat, Mark, Marks},
    json::JsonReader,
    tools::Tools,
};
use crate::{Span, Tokenizer};

/// Reads one reply.
#[derive(Debug)]
pub struct ReplyParser {
    format: &'static ChatFormat,
    tools: Arc<Tools>,
    /// For each mark whether only a special token makes it.
    special: Vec<bool>,
    /// Whether there may be calls.
    calls: bool,
    ids: String,
    state: State,
    /// The beginning of a mark, perhaps.
    pending: String,
    /// White space that is dropped if a mark follows.
    spaces: String,
    /// White space is dropped until something else comes.
    skipping: bool,
    /// A call without a mark may begin here.
    fresh: bool,
    /// The closing marks of a call that broke are still to come.
    stray: bool,
    /// A call began by its mark, and nothing could be told of it as one.
    lost: Option<LostCall>,
    /// The text of a block of calls since the last call of it ended.
    raw: String,
    call: Option<Call>,
    /// Calls so far, and before the present block.
    index: usize,
    group: Option<usize>,
}

#[derive(Debug)]
enum State {
    Content,
    /// What is left of the label of thinking.
    Label(&'static str),
    Thinking,
    /// In a block, between calls.
    Group,
    Call,
    /// Behind a call; whether its last mark was read, and it was whole.
    AfterCall(bool, CallState),
    Head(Head),
}

#[derive(Debug)]
struct Call {
    body: Body,
    progress: Progress,
    begun: bool,
    /// It began without a mark, and is none if it names no tool.
    bare: bool,
}

impl ReplyParser {
    /// A parser for the next reply of a model that has these tools.
    pub fn new(format: &'static ChatFormat, tools: Arc<Tools>) -> ReplyParser {
        let state = match format.calls {
            Calls::Channels { .. } => State::Head(Head::default()),
            _ => State::Content,
        };
        ReplyParser {
            format,
            tools,
            special: vec![false; format.marks.len()],
            calls: true,
            ids: "call_".to_owned(),
            state,
            pending: String::new(),
            spaces: String::new(),
            skipping: false,
            fresh: true,
            stray: false,
            lost: None,
            raw: String::new(),
            call: None,
            index: 0,
            group: None,
        }
    }

    /// Which marks the vocabulary has as special tokens. These count only where [`ReplyParser::special`] brings them.
    #[must_use]
    pub fn with_specials(mut self, is_special: impl Fn(&str) -> bool) -> ReplyParser {
        self.special = self.format.marks.iter().map(|(_, text)| is_special(text)).collect();
        self
    }

    /// Tells no calls: a block of them is content, marks and all. Where a message's head says that it is one, the message is content.
    #[must_use]
    pub fn without_calls(mut self) -> ReplyParser {
        self.calls = false;
        self
    }

    /// What the ids of calls begin with; a number follows.
    #[must_use]
    pub fn with_ids(mut self, prefix: impl Into<String>) -> ReplyParser {
        self.ids = prefix.into();
        self
    }

    /// Takes note of the prompt: a template may have begun the thoughts, or the head of a message.
    #[must_use]
    pub fn after_prompt(mut self, prompt: &str) -> ReplyParser {
        if let Calls::Channels { .. } = self.format.calls {
            let texts = |mark| self.format.marks.iter().filter(move |(m, _)| *m == mark).map(|(_, text)| *text);
            let start = texts(Mark::Start).filter_map(|text| prompt.rfind(text)).max();
            let tail = start.map(|at| &prompt[at..]);
            if let Some(tail) = tail.filter(|tail| !texts(Mark::End).any(|end| tail.contains(end))) {
                let special = std::mem::take(&mut self.special);
                self.special = vec![false; special.len()];
                self.push(tail, &mut Vec::new());
                self.drain(true, &mut Vec::new());
                self.special = special;
            }
        } else if self.format.opens_thinking(prompt) {
            (self.state, self.skipping) = (State::Thinking, true);
        }
        self
    }

    /// As [`ReplyParser::with_specials`], by a vocabulary.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: &Tokenizer) -> ReplyParser {
        self.with_specials(|text| tokenizer.token_id(text).is_some_and(|id| tokenizer.is_special(id)))
    }

    /// Whether thoughts are being read.
    pub fn thinking(&self) -> bool {
        matches!(self.state, State::Thinking | State::Label(_))
    }

    /// Where a reply that is cut here can go on with a call; none where it cannot. Behind a call that had to be repaired, whose
    /// marks may still come, it cannot.
    pub fn rest(&self) -> Option<Rest> {
        let channels = matches!(self.format.calls, Calls::Channels { .. });
        let rest = match &self.state {
            State::Content if !self.stray && !channels => Rest::Content { spaces: self.spaces.len() },
            State::AfterCall(true, _) if self.group.is_some() => Rest::Block,
            State::Head(head) if head.is_new() => Rest::Head,
            _ => return None,
        };
        self.pending.is_empty().then_some(rest)
    }

    /// The first call since the last time that began by its mark and then broke before anything could be told of it as a call,
    /// so that it is told as content.
    pub fn take_lost(&mut self) -> Option<LostCall> {
        self.lost.take()
    }

    /// How many calls were told.
    pub fn calls(&self) -> usize {
        self.index
    }

    /// Forgets a lost call and what came behind it. What is read next follows the last place before it where the reply could be
    /// cut ([`ReplyParser::rest`]), and is a call or the end.
    pub fn restart(&mut self, lost: LostCall) {
        [&mut self.pending, &mut self.spaces, &mut self.raw].into_iter().for_each(String::clear);
        (self.call, self.lost) = (None, None);
        (self.stray, self.skipping, self.fresh) = (false, false, true);
        (self.group, self.state) = match self.format.calls {
            Calls::Channels { .. } => (None, State::Head(Head::new())),
            // The block has a call already.
            _ if lost.in_block => (self.index.checked_sub(1), State::Group),
            _ => (None, State::Content),
        };
    }

    /// Reads more of a text in which special tokens are marked ([`crate::Request::specials`]). One that means nothing to the
    /// family is text if it is shown.
    pub fn read(&mut self, mut text: &str, out: &mut Vec<ChatEvent>) {
        while let Some((span, rest)) = Span::split(text) {
            text = rest;
            match span {
                Span::Text(text) => self.push(text, out),
                Span::Special { text, .. } if self.format.pieces.contains(&text) => self.push(text, out),
                Span::Special { text, shown } => {
                    if !self.special(text, out) && shown {
                        self.push(text, out);
                    }
                }
            }
        }
    }

    /// Reads more text.
    pub fn push(&mut self, text: &str, out: &mut Vec<ChatEvent>) {
        self.pending.push_str(text);
        self.drain(false, out);
    }

    /// Reads a special token by its text. Gives false, and takes it for nothing, if the family has no such mark.
    pub fn special(&mut self, text: &str, out: &mut Vec<ChatEvent>) -> bool {
        self.drain(true, out);
        let active = self.active();
        let mut known = self.format.marks.iter().filter(|(_, t)| *t == text).map(|(mark, _)| *mark).peekable();
        if known.peek().is_none() {
            return false;
        }
        if let Some(mark) = known.find(|mark| active.has(*mark)) {
            self.mark(mark, text, out);
        } else if !matches!(self.format.calls, Calls::Channels { .. }) {
            text.chars().for_each(|c| self.char(c, out));
        }
        true
    }

    /// At the end of the reply: what waited, and the end of what was open. The beginning of a mark where no text can stand was
    /// to become one, and is left out.
    pub fn finish(&mut self, out: &mut Vec<ChatEvent>) {
        if self.awaits_mark() {
            self.pending.clear();
        }
        self.drain(true, out);
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content => self.give_spaces(out),
            State::Label(_) | State::Thinking => self.spaces.clear(),
            State::Group => self.leave_group(out),
            State::Call => self.end_call(true, out),
            State::AfterCall(_, state) => self.finish_call(state, out),
            State::Head(head) => content(&head.into_text(), out),
        }
        self.state = State::Content;
    }

    fn drain(&mut self, last: bool, out: &mut Vec<ChatEvent>) {
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_str();
        while let Some(c) = rest.chars().next() {
            let active = self.active();
            let marks = self.format.marks.iter().zip(&self.special).filter(|((m, _), s)| !**s && active.has(*m));
            let mut partial = false;
            let mut found = None;
            for ((mark, text), _) in marks {
                if rest.starts_with(text) {
                    found = Some((*mark, *text));
                    break;
                }
                partial |= text.starts_with(rest);
            }
            if let Some((mark, text)) = found {
                rest = &rest[text.len()..];
                self.mark(mark, text, out);
            } else if partial && !last {
                rest.clone_into(&mut self.pending);
                return;
            } else {
                rest = &rest[c.len_utf8()..];
                self.char(c, out);
            }
        }
    }

    /// Whether only marks can go on here: behind a call, and between its pairs.
    fn awaits_mark(&self) -> bool {
        match self.state {
            State::AfterCall(..) => true,
            State::Call => self.call.as_ref().is_some_and(|call| call.body.awaits_mark()),
            _ => false,
        }
    }

    /// The marks that count now.
    fn active(&self) -> Marks {
        const HEAD: Marks = Marks::of(&[Mark::Start, Mark::Channel, Mark::End]);
        const TEXT: Marks = Marks::of(&[Mark::ThinkOpen]).and(HEAD);
        const OPEN: Marks = Marks::of(&[Mark::GroupOpen, Mark::CallOpen]).and(TEXT);
        const CLOSE: Marks = Marks::of(&[Mark::CallClose, Mark::GroupClose]);
        match &self.state {
            State::Content if !self.calls => TEXT,
            State::Content if self.stray => OPEN.and(CLOSE),
            State::Content => OPEN,
            State::Label(_) | State::Thinking => Marks::of(&[Mark::ThinkClose]).and(HEAD),
            State::Group => Marks::of(&[Mark::CallOpen, Mark::GroupClose]),
            State::Call => self.call.as_ref().map_or(Marks::NONE, |call| call.body.active()),
            State::AfterCall(..) => OPEN.and(CLOSE),
            State::Head(_) => Marks::of(&[Mark::Constrain, Mark::Body]).and(HEAD),
        }
    }

    fn mark(&mut self, mark: Mark, text: &str, out: &mut Vec<ChatEvent>) {
        match (&mut self.state, mark) {
            (State::Head(head), Mark::Body) => {
                self.raw.push_str(text);
                let Calls::Channels { to, prefix, thinking } = self.format.calls else { return };
                let message = head.message(to, prefix, thinking, &self.tools);
                self.begin_message(message);
            }
            (State::Head(head), _) => {
                self.raw.push_str(text);
                head.mark(mark);
            }
            (State::Call, _) => self.call_mark(mark, text, out),
            (State::AfterCall(closed, state), _) => {
                let (closed, state) = (*closed, *state);
                self.after_call_mark(mark, text, (closed, state), out);
            }
            (State::Group, Mark::CallOpen) => self.begin_call(text, false),
            (State::Group, _) => {
                self.raw.push_str(text);
                self.leave_group(out);
                self.begin_content();
            }
            (_, Mark::Start | Mark::Channel | Mark::End) => {
                self.spaces.clear();
                self.raw.clear();
                self.raw.push_str(text);
                let mut head = Head::default();
                head.mark(mark);
                self.state = State::Head(head);
            }
            (State::Label(rest), Mark::ThinkClose) => {
                let read = &self.format.label[..self.format.label.len() - rest.len()];
                if read != self.format.label.trim_end() {
                    reasoning(read, out);
                }
                self.begin_content();
            }
            (_, Mark::ThinkClose) => self.begin_content(),
            (_, Mark::ThinkOpen) => {
                self.spaces.clear();
                self.skipping = true;
                self.state =
                    if self.format.label.is_empty() { State::Thinking } else { State::Label(self.format.label) };
            }
            (_, Mark::GroupOpen) => {
                self.raw = std::mem::take(&mut self.spaces) + text;
                self.group = Some(self.index);
                self.state = State::Group;
            }
            (_, Mark::CallOpen) => {
                self.raw = std::mem::take(&mut self.spaces);
                self.begin_call(text, false);
            }
            // What is left of a call that broke.
            (_, Mark::CallClose | Mark::GroupClose) => {
                self.spaces.clear();
                self.skipping = true;
                self.stray = mark == Mark::CallClose && self.format.has(Mark::GroupClose);
            }
            _ => {}
        }
    }

    /// Content follows a mark.
    fn begin_content(&mut self) {
        self.spaces.clear();
        self.group = None;
        (self.state, self.skipping, self.fresh) = (State::Content, true, true);
    }

    fn begin_message(&mut self, message: Message) {
        self.skipping = false;
        self.state = match message {
            Message::Thinking => State::Thinking,
            Message::Call(_) if !self.calls => State::Content,
            Message::Content => State::Content,
            Message::Call(name) => {
                let progress = Progress { name: Some(name), arguments: String::new() };
                let body = Body::Arguments(JsonReader::new());
                self.call = Some(Call { body, progress, begun: false, bare: false });
                State::Call
            }
        };
    }

    fn char(&mut self, c: char, out: &mut Vec<ChatEvent>) {
        match &mut self.state {
            State::Content => self.content_char(c, out),
            State::Label(rest) => match rest.strip_prefix(c) {
                Some("") => self.state = State::Thinking,
                Some(left) => *rest = left,
                None => {
                    let read = &self.format.label[..self.format.label.len() - rest.len()];
                    self.skipping = read.is_empty();
                    self.state = State::Thinking;
                    reasoning(read, out);
                    self.char(c, out);
                }
            },
            State::Thinking if c.is_whitespace() => {
                if !self.skipping {
                    self.spaces.push(c);
                }
            }
            State::Thinking => {
                self.skipping = false;
                let mut text = std::mem::take(&mut self.spaces);
                text.push(c);
                reasoning(&text, out);
            }
            State::Group if c.is_whitespace() => self.raw.push(c),
            State::Group => {
                self.leave_group(out);
                self.state = State::Content;
                self.char(c, out);
            }
            State::Call => {
                self.raw.push(c);
                let Some(call) = &mut self.call else { return };
                let step = call.body.char(c, &mut call.progress, &self.tools);
                self.step(step, Some(c), out);
            }
            State::AfterCall(closed, state) => {
                let (closed, state) = (*closed, *state);
                self.after_call(c, closed, state, out);
            }
            State::Head(head) => {
                let Calls::Channels { to, .. } = self.format.calls else { return };
                self.raw.push(c);
                if let Some(text) = head.char(c, to) {
                    self.state = State::Content;
                    self.raw.clear();
                    content(&text, out);
                }
            }
        }
    }

    fn content_char(&mut self, c: char, out: &mut Vec<ChatEvent>) {
        if c.is_whitespace() {
            if !self.skipping {
                self.spaces.push(c);
            }
            return;
        }
        self.skipping = false;
        let bare = match self.format.calls {
            Calls::Json { bare: true, .. } => c == '{',
            Calls::Literal { lead, bare: true } => lead.starts_with(c),
            _ => false,
        };
        if bare && self.fresh && self.calls && !self.tools.is_empty() {
            self.raw = std::mem::take(&mut self.spaces);
            self.begin_call("", true);
            return self.char(c, out);
        }
        self.fresh = false;
        self.give_spaces(out);
        content(c.encode_utf8(&mut [0; 4]), out);
    }

    fn give_spaces(&mut self, out: &mut Vec<ChatEvent>) {
        content(&std::mem::take(&mut self.spaces), out);
    }
}
