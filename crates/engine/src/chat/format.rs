//! What a row of the table says: marks, the shape of calls, switches, and what a template wants.

use std::collections::BTreeMap;

use super::FAMILIES;

/// A piece of structure in a reply. Which text stands for it is the family's matter; several may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Thinking begins.
    ThinkOpen,
    /// Thinking ends.
    ThinkClose,
    /// A block of calls begins, where a call has marks of its own besides.
    GroupOpen,
    /// A block of calls ends.
    GroupClose,
    /// A call begins.
    CallOpen,
    /// The name of what is called ends.
    NameEnd,
    /// A call ends.
    CallClose,
    /// The name of an argument begins.
    KeyOpen,
    /// The name of an argument ends.
    KeyClose,
    /// The value of an argument begins; where a family has none, at the end of the name.
    ValueOpen,
    /// The value of an argument ends.
    ValueClose,
    /// Stands in a text for the end of a value, which would end it: `<` is written `&lt;`.
    ValueEscape,
    /// Stands on both sides of a text.
    Quote,
    /// A message begins, with the role of who speaks.
    Start,
    /// The channel of a message follows.
    Channel,
    /// The form of a message follows; of no interest.
    Constrain,
    /// The head of a message ends, and what it says begins.
    Body,
    /// A message ends.
    End,
}

/// Some of the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks(u32);

impl Marks {
    pub(super) const NONE: Marks = Marks(0);

    pub(super) const fn of(marks: &[Mark]) -> Marks {
        let (mut bits, mut i) = (0, 0);
        while i < marks.len() {
            bits |= 1 << marks[i] as u32;
            i += 1;
        }
        Marks(bits)
    }

    pub(super) const fn and(self, other: Marks) -> Marks {
        Marks(self.0 | other.0)
    }

    pub(super) fn has(self, mark: Mark) -> bool {
        self.0 & (1 << mark as u32) != 0
    }
}

/// How a family of models writes thinking and calls.
#[derive(Debug)]
pub struct ChatFormat {
    /// Its name, by which it can be asked for.
    pub name: &'static str,
    /// It is recognised by a chat template that holds all texts of any of these lists.
    pub template: &'static [&'static [&'static str]],
    /// Without such a template, by a vocabulary that has all of these as tokens. Nothing: never.
    pub tokens: &'static [&'static str],
    /// What stands for which mark.
    pub marks: &'static [(Mark, &'static str)],
    /// Special tokens that are pieces of marks, and mean nothing by themselves.
    pub pieces: &'static [&'static str],
    /// A word that follows the mark of thinking and is no thought.
    pub label: &'static str,
    /// The shape of a call.
    pub calls: Calls,
    /// How its prompt switches thinking.
    pub switch: Switch,
    /// What its template wants of messages past.
    pub history: History,
}

/// The shape of a call between its marks.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the text says what the fields are
pub enum Calls {
    /// There are none.
    None,
    /// A JSON object with these keys for the name and the arguments. Several follow one another between such `separators`.
    /// `bare`: one at the beginning of a reply needs no mark if it names a tool.
    Json { name: &'static [&'static str], arguments: &'static [&'static str], separators: &'static str, bare: bool },
    /// The name, then pairs of marked keys and values. `line`: the name ends with its line at the latest; `trim`: one line
    /// break on either side of a value is not part of it; `together`: a group holds all calls, and not one each.
    Pairs { typing: Typing, line: bool, trim: bool, together: bool },
    /// `lead` and the name, then an object of bare keys with marked texts: `call:name{key:1}`. `bare` as for JSON.
    Literal { lead: &'static str, bare: bool },
    /// Messages with heads: one `to` somebody whose name has this `prefix` is a call, and what it says are the arguments;
    /// the channels of `thinking` are thoughts, all others are content.
    Channels { to: &'static str, prefix: &'static str, thinking: &'static [&'static str] },
}

/// How one knows whether the value of a pair is a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typing {
    /// By the schema of the tool.
    Schema,
    /// By this word between the key and the value. Names are attributes then, in which `&`, `<`, `>` and `"` are escaped.
    Flag(&'static str),
}

