//! Prompts that a template made around what people wrote.
//!
//! The names of control tokens mean the tokens where the template wrote them, and are text where a person did: nobody
//! ends a turn by writing `<|im_end|>`. A template only gives text, so names inside messages are broken by a mark before it
//! runs, and the marks taken out when its text has been cut at the whole names.

use super::{
    Engine, Special, Tokenizer,
    error::TokenizerError,
    partition::{Part, Partition},
};

/// A code point that Unicode promises never to be a character, for use inside a program.
const MARK: char = '\u{fdd0}';

impl Tokenizer {
    /// What a person wrote, as it may be given to a template whose text goes to [`Tokenizer::encode_rendered`].
    ///
    /// A name of one character cannot be broken and keeps its meaning.
    pub fn shield(&self, content: &str) -> String {
        let content = content.replace(MARK, "");
        let mut breaks = self.partition.control_names(content.as_bytes());
        breaks.sort_unstable();
        breaks.dedup();
        let mut out = String::with_capacity(content.len() + breaks.len() * MARK.len_utf8());
        let mut at = 0;
        for start in breaks {
            let first = content[start..].chars().next().map_or(0, char::len_utf8);
            out.push_str(&content[at..start + first]);
            out.push(MARK);
            at = start + first;
        }
        out.push_str(&content[at..]);
        out
    }

    /// The tokens of a template's text; names of control tokens in shielded messages are text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        // The `tokenizers` crate cuts by itself, and knows best how; it is only helped where it has to be.
        if !text.contains(MARK) && matches!(self.engine, Engine::Json(_)) {
            return self.encode(text, Special::Parse, false);
        }
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        let mut after_special = true;
        for part in self.partition.split(text.as_bytes(), Special::Parse) {
            match part {
                Part::Token(id) => out.push(id),
                Part::Text(bytes) => {
                    let text = String::from_utf8_lossy(bytes).replace(MARK, "");
                    self.encode_part(text.as_bytes(), Special::Plain, after_special, &mut out)?;
                }
            }
            after_special = matches!(part, Part::Token(_));
        }
        Ok(out)
    }
}

impl Partition {
    /// Where names of control tokens begin in a text, overlapping ones too.
    fn control_names(&self, text: &[u8]) -> Vec<usize> {
        self.occurrences(text).filter(|(_, is_control)| *is_control).map(|(start, _)| start).collect()
    }
}
