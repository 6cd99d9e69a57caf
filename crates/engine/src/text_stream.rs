//! From tokens' bytes to text, never cutting a character.
//!
//! A token may hold a part of a character: byte tokens, and byte-level vocabularies, cut UTF-8 anywhere. What is not
//! yet a whole character waits for the next token; bytes that can never become one turn into U+FFFD, one for each
//! maximal part of a character (as `String::from_utf8_lossy` and the Unicode Standard, section 3.9, do).

/// Collects bytes and gives whole characters.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The beginning of one character: at most 3 bytes.
    pending: Vec<u8>,
    /// Whether a space at the very start is to be dropped.
    drop_space: bool,
}

impl TextStream {
    /// An empty stream. With `drop_leading_space`, one space at the very start of the text is left out: vocabularies
    /// that put a space before every text want it gone again.
    pub fn new(drop_leading_space: bool) -> TextStream {
        TextStream { pending: Vec::new(), drop_space: drop_leading_space }
    }

    /// Takes the bytes of the next token and gives all characters that are whole by now.
    pub fn push(&mut self, mut bytes: &[u8]) -> String {
        if self.drop_space && !bytes.is_empty() {
            self.drop_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let whole = self.pending.len() - unfinished(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        text
    }

    /// Whether a character was begun and is not whole.
    pub fn holds(&self) -> bool {
        !self.pending.is_empty()
    }

    /// At the end: U+FFFD if a character was begun and not finished, else nothing.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// The number of bytes at the end that begin a character which more bytes may finish.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    // Only an incomplete but so far valid sequence gives an error without a length.
    (0..tail.len())
        .map(|start| &tail[start..])
        .find(|end| matches!(std::str::from_utf8(end), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none()))
        .map_or(0, <[u8]>::len)
}