/// The variables of a template that switch thinking.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    /// Those that switch it on.
    pub on: &'static [(&'static str, Setting)],
    /// Those that switch it off, or as low as it goes.
    pub off: &'static [(&'static str, Setting)],
    /// The one that says how much, in words.
    pub effort: Option<&'static str>,
}

/// The value of a variable.
#[derive(Clone, Copy, Debug)]
pub enum Setting {
    /// True or false.
    Flag(bool),
    /// A word.
    Word(&'static str),
}

/// Whether a model is to think.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Think {
    /// It is.
    On,
    /// It is not, or as little as it can.
    Off,
    /// So much, in the words of the model: `low`, `medium`, `high`.
    Effort(String),
}

/// What a template wants of messages past.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// The key of a message's thoughts.
    pub reasoning: &'static str,
    /// Arguments go in as the text that the model wrote if the template holds this; else as an object.
    pub text_arguments: Option<&'static str>,
    /// A template that holds the first and not the second wants the results of tools under the first key of the message that
    /// called them, and no messages of their own.
    pub results: Option<(&'static str, &'static str)>,
    /// Of a message with calls the template takes content or thoughts, not both: content joins the thoughts.
    pub merge: bool,
    /// A block of calls may go in as content, exactly as it was sampled.
    pub replay: bool,
}

impl ChatFormat {
    /// The family of this name.
    pub fn named(name: &str) -> Option<&'static ChatFormat> {
        FAMILIES.iter().find(|f| f.name == name)
    }

    /// The first family that a template's text speaks of, or else one whose tokens the vocabulary has; the last of the
    /// table, which has no marks, if there is none.
    pub fn recognise(template: &str, has_token: impl Fn(&str) -> bool) -> &'static ChatFormat {
        let by_template = |f: &&ChatFormat| f.template.iter().any(|all| all.iter().all(|text| template.contains(text)));
        let by_tokens = |f: &&ChatFormat| !f.tokens.is_empty() && f.tokens.iter().all(|text| has_token(text));
        let found = FAMILIES.iter().find(by_template).or_else(|| FAMILIES.iter().find(by_tokens));
        found.unwrap_or(&FAMILIES[FAMILIES.len() - 1])
    }

    /// Whether it has marks of thinking, or a channel for it.
    pub fn thinks(&self) -> bool {
        self.has(Mark::ThinkOpen) || matches!(self.calls, Calls::Channels { .. })
    }

    /// Whether its models can call tools.
    pub fn calls_tools(&self) -> bool {
        !matches!(self.calls, Calls::None)
    }

    pub(super) fn has(&self, mark: Mark) -> bool {
        self.marks.iter().any(|(m, _)| *m == mark)
    }

    /// Whether a text of calls has an end for each block that it begins.
    pub(super) fn is_closed(&self, raw: &str) -> bool {
        let count = |which| -> usize {
            self.marks.iter().filter(|(mark, _)| *mark == which).map(|(_, text)| raw.matches(text).count()).sum()
        };
        count(Mark::GroupOpen) == count(Mark::GroupClose)
    }

    /// The variables that switch thinking in its template; none where it cannot be switched so.
    pub fn variables(&self, think: &Think) -> BTreeMap<String, serde_json::Value> {
        let settings = |all: &[(&str, Setting)]| {
            let value = |setting: &Setting| match setting {
                Setting::Flag(flag) => serde_json::Value::from(*flag),
                Setting::Word(word) => serde_json::Value::from(*word),
            };
            all.iter().map(|(name, setting)| ((*name).to_owned(), value(setting))).collect::<BTreeMap<_, _>>()
        };
        match think {
            Think::On => settings(self.switch.on),
            Think::Off => settings(self.switch.off),
            Think::Effort(word) => {
                let mut all = settings(self.switch.on);
                all.extend(self.switch.effort.map(|name| (name.to_owned(), word.as_str().into())));
                all
            }
        }
    }

    /// Whether a prompt ends inside thinking that the template began.
    pub(super) fn opens_thinking(&self, prompt: &str) -> bool {
        let end = prompt.trim_end();
        let end = end.strip_suffix(self.label.trim_end()).unwrap_or(end).trim_end();
        self.marks.iter().any(|(mark, text)| *mark == Mark::ThinkOpen && end.ends_with(text))
    }
}
