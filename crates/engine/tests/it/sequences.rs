//! Many sequences on one model: each gives the bits that it gives alone, and the pages of the cache are shared out soundly.

use std::sync::Arc;

use proptest::prelude::*;
use tessera_cpu::CpuDevice;
use tessera_engine::{
    Error, LanguageModel, LoadOptions, Part, SequenceId, Sequences, Session, models,
    synth::{self, Spec},
};
use tessera_ops::{Device, PAGE_TOKENS, Role, reference::ReferenceDevice};

const PAGES: usize = 10;
/// One of each kind of attention and of feed-forward layer.
const ARCHITECTURES: [&str; 6] = [
    "llama,layers=2",
    "gemma3,layers=2",
    "qwen3moe,layers=2,experts=8,experts_used=3,expert_feed_forward=64",
    "gemma4,layers=14,window=40,shared_kv_layers=2,per_layer=32,experts=4,experts_used=2,expert_feed_forward=32",
    "gpt-oss,layers=2,window=40,experts=4,experts_used=2,expert_feed_forward=64",
    "glm4moe,layers=2,experts=8,experts_used=3,expert_feed_forward=64",
];

fn load<D: Device>(device: &Arc<D>, architecture: &str, pages: usize) -> Box<dyn LanguageModel> {
    let line = format!("{architecture},width=64,heads=2,kv_heads=1,head_dim=32,vocabulary=300,format=Q8_0");
    let checkpoint = synth::checkpoint(&Spec::parse(&line).unwrap(), 1).unwrap();
    let options = LoadOptions { context: Some(pages * PAGE_TOKENS), ..LoadOptions::default() };
    models::load(&checkpoint, device.clone(), &options, &mut |_| {}).unwrap()
}

fn cpu(threads: usize) -> Arc<CpuDevice> {
    Arc::new(CpuDevice::new(std::num::NonZero::new(threads), None).unwrap())
}

/// Tokens of sequence `which`, from position `start` on.
fn tokens(which: usize, start: usize, count: usize) -> Vec<u32> {
    (start..start + count).map(|i| ((i * 7919 + which * 104_729) % 290) as u32).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

fn decode(sequence: SequenceId, tokens: &[u32]) -> Part<'_> {
    Part { sequence, tokens, role: Role::Decode, logits: tokens.len() }
}

/// Pages of sequences of these lengths.
fn pages(lengths: &[usize]) -> usize {
    lengths.iter().map(|l| l.div_ceil(PAGE_TOKENS)).sum()
}

