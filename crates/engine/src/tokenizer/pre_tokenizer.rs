//! Pre-tokenizers: into which pieces a text is cut before any merging (`tokenizer.ggml.pre` names one).
//!
//! The patterns are those of the models' own tokenizers as llama.cpp applies them: one expression after another, each
//! over the pieces of the one before; what an expression does not match stays a piece of its own. They run on the
//! `regex` crate, whose time is linear in the text, where a backtracking engine gives up (or takes minutes) on hostile
//! text. That crate has no look-ahead, so the patterns' `\s+(?!\S)`, "white space, but leave its last character to the
//! word that follows", is [`LastSpace::Leave`] here.

use std::ops::Range;

use regex::Regex;

use super::error::TokenizerError;
use LastSpace::{Keep, Leave};
use Spelling::{ByteLevel, Escaped};

/// Whether a run of white space keeps its last character if a word follows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum LastSpace {
    /// It does.
    Keep,
    /// The character is left to the word. A run of one stays, and so does one that ends in a line break where the
    /// pattern has a part of its own for these (`true`).
    Leave(bool),
}

/// How text becomes the characters that are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte is a character of the byte alphabet.
    ByteLevel,
    /// Text stays text, spaces are escaped, and what has no token is spelled in byte tokens.
    Escaped,
}

/// One family of pre-tokenizers.
pub(super) struct Rule {
    /// The names it goes by, separated by spaces.
    names: &'static str,
    steps: &'static [(&'static str, LastSpace)],
    pub(super) spelling: Spelling,
    /// Whether a piece that is a token is that token, whatever the merges say.
    pub(super) whole_pieces: bool,
    /// Whether texts begin with the BOS token if the file does not say.
    pub(super) add_bos: bool,
}

/// What most rows are: byte-level, by merges alone, without BOS.
const fn rule(names: &'static str, steps: &'static [(&'static str, LastSpace)]) -> Rule {
    Rule { names, steps, spelling: ByteLevel, whole_pieces: false, add_bos: false }
}

const DIGIT: (&str, LastSpace) = (r"\p{N}", Keep);
const DIGITS_BY_THREE: (&str, LastSpace) = (r"\p{N}{1,3}", Keep);
/// GPT-2 (Radford et al. 2019).
const GPT2: (&str, LastSpace) = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+", Leave(false));

/// What many patterns are put together from.
macro_rules! contractions {
    () => {
        r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    };
}
/// A word, with one character before it that is neither word, number nor line break.
macro_rules! word {
    () => {
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    };
}
/// Marks, with a space before and line breaks after them.
macro_rules! marks {
    () => {
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    };
}
/// Line breaks with the white space before them, and other white space.
macro_rules! space {
    () => {
        r"|\s*[\r\n]+|\s+"
    };
}

/// As in GPT-4's cl100k, digits by three.
const LLAMA3: &str = concat!(contractions!(), word!(), r"|\p{N}{1,3}", marks!(), space!());
/// The same with single digits.
const QWEN2: &str = concat!(contractions!(), word!(), r"|\p{N}", marks!(), space!());
const QWEN35: &str =
    concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", space!());
const MINICPM5: &str = concat!(contractions!(), word!(), r"|\p{N}+", marks!(), space!());
const SEED_CODER: &str = concat!(contractions!(), word!(), r"|\p{N}| ?[^\s\p{L}\p{N}]+", space!());
const BAILING: &str = concat!(contractions!(), word!(), r"|\p{N}", marks!(), r"|\s*[\r\n]|\s+");
const EXAONE_MOE: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+"
);
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"##,
    space!()
);
/// GPT-4o's o200k with llama.cpp's reading of case: any letter but a-z, then any but A-Z.
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}--a-z]*[\p{L}--A-Z]+(?:",
    contractions!(),
    r")?|[^\r\n\p{L}\p{N}]?[\p{L}--a-z]+[\p{L}--A-Z]*(?:",
    contractions!(),
    r")?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    space!()
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}--a-z]*[\p{L}--A-Z]+|[^\r\n\p{L}\p{N}]?[\p{L}--a-z]+[\p{L}--A-Z]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    space!()
);
/// Kimi K2: Chinese characters apart; case is not looked at, as llama.cpp has it.
const KIMI_K2: &str =
    concat!(r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{L}--\p{Han}]+(?:", contractions!(), r")?|\p{N}{1,3}", marks!(), space!());
