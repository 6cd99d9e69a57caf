//! What a reply is told as.

/// A piece of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatEvent {
    /// Thoughts.
    Reasoning(String),
    /// What is said.
    Content(String),
    /// A call begins.
    ToolCallBegin {
        /// Which of the reply, from 0.
        index: usize,
        /// Names it among all calls of the reply.
        id: String,
        /// What is called.
        name: String,
    },
    /// More of the arguments: together the JSON of one object.
    ToolCallArguments {
        /// Which call.
        index: usize,
        /// The next piece.
        json: String,
    },
    /// A call ends.
    ToolCallEnd {
        /// Which call.
        index: usize,
        /// Whether it was well formed.
        state: CallState,
        /// All of its text with the marks, as it was sampled.
        raw: String,
    },
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallState {
    /// As it should.
    Whole,
    /// Cut off or malformed; its arguments were closed where they stood.
    Repaired,
}

/// Where a reply can be cut, to go on with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// In what is said.
    Content {
        /// Bytes of white space at its end that are not told.
        spaces: usize,
    },
    /// Behind a call in a block of calls, which has not ended.
    Block,
    /// In the head of a message, behind the role of who speaks.
    Head,
}

/// A call that began by its mark and broke before anything could be told of it as a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostCall {
    /// The event that tells it as content. Those before it stand, whatever becomes of it.
    pub event: usize,
    /// Whether it follows another call in a block.
    pub in_block: bool,
}

/// Adds to what is said.
pub(super) fn content(text: &str, out: &mut Vec<ChatEvent>) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(ChatEvent::Content(last)) => last.push_str(text),
        _ => out.push(ChatEvent::Content(text.to_owned())),
    }
}

/// Adds to the thoughts.
pub(super) fn reasoning(text: &str, out: &mut Vec<ChatEvent>) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(ChatEvent::Reasoning(last)) => last.push_str(text),
        _ => out.push(ChatEvent::Reasoning(text.to_owned())),
    }
}