/// Runs a check on every device.
macro_rules! on_every_device {
    ($($name:ident),*) => {
        mod on_reference {
            $(#[test] fn $name() { super::$name(&super::Arc::new(super::ReferenceDevice)); })*
        }
        mod on_one_thread {
            $(#[test] fn $name() { super::$name(&super::cpu(1)); })*
        }
        mod on_two_threads {
            $(#[test] fn $name() { super::$name(&super::cpu(2)); })*
        }
    };
}

on_every_device!(
    neighbours_change_no_bit,
    what_was_copied_out_goes_on_as_if_never_moved,
    a_full_cache_refuses_and_goes_on
);

fn neighbours_change_no_bit<D: Device>(device: &Arc<D>) {
    for architecture in ARCHITECTURES {
        let lengths = [1, 63, 64, 65, 130];
        let mut alone = Session::new(load(device, architecture, PAGES), 512);
        let mut want = Vec::new();
        for (which, length) in lengths.into_iter().enumerate() {
            alone.rewind(0);
            alone
                .score(&tokens(which, 0, length + 6), &mut |i, l| {
                    if i + 1 >= length {
                        want.push(bits(l));
                    }
                })
                .unwrap();
        }
        let mut many = Sequences::new(load(device, architecture, PAGES));
        let ids = lengths.map(|_| many.open());
        // Four start together; the fifth joins with its whole prompt when they are one token on.
        let prompts: Vec<_> = lengths.iter().enumerate().map(|(which, l)| tokens(which, 0, *l)).collect();
        let prompt = |i: usize| Part { sequence: ids[i], tokens: &prompts[i], role: Role::Prefill, logits: 1 };
        let vocabulary = many.config().vocabulary;
        let mut found = vec![Vec::new(); 5];
        let logits = many.step(&[prompt(2), prompt(0), prompt(3), prompt(1)]).unwrap();
        for (i, l) in [2, 0, 3, 1].into_iter().zip(logits.chunks_exact(vocabulary)) {
            found[i].push(bits(l));
        }
        for step in 0..6 {
            let next: Vec<_> = (0..5).map(|i| tokens(i, lengths[i] + step - usize::from(i == 4), 1)).collect();
            let mut parts: Vec<_> = (0..4).map(|i| decode(ids[i], &next[i])).collect();
            parts.push(if step == 0 { prompt(4) } else { decode(ids[4], &next[4]) });
            let logits = many.step(&parts).unwrap();
            for (found, l) in found.iter_mut().zip(logits.chunks_exact(vocabulary)) {
                found.push(bits(l));
            }
        }
        for i in 0..5 {
            let count = if i == 4 { 6 } else { 7 };
            assert!(found[i][..] == want[7 * i..7 * i + count], "{architecture}: sequence {i}");
        }
        assert_eq!(many.free_pages(), PAGES - pages(&[7, 69, 70, 71, 135]));
    }
}

fn what_was_copied_out_goes_on_as_if_never_moved<D: Device>(device: &Arc<D>) {
    for (architecture, length) in ARCHITECTURES.into_iter().zip([70, 128].into_iter().cycle()) {
        let mut many = Sequences::new(load(device, architecture, PAGES));
        let first = many.open();
        let prompt = tokens(0, 0, length);
        many.prefill(first, &prompt, 33).unwrap();
        let saved = many.snapshot(first).unwrap();
        assert_eq!(saved.tokens(), prompt);
        let go_on = |many: &mut Sequences, id: SequenceId| -> Vec<Vec<u32>> {
            (0..5).map(|i| bits(many.step(&[decode(id, &tokens(0, length + i, 1))]).unwrap())).collect()
        };
        let want = go_on(&mut many, first);
        // Back in place; into another sequence, whose pages another one had in the meantime; and into another cache.
        many.restore(first, &saved).unwrap();
        assert_eq!(many.tokens(first), prompt);
        assert!(go_on(&mut many, first) == want, "{architecture}: restored in place");
        let other = many.open();
        many.prefill(other, &tokens(9, 0, 150), 512).unwrap();
        many.close(first);
        let again = many.open();
        many.prefill(again, &tokens(5, 0, 10), 512).unwrap();
        many.restore(again, &saved).unwrap();
        assert!(go_on(&mut many, again) == want, "{architecture}: restored elsewhere");
        let mut fresh = Sequences::new(load(device, architecture, PAGES));
        fresh.open();
        let id = fresh.open();
        fresh.restore(id, &saved).unwrap();
        assert!(go_on(&mut fresh, id) == want, "{architecture}: restored in another cache");
        // The neighbour of all this is as it was.
        let neighbour = bits(many.step(&[decode(other, &tokens(9, 150, 1))]).unwrap());
        let mut alone = Session::new(load(device, architecture, PAGES), 512);
        alone.prefill(&tokens(9, 0, 151)).unwrap();
        assert!(neighbour == bits(alone.logits()), "{architecture}: the neighbour");
        many.close(again);
        many.close(other);
        assert_eq!(many.free_pages(), PAGES);
    }
}

fn a_full_cache_refuses_and_goes_on<D: Device>(device: &Arc<D>) {
    let mut many = Sequences::new(load(device, "llama", 3));
    let (a, b) = (many.open(), many.open());
    many.prefill(a, &tokens(0, 0, 2 * PAGE_TOKENS), 512).unwrap();
    let saved = many.snapshot(a).unwrap();
    let (one, wide) = (tokens(0, 2 * PAGE_TOKENS, 1), tokens(1, 0, 1));
    let refused = many.step(&[decode(a, &one), decode(b, &wide)]).unwrap_err();
    assert!(matches!(refused, Error::CacheFull { pages: 2, free: 1 }), "{refused}");
    assert_eq!((many.tokens(a).len(), many.tokens(b).len(), many.free_pages()), (2 * PAGE_TOKENS, 0, 1));
    many.step(&[decode(b, &wide)]).unwrap();
    assert!(matches!(many.step(&[decode(a, &one)]), Err(Error::CacheFull { pages: 1, free: 0 })));
    let refused = many.restore(b, &saved).unwrap_err();
    assert!(matches!(refused, Error::CacheFull { pages: 2, free: 1 }), "{refused}");
    assert_eq!((many.tokens(b).len(), many.free_pages()), (0, 1), "what was not restored is empty");
    assert!(matches!(many.prefill(b, &[], 8), Err(Error::EmptyPrompt)));
    assert!(matches!(many.step(&[decode(b, &[300])]), Err(Error::Token { token: 300, .. })));
    many.close(b);
    assert_eq!(many.free_pages(), 1);
    let mut other = Sequences::new({
        let line = "llama,layers=1,width=64,heads=2,kv_heads=1,head_dim=32,vocabulary=300,format=Q8_0";
        let checkpoint = synth::checkpoint(&Spec::parse(line).unwrap(), 1).unwrap();
        models::load(&checkpoint, device.clone(), &LoadOptions::default(), &mut |_| {}).unwrap()
    });
    let (id, free) = (other.open(), other.free_pages());
    let refused = other.restore(id, &saved).unwrap_err().to_string();
    assert!(refused.contains("does not fit a cache") && other.free_pages() == free, "{refused}");
}

/// One thing that happens to one of three sequences; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Event {
    Step(Vec<usize>),
    Rewind(usize, usize),
    Close(usize),
    Save(usize),
    Restore(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => prop::collection::vec(0usize..80, 3).prop_map(Event::Step),
        1 => (0usize..3, 0usize..200).prop_map(|(which, len)| Event::Rewind(which, len)),
        1 => (0usize..3).prop_map(Event::Close),
        1 => (0usize..3).prop_map(Event::Save),
        1 => (0usize..3).prop_map(Event::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("TESSERA_SWEEP").is_some() { 200 } else { 8 }))]

    /// Whatever happened before, a sequence gives the logits of its own tokens, and no page is lost.
    #[test]
    fn any_history_gives_the_bits_of_the_tokens(events in prop::collection::vec(event(), 1..14)) {
        let device = cpu(2);
        let mut alone = Session::new(load(&device, "llama", 40), 512);
        let mut many = Sequences::new(load(&device, "llama", 40));
        let mut ids = [0; 3].map(|_| many.open());
        let mut held: [Vec<u32>; 3] = Default::default();
        let mut saved = None;
        for (turn, event) in events.into_iter().enumerate() {
            match event {
                Event::Step(counts) => {
                    let new: Vec<_> = (0..3).map(|i| tokens(turn * 3 + i, 0, counts[i])).collect();
                    let parts = (0..3).filter(|i| counts[*i] > 0);
                    let parts: Vec<_> = parts.map(|i| Part { logits: 1, ..decode(ids[i], &new[i]) }).collect();
                    let logits = many.step(&parts).unwrap().to_vec();
                    let mut logits = logits.chunks_exact(300);
                    for i in (0..3).filter(|i| counts[*i] > 0) {
                        held[i].extend(&new[i]);
                        alone.rewind(0);
                        alone.prefill(&held[i]).unwrap();
                        prop_assert!(bits(logits.next().unwrap()) == bits(alone.logits()));
                    }
                }
                Event::Rewind(which, len) => {
                    many.rewind(ids[which], len);
                    held[which].truncate(len);
                }
                Event::Close(which) => {
                    many.close(ids[which]);
                    ids[which] = many.open();
                    held[which].clear();
                }
                Event::Save(which) => saved = Some(many.snapshot(ids[which]).unwrap()),
                Event::Restore(which) => {
                    if let Some(saved) = &saved {
                        many.restore(ids[which], saved).unwrap();
                        held[which] = saved.tokens().to_vec();
                    }
                }
            }
            prop_assert_eq!(many.free_pages(), 40 - pages(&[held[0].len(), held[1].len(), held[2].len()]));
            for (id, held) in ids.iter().zip(&held) {
                prop_assert_eq!(many.tokens(*id), &held[..]);
            }
        }
    }
}