/// DeepSeek's early range of Chinese and much else, without the white space in it.
const CHINESE: (&str, LastSpace) = (r"[[一-龥ࠀ-一가-\u{d7ff}]--\s]+", Keep);
const BLOOM: (&str, LastSpace) = (r" ?[^(\s|.,!?…。，、।۔،)]+", Keep);
const LINES: (&str, LastSpace) = (r"[^\n]+|\n+", Keep);

/// All that are known.
const RULES: [Rule; 22] = [
    rule("default", &[(r"[\p{P}$+<=>^~|]+", Keep), GPT2, (r"\p{N}+", Keep), (r"[0-9][0-9][0-9]", Keep)]),
    rule("gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling", &[GPT2]),
    rule("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", &[DIGIT, GPT2]),
    rule("falcon", &[(r"[\p{P}$+<=>^~|`]+", Keep), GPT2, (r"[0-9][0-9][0-9]", Keep)]),
    Rule {
        whole_pieces: true,
        add_bos: true,
        ..rule("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", &[(LLAMA3, Leave(true))])
    },
    rule("dbrx smaug-bpe glm4 chatglm-bpe", &[(LLAMA3, Leave(true))]),
    rule("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", &[(QWEN2, Leave(true))]),
    rule("qwen35", &[(QWEN35, Leave(true))]),
    rule("laguna", &[LINES, (QWEN2, Leave(true))]),
    Rule { whole_pieces: true, ..rule("minicpm5", &[DIGITS_BY_THREE, (MINICPM5, Leave(true))]) },
    rule("seed-coder", &[(SEED_CODER, Leave(true))]),
    rule("bailingmoe bailingmoe2 llada-moe", &[(BAILING, Leave(true))]),
    rule("exaone-moe", &[(EXAONE_MOE, Leave(true))]),
    rule(
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        &[DIGITS_BY_THREE, ("[一-龥぀-ゟ゠-ヿ]+", Keep), (DEEPSEEK3, Leave(true))],
    ),
    rule(
        "deepseek-llm",
        &[
            (r"[\r\n]", Keep),
            (CASED_WORDS, Keep),
            (r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+", Keep),
            (r"\s+$", Keep),
            CHINESE,
            (r"\p{N}+", Keep),
        ],
    ),
    rule("deepseek-coder", &[(r"[\r\n]", Keep), (r"\s?\p{L}+", Keep), (r"\s?\p{P}+", Keep), CHINESE, DIGIT]),
    rule("gpt-4o llama4 kanana2 talkie minimax-m2", &[(GPT4O, Leave(true))]),
    Rule { whole_pieces: true, add_bos: true, ..rule("tekken", &[(TEKKEN, Leave(true))]) },
    rule("kimi-k2", &[(KIMI_K2, Leave(true))]),
    rule("poro-chat bloom gpt3-finnish", &[BLOOM]),
    rule("viking", &[BLOOM, DIGIT]),
    Rule { spelling: Escaped, ..rule("gemma4 sarvam-moe", &[LINES]) },
];

/// DeepSeek LLM's words: letters that have case. Its list is of a Unicode version before Georgian had two cases.
const CASED_WORDS: &str = r"\s?[[\p{Lu}\p{Ll}\p{Lt}]--\u{10d0}-\u{10ff}]+";

/// Cuts texts.
#[derive(Debug)]
pub(super) struct Splitter {
    steps: Vec<(Regex, LastSpace)>,
}

/// The row of a name.
///
/// # Errors
/// If it is not known; the error lists those that are.
pub(super) fn find(name: &str) -> Result<&'static Rule, TokenizerError> {
    let named = |rule: &&Rule| rule.names.split(' ').any(|n| n == name);
    RULES.iter().find(named).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
        found: name.to_owned(),
        known: known_names().collect::<Vec<_>>().join(", "),
    })
}

/// All names.
pub(super) fn known_names() -> impl Iterator<Item = &'static str> {
    RULES.iter().flat_map(|rule| rule.names.split(' '))
}

