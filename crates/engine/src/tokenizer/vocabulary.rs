//! The list of tokens: what each stands for, of which kind it is, and which end a reply.

use std::collections::{BTreeSet, HashMap};

use super::error::TokenizerError;

/// What sort of token it is (GGUF's `tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text.
    Normal,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// A mark of structure, such as the end of a turn; never to be made from a user's text.
    Control,
    /// A piece that is matched before anything else, in any text.
    UserDefined,
    /// Never used.
    Unused,
    /// One byte, for what has no other token.
    Byte,
}

impl Kind {
    /// From GGUF's number; what is unknown is a normal token, as it is where a file names no kinds.
    pub(super) fn from_gguf(number: i64) -> Kind {
        match number {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        }
    }
}

/// Tokens whose text says that they end a reply, whatever the file calls them. (The list is llama.cpp's, so that a
/// model stops where it does there. Where a file names no end of turn, the first one present of these is it.)
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];

/// How many of [`ENDS`] may be the end of a turn.
const ENDS_OF_TURN: usize = 11;

/// Fill-in-the-middle marks after which nothing sensible follows in a chat: padding, next repository, next file.
const FILL_ENDS: [&str; 11] = [
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Other fill-in-the-middle marks: control tokens, whatever the file calls them.
const FILL_MARKS: [&str; 22] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
];

/// Marks of the harmony format that belong to the visible reply.
const VISIBLE_MARKS: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// All tokens of a model.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    /// The text of each token as the file has it.
    pub(super) texts: Vec<String>,
    /// The bytes that each stands for in a text.
    pub(super) bytes: Vec<Vec<u8>>,
    pub(super) kinds: Vec<Kind>,
    ids: HashMap<String, u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) unknown: Option<u32>,
    ends: BTreeSet<u32>,
}

impl Vocabulary {
    /// The tokens `texts` with their kinds; `bytes_of` gives what a normal token stands for.
    ///
    /// # Errors
    /// If two tokens have the same text.
    pub(super) fn new(
        mut texts: Vec<String>,
        mut kinds: Vec<Kind>,
        bytes_of: impl Fn(&str) -> Vec<u8>,
    ) -> Result<Vocabulary, TokenizerError> {
        kinds.resize(texts.len(), Kind::Normal);
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in (0u32..).zip(&mut texts) {
            if text.is_empty() {
                *text = format!("[EMPTY_{id}]");
            }
            if let Some(first) = ids.insert(text.clone(), id) {
                return Err(TokenizerError::Duplicate { text: text.clone(), first, second: id });
            }
        }
        let mut all = Vocabulary { texts, kinds, ids, ..Vocabulary::default() };
        all.mend_kinds();
        let bytes = |(text, kind): (&String, &Kind)| match kind {
            Kind::Normal => bytes_of(text),
            Kind::Byte => byte_named(text).map_or_else(|| text.as_bytes().to_vec(), |b| vec![b]),
            Kind::Unused => Vec::new(),
            Kind::Unknown | Kind::Control | Kind::UserDefined => text.as_bytes().to_vec(),
        };
        all.bytes = all.texts.iter().zip(&all.kinds).map(bytes).collect();
        Ok(all)
    }

    /// The token with exactly this text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// All tokens that end a reply, in order.
    pub(super) fn ends(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().copied()
    }

    /// Adds the end-of-text and end-of-turn tokens that the file names, once they are known.
    pub(super) fn close_ends(&mut self) {
        self.eot = self.eot.or_else(|| ENDS[..ENDS_OF_TURN].iter().find_map(|name| self.id(name)));
        self.ends.extend(self.eos);
        self.ends.extend(self.eot);
        // In harmony and its kin, `<|end|>` ends a message and not the reply.
        let has = |name| self.id(name).is_some_and(|id| self.ends.contains(&id));
        let calls = has("<|call|>") || has("<|calls|>");
        if calls && (has("<|return|>") || has("<|flush|>")) {
            self.no_end("<|end|>");
        }
        if self.id("<|tool_response>").is_some() {
            self.no_end("</s>");
        }
    }

    fn no_end(&mut self, name: &str) {
        if let Some(id) = self.id(name) {
            self.ends.remove(&id);
        }
    }

    /// Files often call marks of structure normal tokens; then a user's text could make them.
    fn mend_kinds(&mut self) {
        for name in ENDS.iter().chain(&FILL_ENDS) {
            if let Some(id) = self.id(name) {
                self.ends.insert(id);
                self.kinds[id as usize] = Kind::Control;
            }
        }
        for (names, kind) in [(&FILL_MARKS[..], Kind::Control), (&VISIBLE_MARKS[..], Kind::UserDefined)] {
            for id in names.iter().filter_map(|name| self.ids.get(*name)) {
                self.kinds[*id as usize] = kind;
            }
        }
        let harmony = ["<|call|>", "<|calls|>"].iter().any(|n| self.id(n).is_some())
            && ["<|return|>", "<|flush|>"].iter().any(|n| self.id(n).is_some());
        if let (true, Some(id)) = (harmony, self.id("<|end|>")) {
            self.kinds[id as usize] = Kind::UserDefined;
        }
        if let (Some(_), Some(id)) = (self.id("<|tool_response>"), self.id("</s>")) {
            self.kinds[id as usize] = Kind::Normal;
        }
    }
}

/// The byte that a token such as `<0x0A>` names.
pub(super) fn byte_named(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}
