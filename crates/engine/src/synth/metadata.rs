//! The metadata of a synthetic model, its tokenizer among them.
//!
//! The tokenizer is byte-level BPE, so that it can say any text. Tokens 0 to 255 are the bytes, then come four marks,
//! and the rest of the vocabulary are words: letters, or a space and letters, shorter ones first. Each word is a
//! shorter one and a letter more, which is the merge that makes it. So texts become tokens of a few letters, as with
//! a real model, and what a random model says can be read aloud.

use tessera_formats::gguf::Value;

use super::{families::Size, spec::Spec};
use crate::{chat_template, tokenizer::byte_level};

const BYTES: usize = 256;
/// After the bytes.
const MARKS: [&str; 4] = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"];
/// The token after them, and so the least size of a vocabulary.
pub(super) const FIRST_WORD: usize = BYTES + MARKS.len();

/// GGUF's numbers of kinds of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// All entries, in the order of a file.
pub(super) fn all(spec: &Spec) -> Vec<(String, Value)> {
    let name = spec.family.name;
    let size = |size| Value::from(spec.sizes.get(size) as u32);
    let mut all = vec![
        ("general.architecture".to_owned(), Value::from(name)),
        ("general.name".to_owned(), Value::from(spec.to_string())),
        ("general.quantization_version".to_owned(), Value::from(2u32)),
    ];
    let common = vec![
        ("block_count", size(Size::Layers)),
        ("context_length", size(Size::Context)),
        ("embedding_length", size(Size::Width)),
        ("feed_forward_length", size(Size::FeedForward)),
        ("attention.head_count", size(Size::Heads)),
        ("attention.head_count_kv", size(Size::KvHeads)),
        ("attention.key_length", size(Size::HeadDim)),
        ("attention.value_length", size(Size::HeadDim)),
        ("attention.layer_norm_rms_epsilon", Value::from(1e-6f32)),
        ("vocab_size", size(Size::Vocabulary)),
    ];
    let own = (spec.family.keys)(&spec.sizes);
    let common = common.into_iter().filter(|(key, _)| own.iter().all(|(other, _)| other != key));
    let keys: Vec<_> = common.chain(own.iter().cloned()).collect();
    all.extend(keys.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
    all.extend(tokenizer(spec.sizes.get(Size::Vocabulary)));
    all
}

fn tokenizer(vocabulary: usize) -> impl Iterator<Item = (String, Value)> {
    let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| spell(&[byte])).collect();
    tokens.extend(MARKS.map(str::to_owned));
    let (words, merges) = words(vocabulary - FIRST_WORD);
    tokens.extend(words);
    let mut kinds = vec![NORMAL; vocabulary];
    kinds[BYTES..FIRST_WORD].fill(CONTROL);
    let template = chat_template::BUILT_IN.iter().find(|(name, _)| *name == "chatml").map(|(_, text)| *text);
    [
        ("ggml.model", Value::from("gpt2")),
        ("ggml.pre", Value::from("gpt-2")),
        ("ggml.tokens", Value::from(tokens)),
        ("ggml.token_type", Value::from(kinds)),
        ("ggml.merges", Value::from(merges)),
        ("ggml.bos_token_id", Value::from(BYTES as u32)),
        ("ggml.eos_token_id", Value::from(BYTES as u32 + 1)),
        ("ggml.eot_token_id", Value::from(BYTES as u32 + 3)),
        ("ggml.add_bos_token", Value::from(true)),
        ("chat_template", Value::from(template.expect("a built-in template"))),
    ]
    .into_iter()
    .map(|(key, value)| (format!("tokenizer.{key}"), value))
}

/// Bytes in the byte-level alphabet.
fn spell(bytes: &[u8]) -> String {
    let mut out = String::new();
    byte_level::encode(bytes, &mut out);
    out
}

/// The first `count` words and the merges that make them. Roots are a space and the letters; word n is word n / 26 of
/// roots and words together, with one letter more.
fn words(count: usize) -> (Vec<String>, Vec<String>) {
    let mut all = vec![spell(b" ")];
    all.extend((b'a'..=b'z').map(|letter| spell(&[letter])));
    let roots = all.len();
    let mut merges = Vec::with_capacity(count);
    for n in 0..count {
        let (begin, letter) = (&all[n / 26], char::from(b'a' + (n % 26) as u8));
        merges.push(format!("{begin} {letter}"));
        all.push(format!("{begin}{letter}"));
    }
    (all.split_off(roots), merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_and_made_of_shorter_ones() {
        let (words, merges) = words(30_000);
        assert_eq!((&*words[0], &*merges[0]), ("Ġa", "Ġ a"));
        assert_eq!((&*words[26], &*merges[26]), ("aa", "a a"));
        assert_eq!((words.len(), merges.len()), (30_000, 30_000));
        assert_eq!(words.iter().collect::<std::collections::HashSet<_>>().len(), words.len());
        assert!(words.windows(2).all(|w| w[0].chars().count() <= w[1].chars().count()));
        assert!(words.iter().zip(&merges).all(|(word, merge)| *word == merge.replace(' ', "")));
    }
}