impl Rule {
    pub(super) fn splitter(&self) -> Splitter {
        let compile = |&(pattern, last): &(&str, LastSpace)| {
            (Regex::new(pattern).expect("all patterns of the table compile, as a test sees to"), last)
        };
        Splitter { steps: self.steps.iter().map(compile).collect() }
    }
}

impl Splitter {
    /// The pieces of a text, in order and without gaps.
    pub(super) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let whole = 0..text.len();
        let mut pieces = vec![whole];
        for (regex, last) in &self.steps {
            let mut finer = Vec::with_capacity(pieces.len());
            for piece in &pieces {
                split_piece(regex, *last, &text[piece.clone()], piece.start, &mut finer);
            }
            pieces = finer;
        }
        pieces.retain(|p| !p.is_empty());
        pieces
    }
}

/// Cuts `text`, which begins at `base`, at the matches of one expression.
fn split_piece(regex: &Regex, last: LastSpace, text: &str, base: usize, out: &mut Vec<Range<usize>>) {
    let mut at = 0;
    while let Some(found) = regex.find_at(text, at) {
        if found.start() > at {
            out.push(base + at..base + found.start());
        }
        let end = match last {
            Leave(but_line_breaks) => end_without_last_space(text, found.range(), but_line_breaks),
            Keep => found.end(),
        };
        out.push(base + found.start()..base + end);
        at = end;
    }
    if at < text.len() {
        out.push(base + at..base + text.len());
    }
}

/// Where a match ends if its last white space belongs to the word after it. In all patterns with look-ahead, only the
/// white-space part ends in white space, save for line breaks.
fn end_without_last_space(text: &str, found: Range<usize>, but_line_breaks: bool) -> usize {
    let stays = |c: char| !c.is_whitespace() || (but_line_breaks && matches!(c, '\r' | '\n'));
    match text[found.clone()].char_indices().next_back() {
        Some((i, c)) if i > 0 && found.end < text.len() && !stays(c) => found.start + i,
        _ => found.end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        find(name).unwrap().splitter().split(text).into_iter().map(|r| &text[r]).collect()
    }

    #[test]
    fn every_pattern_compiles_and_loses_nothing() {
        for name in known_names() {
            for text in ["", " ", "a  b\r\n\r\n 12345", "it's  HTTPServer\n\n  x\u{a0}\u{301}中文。"] {
                assert_eq!(pieces(name, text).concat(), text, "{name}");
            }
        }
        let mut names: Vec<_> = known_names().collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "a name stands in two rows");
    }

    #[test]
    fn pieces_are_those_of_llama_cpp() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tokenizer/splits.json");
        let recorded: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let texts = recorded["texts"].as_array().unwrap();
        let (mut wrong, mut checked) = (Vec::new(), 0);
        for (names, rows) in recorded.as_object().unwrap().iter().filter(|(key, _)| *key != "texts") {
            for name in names.split(' ') {
                checked += 1;
                for (text, row) in texts.iter().zip(rows.as_array().unwrap()) {
                    let text = text.as_str().unwrap();
                    let got: Vec<u64> = pieces(name, text).iter().map(|p| p.len() as u64).collect();
                    let expected: Vec<u64> = row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
                    if got != expected {
                        wrong.push(format!("{name} {text:?}: {got:?}, not {expected:?}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
        // All but those that spell text as it is, which the tests of whole tokenizers cover.
        assert_eq!(checked, known_names().count() - 2);
    }

    #[test]
    fn the_last_space_goes_with_the_word() {
        assert_eq!(pieces("gpt-2", "a   b\n\nc \n"), ["a", "  ", " b", "\n", "\n", "c", " \n"]);
        assert_eq!(pieces("llama-bpe", "a   b\n\nc \n x"), ["a", "  ", " b", "\n\n", "c", " \n", " x"]);
        assert_eq!(pieces("qwen2", "123 45"), ["1", "2", "3", " ", "4", "5"]);
        assert_eq!(pieces("llama-bpe", "12345"), ["123", "45"]);
    }

    #[test]
    fn an_unknown_name_gets_the_known_ones() {
        let error = find("nonesuch").err().unwrap().to_string();
        assert!(error.contains("`nonesuch`") && error.contains("llama-bpe") && error.contains("deepseek-v3"));
    }
}
