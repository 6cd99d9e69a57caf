//! The parser inside and behind calls: when a call begins to be told, and how one that breaks is ended.

use super::{Call, ReplyParser, State};
use crate::chat::{
    call::{Body, Progress, Step},
    event::{CallState, ChatEvent, LostCall, content},
    format::{Calls, Mark},
};

impl ReplyParser {
    /// A mark in a call: the body's own, or its end.
    pub(super) fn call_mark(&mut self, mark: Mark, text: &str, out: &mut Vec<ChatEvent>) {
        self.raw.push_str(text);
        let Some(call) = &mut self.call else { return };
        match call.body.mark(mark, text, &mut call.progress, &self.tools) {
            Some(step) => self.step(step, None, out),
            None if mark == Mark::CallClose => self.end_call(false, out),
            None => {
                self.raw.truncate(self.raw.len() - text.len());
                if mark == Mark::End {
                    self.raw.push_str(text);
                }
                self.end_call(false, out);
                if let State::AfterCall(_, state) = self.state {
                    self.finish_call(state, out);
                }
                self.state = State::Content;
                self.mark(mark, text, out);
            }
        }
    }

    /// A mark behind a call: its end, that of the block, or something new.
    pub(super) fn after_call_mark(
        &mut self,
        mark: Mark,
        text: &str,
        (closed, state): (bool, CallState),
        out: &mut Vec<ChatEvent>,
    ) {
        let own = mark == Mark::GroupClose || mark == Mark::CallClose && !closed;
        if own {
            self.raw += &std::mem::take(&mut self.spaces);
            self.raw.push_str(text);
            if mark == Mark::CallClose {
                return self.close_call(state, out);
            }
            self.finish_call(state, out);
            return self.begin_content();
        }
        self.finish_call(state, out);
        if self.group.is_some() {
            self.state = State::Group;
            self.raw = std::mem::take(&mut self.spaces);
        } else {
            self.state = State::Content;
        }
        self.mark(mark, text, out);
    }

    /// Begins a call; `bare`: without a mark.
    pub(super) fn begin_call(&mut self, text: &str, bare: bool) {
        self.raw.push_str(text);
        self.stray = false;
        let valued = self.format.has(Mark::ValueOpen);
        let Some(body) = Body::new(&self.format.calls, valued) else { return };
        self.call = Some(Call { body, progress: Progress::default(), begun: false, bare });
        self.state = State::Call;
    }

    /// Leaves a block; one without a call is content.
    pub(super) fn leave_group(&mut self, out: &mut Vec<ChatEvent>) {
        let raw = std::mem::take(&mut self.raw);
        if self.group.take() == Some(self.index) {
            self.lose(raw, false, out);
        } else {
            self.stray = true;
        }
    }

    /// Goes on after a character or mark of a call.
    pub(super) fn step(&mut self, step: Step, c: Option<char>, out: &mut Vec<ChatEvent>) {
        let given = self.give_call(out);
        match step {
            Step::More if given => {}
            Step::Done if given && self.begun() => self.state = State::AfterCall(false, CallState::Whole),
            _ if !self.begun() => self.no_call(out),
            _ => {
                let bare = self.call.as_ref().is_some_and(|call| call.bare);
                if let Some(c) = c {
                    self.raw.truncate(self.raw.len() - c.len_utf8());
                }
                self.close_body(false, out);
                self.finish_call(CallState::Repaired, out);
                (self.state, self.fresh, self.stray, self.group) = (State::Content, false, !bare, None);
                if let Some(c) = c {
                    self.char(c, out);
                }
            }
        }
    }

