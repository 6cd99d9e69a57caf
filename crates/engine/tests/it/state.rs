//! State files: what is read back goes on as if it had never left; whatever else lies there is refused, with its reason.

use std::{path::Path, sync::Arc};

use tessera_engine::{
    Checkpoint, Error, LoadOptions, Sequences, Session, StateError, models,
    state::Identity,
    synth::{self, Spec},
};
use tessera_ops::{KvFormat, Role, reference::ReferenceDevice};

const LLAMA: &str = "llama,layers=2,width=64,heads=2,kv_heads=1,head_dim=32,vocabulary=300,format=Q8_0";
const CONTEXT: usize = 256;

fn checkpoint(line: &str) -> Checkpoint {
    synth::checkpoint(&line.parse::<Spec>().unwrap(), 1).unwrap()
}

fn model(line: &str, kv_format: KvFormat, context: usize) -> Box<dyn tessera_engine::LanguageModel> {
    let options = LoadOptions { context: Some(context), kv_format, ..LoadOptions::default() };
    models::load(&checkpoint(line), Arc::new(ReferenceDevice), &options, &mut |_| ()).unwrap()
}

fn identity(line: &str) -> Identity {
    Identity::of(&checkpoint(line))
}

fn session() -> Session {
    Session::new(model(LLAMA, KvFormat::F16, CONTEXT), 16)
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 37 + 11) % 300).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

/// A prompt of so many tokens and three of a reply, in a file.
fn saved(file: &Path, prompt: usize) -> Session {
    let mut session = session();
    session.prefill(&tokens(prompt)).unwrap();
    (0..3).for_each(|token| session.decode(token).unwrap());
    session.save(file, &identity(LLAMA)).unwrap();
    session
}

#[test]
fn what_is_read_back_goes_on_as_if_it_had_never_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.state");
    for prompt in [1, 61, 64, 100] {
        let mut first = saved(&file, prompt);
        let mut second = session();
        second.prefill(&tokens(130)).unwrap();
        second.load(&file, &identity(LLAMA)).unwrap();
        assert_eq!(second.tokens(), first.tokens());
        for token in [5, 6, 7] {
            first.decode(token).unwrap();
            second.decode(token).unwrap();
            assert!(bits(first.logits()) == bits(second.logits()), "{prompt}: {token}");
        }
        // A sequence among others reads the same file, and writes the same.
        let mut many = Sequences::new(model(LLAMA, KvFormat::F16, CONTEXT));
        let (other, id) = (many.open(), many.open());
        many.prefill(other, &tokens(70), 64).unwrap();
        many.load(id, &file, &identity(LLAMA)).unwrap();
        let part = tessera_engine::Part { sequence: id, tokens: &[5, 6, 7], role: Role::Decode, logits: 1 };
        assert!(bits(many.step(&[part]).unwrap()) == bits(first.logits()), "{prompt}: among others");
        let again = folder.path().join("b.state");
        many.save(id, &again, &identity(LLAMA)).unwrap();
        second.load(&again, &identity(LLAMA)).unwrap();
        assert_eq!(second.tokens(), many.tokens(id));
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing else is left: {left:?}");
}

#[test]
fn a_foreign_or_stale_file_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.state");
    let refused = |line: &str, kv_format: KvFormat, context: usize| {
        let mut other = Session::new(model(line, kv_format, context), 16);
        other.prefill(&tokens(20)).unwrap();
        let error = match other.load(&file, &identity(line)) {
            Err(Error::State(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(other.tokens(), tokens(20), "it is as it was");
        other.decode(1).unwrap();
        assert!(error.to_string().contains("a.state"), "{error}");
        error
    };
    assert!(matches!(refused(LLAMA, KvFormat::F16, CONTEXT), StateError::Io { doing: "read", .. }));
    saved(&file, 130);
    let (f16, long) = (KvFormat::F16, CONTEXT);
    assert!(matches!(refused(&LLAMA.replace("Q8_0", "Q4_0"), f16, long), StateError::Model { .. }));
    assert!(matches!(refused(&format!("{LLAMA},seed=9"), f16, long), StateError::Model { .. }));
    assert!(matches!(refused(LLAMA, KvFormat::F32, long), StateError::Cache { .. }));
    assert!(matches!(refused(LLAMA, f16, 128), StateError::TooLong { tokens: 133, context: 128, .. }));
    let whole = std::fs::read(&file).unwrap();
    for (at, byte) in [(0, b'X'), (8, 9)] {
        let mut changed = whole.clone();
        changed[at] = byte;
        std::fs::write(&file, &changed).unwrap();
        let error = refused(LLAMA, f16, long);
        let expected =
            matches!((at, &error), (0, StateError::Foreign { .. }) | (8, StateError::Version { found: 9, .. }));
        assert!(expected, "{at}: {error}");
    }
}

/// Any cut and any changed byte is found.
#[test]
fn a_damaged_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.state");
    let mut session = saved(&file, 10);
    let whole = std::fs::read(&file).unwrap();
    let whose = identity(LLAMA);
    let mut try_bytes = |bytes: &[u8], what: &str| {
        std::fs::write(&file, bytes).unwrap();
        let error = session.load(&file, &whose);
        assert!(matches!(error, Err(Error::State(_))), "{what}: {error:?}");
        assert_eq!(session.tokens().len(), 13);
    };
    let step = whole.len() / 150;
    for length in (0..200).chain((200..whole.len()).step_by(step)) {
        try_bytes(&whole[..length], &format!("cut to {length}"));
    }
    try_bytes(&[&whole[..], b"more"].concat(), "four bytes more");
    for at in (0..400).chain((400..whole.len()).step_by(step)) {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        try_bytes(&changed, &format!("byte {at}"));
    }
    // A head that claims everything.
    let mut changed = whole.clone();
    changed[12..16].fill(0xff);
    try_bytes(&changed, "an endless head");
}

/// The model's own bytes count, not only its header.
#[test]
fn models_differ_by_their_weights() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, change: bool| {
        let path = folder.path().join(name);
        synth::write(&LLAMA.parse::<Spec>().unwrap(), &path, 1, &mut |_| ()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let opened = Checkpoint::open(&path).unwrap();
        let last = opened.tensors().last().unwrap().bytes.len();
        let at = bytes.len().next_multiple_of(32) - last.next_multiple_of(32);
        bytes[at] ^= u8::from(change);
        std::fs::write(&path, bytes).unwrap();
        Identity::of(&Checkpoint::open(&path).unwrap())
    };
    let (one, same, other) = (write("a", false), write("b", false), write("c", true));
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert_eq!(one.as_str().len(), 64);
}
