//! What can be wrong with the description of a synthetic model, and what to write instead.

/// Errors of describing and making a synthetic model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum SynthError {
    #[error(
        "`{found}` is no architecture that can be made; write synth:ARCHITECTURE,KEY=VALUE,… with one of {}",
        known.join(", ")
    )]
    Architecture { found: String, known: Vec<&'static str> },
    #[error("`{found}` is not of the form KEY=VALUE; the keys of {architecture} are {}", known.join(", "))]
    NoValue { found: String, architecture: &'static str, known: Vec<&'static str> },
    #[error("{architecture} has no key `{found}`; its keys are {}", known.join(", "))]
    Key { found: String, architecture: &'static str, known: Vec<&'static str> },
    #[error("key `{key}` appears twice; keep one of them")]
    Twice { key: &'static str },
    #[error("{key}={found} is no whole number from {first} to {last}")]
    Number { key: &'static str, found: String, first: u64, last: u64 },
    #[error("{key}={found} is neither true nor false")]
    Flag { key: &'static str, found: String },
    #[error("{key}={found} names no format of weights; the formats are {}", known.join(", "))]
    Format { key: &'static str, found: String, known: Vec<&'static str> },
    #[error("{kv_heads} heads of keys do not divide {heads} heads; set kv_heads to a divisor of heads")]
    KvHeads { heads: usize, kv_heads: usize },
    #[error("{groups} groups do not divide {heads} heads; set output_groups to a divisor of heads")]
    OutputGroups { heads: usize, groups: usize },
    #[error("head_dim={head_dim} is odd, and rotations turn pairs; set an even head_dim")]
    HeadDim { head_dim: usize },
    #[error(
        "a token cannot go to {used} of {experts} experts; set experts_used to at most the number of experts, at least 1"
    )]
    Experts { experts: usize, used: usize },
    #[error(
        "{shared} of {layers} layers cannot share keys and values: a layer of each kind must be left to share from; set \
         fewer shared_kv_layers"
    )]
    SharedKvLayers { layers: usize, shared: usize },
    #[error(
        "the embedding serves as the head, so head={head} and embedding={embedding} contradict each other; name one, or \
         set tied=false"
    )]
    Tied { head: &'static str, embedding: &'static str },
    #[error(
        "rows of {tensor} have {len} weights, which do not divide into {format} blocks of {block}; make {source_of_len} a \
         multiple of {block}, or set {key}={other} or another format with smaller blocks"
    )]
    PartialBlock {
        tensor: &'static str,
        len: usize,
        format: &'static str,
        block: usize,
        source_of_len: &'static str,
        key: &'static str,
        other: &'static str,
    },
    #[error(
        "its weights would be {} GiB, and {} GiB is the most that can be made; reduce layers, width, feed_forward or \
         vocabulary",
        gib(*bytes), gib(*most)
    )]
    TooLarge { bytes: u64, most: u64 },
    #[error(
        "its weights take {} GiB of memory and {} GiB are available; reduce layers, width, feed_forward or vocabulary, \
         or choose a format with fewer bits",
        gib(*needed), gib(*available)
    )]
    Memory { needed: u64, available: u64 },
    #[error("{format} has no place in GGUF files; use the model in memory, under its name synth:…, or another format")]
    NoGguf { format: &'static str },
}

fn gib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 30))
}