    /// Whether the call was told.
    pub(super) fn begun(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.begun)
    }

    /// Tells what is new of the call; false if it is none after all.
    pub(super) fn give_call(&mut self, out: &mut Vec<ChatEvent>) -> bool {
        let Some(call) = &mut self.call else { return false };
        let index = self.index;
        if let (false, Some(name)) = (call.begun, &call.progress.name) {
            if call.bare && !self.tools.has(name) {
                return false;
            }
            if call.progress.arguments.is_empty() {
                return true;
            }
            call.begun = true;
            out.push(ChatEvent::ToolCallBegin { index, id: format!("{}{index}", self.ids), name: name.clone() });
        }
        if call.begun && !call.progress.arguments.is_empty() {
            let json = std::mem::take(&mut call.progress.arguments);
            match out.last_mut() {
                Some(ChatEvent::ToolCallArguments { index: last, json: all }) if *last == index => *all += &json,
                _ => out.push(ChatEvent::ToolCallArguments { index, json }),
            }
        }
        true
    }

    /// Closes the body where it stands. Gives whether it was whole; nothing if there is no call.
    pub(super) fn close_body(&mut self, cut: bool, out: &mut Vec<ChatEvent>) -> Option<bool> {
        let call = self.call.as_mut()?;
        let whole = call.body.end(&mut call.progress, cut, &self.tools);
        (self.give_call(out) && self.begun()).then_some(whole)
    }

    /// Ends the call where it stands: at a mark, or at the end of a reply that is `cut`.
    pub(super) fn end_call(&mut self, cut: bool, out: &mut Vec<ChatEvent>) {
        let state = match self.close_body(cut, out) {
            Some(true) => CallState::Whole,
            Some(false) => CallState::Repaired,
            None => return self.no_call(out),
        };
        if cut {
            self.finish_call(state, out);
        } else {
            self.close_call(state, out);
        }
    }

    /// What was taken for a call is content.
    pub(super) fn no_call(&mut self, out: &mut Vec<ChatEvent>) {
        let marked = self.call.take().is_some_and(|call| !call.bare);
        let in_block = self.group.take().is_some_and(|first| first < self.index);
        (self.state, self.fresh) = (State::Content, false);
        let raw = std::mem::take(&mut self.raw);
        if marked {
            self.lose(raw, in_block, out);
        } else {
            content(&raw, out);
        }
    }

    /// Tells a call of which nothing is known as content: apart from what came before, for whoever takes it back.
    fn lose(&mut self, raw: String, in_block: bool, out: &mut Vec<ChatEvent>) {
        self.lost.get_or_insert(LostCall { event: out.len(), in_block });
        out.push(ChatEvent::Content(raw));
    }

    /// The mark of a call's end was read; in a block that of the block may follow.
    pub(super) fn close_call(&mut self, state: CallState, out: &mut Vec<ChatEvent>) {
        if self.group.is_some() {
            self.state = State::AfterCall(true, state);
        } else {
            self.finish_call(state, out);
            self.begin_content();
            // The block's own end, where its beginning was left out.
            self.stray = self.format.has(Mark::GroupClose);
        }
    }

    /// Tells the end of the call.
    pub(super) fn finish_call(&mut self, state: CallState, out: &mut Vec<ChatEvent>) {
        if self.call.take().is_some() {
            out.push(ChatEvent::ToolCallEnd { index: self.index, state, raw: std::mem::take(&mut self.raw) });
            self.index += 1;
        }
    }

    /// A character behind a call: perhaps another one between the same marks.
    pub(super) fn after_call(&mut self, c: char, closed: bool, state: CallState, out: &mut Vec<ChatEvent>) {
        let separators = match self.format.calls {
            Calls::Json { separators, .. } if !closed => separators,
            _ => "",
        };
        if c.is_whitespace() || separators.contains(c) {
            self.spaces.push(c);
            return;
        }
        let bare = self.call.as_ref().is_some_and(|call| call.bare);
        self.finish_call(state, out);
        let between = std::mem::take(&mut self.spaces);
        if c == '{' && !separators.is_empty() {
            self.begin_call(&between, bare);
            return self.char(c, out);
        }
        if !between.trim().is_empty() {
            content(&between, out);
        }
        self.stray = !bare;
        (self.state, self.fresh, self.group) = (State::Content, false, None);
        self.char(c, out);
    }
}
