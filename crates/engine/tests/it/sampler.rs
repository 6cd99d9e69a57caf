//! The sampler against a plain one: a full sort and sums in double, no shortcuts.

use proptest::prelude::*;
use tessera_engine::{Sampled, Sampler, SamplingError, SamplingParams};
use tessera_ops::ranking;

const NEVER: f32 = f32::NEG_INFINITY;

fn sample(params: &SamplingParams, logits: &[f32], history: &[u32], index: u64) -> Result<Sampled, SamplingError> {
    Sampler::new(params.clone())?.sample(&mut logits.to_vec(), history, index)
}

fn id(params: &SamplingParams, logits: &[f32], index: u64) -> u32 {
    sample(params, logits, &[], index).unwrap().id
}

/// All candidates that the parameters leave, with probabilities, best first. Without penalties and bias.
fn plain(params: &SamplingParams, logits: &[f32]) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = logits.iter().enumerate().map(|(i, &l)| (i as u32, f64::from(l))).collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    if params.temperature == 0.0 {
        return vec![(all[0].0, 1.0)];
    }
    if params.top_k > 0 {
        all.truncate(params.top_k);
    }
    let highest = all[0].1;
    let mut all: Vec<(u32, f64)> =
        all.iter().map(|&(i, l)| (i, ((l - highest) / f64::from(params.temperature)).exp())).collect();
    let total: f64 = all.iter().map(|c| c.1).sum();
    let (mut sum, mut kept) = (0.0, 0);
    while kept < all.len() && (kept == 0 || sum < f64::from(params.top_p) * total) {
        sum += all[kept].1;
        kept += 1;
    }
    if params.top_p < 1.0 {
        all.truncate(kept);
    }
    all.retain(|c| c.1 >= f64::from(params.min_p));
    let total: f64 = all.iter().map(|c| c.1).sum();
    all.iter().map(|&(i, w)| (i, w / total)).collect()
}

/// The number in [0, 1) that the sampler uses for this seed and index, found by a scale of equal logits.
fn uniform_between(params: &SamplingParams, index: u64) -> (f64, f64) {
    const STEPS: usize = 1 << 16;
    let even = SamplingParams { temperature: 1.0, seed: params.seed, ..Default::default() };
    let step = id(&even, &vec![0.0; STEPS], index) as f64;
    (step / STEPS as f64, (step + 1.0) / STEPS as f64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn draws_what_the_plain_sampler_draws(
        logits in prop::collection::vec(prop_oneof![8 => -8.0f32..8.0, 1 => Just(1.5f32)], 1..400),
        temperature in prop_oneof![Just(0.0f32), 0.05f32..3.0],
        top_k in prop_oneof![Just(0usize), 1usize..500],
        top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        seed: u64,
        index in 0u64..1000,
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed, ..Default::default() };
        let got = id(&params, &logits, index);
        let (low, high) = uniform_between(&params, index);
        // Every token whose share touches the interval in which the random number lies, with room for rounding.
        let (mut sum, mut allowed) = (0.0, Vec::new());
        let candidates = plain(&params, &logits);
        for &(token, p) in &candidates {
            if sum + p >= low - 1e-9 && sum <= high + 1e-9 {
                allowed.push(token);
            }
            sum += p;
        }
        // The filters' borders are exact only up to rounding, so a last candidate may be in one and not in the other.
        prop_assert!(allowed.contains(&got), "{got} is none of {allowed:?} of {} candidates", candidates.len());
    }

    /// What is drawn from the likeliest tokens is what is drawn from all logits, to the last tie, also where it is refused.
    #[test]
    fn the_likeliest_tokens_are_enough(
        picks in prop::collection::vec(0usize..400, 2..300),
        unsound in prop::option::weighted(0.1, (0usize..300, any::<bool>())),
        temperature in prop_oneof![Just(0.0f32), Just(1e-30f32), 0.1f32..3.0],
        top_k in 0usize..160,
        top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        (seed, index, more) in (any::<u64>(), 0u64..50, 0usize..9),
    ) {
        // Few values, so that many are equal.
        let mut logits: Vec<f32> = picks.iter().map(|i| if *i < 9 { NEVER } else { *i as f32 / 16.0 - 12.0 }).collect();
        if let Some((at, is_nan)) = unsound {
            let at = at % logits.len();
            logits[at] = if is_nan { f32::NAN } else { f32::INFINITY };
        }
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed, stop_tokens: vec![1], ..Default::default() };
        let mut sampler = Sampler::new(params.clone()).unwrap();
        let enough = sampler.enough(logits.len());
        let wanted = if temperature == 0.0 { 1 } else { top_k };
        let can = (1..=ranking::BEST_MAX).contains(&wanted) && wanted < logits.len();
        prop_assert_eq!(enough, can.then_some(wanted));
        if let Some(count) = enough {
            let mut best = vec![];
            ranking::best(&logits, count + more, &mut best);
            // A NaN is no NaN's equal: in words.
            let words = |drawn: Result<Sampled, SamplingError>| format!("{drawn:?}");
            prop_assert_eq!(words(sampler.sample_best(&best, index)), words(sample(&params, &logits, &[], index)));
        }
    }

    #[test]
    fn logprobs_are_those_of_the_raw_logits(
        logits in prop::collection::vec(-30.0f32..30.0, 1..200),
        count in 0usize..20,
        frequency_penalty in -2.0f32..2.0,
    ) {
        let params = SamplingParams { logprobs: Some(count), frequency_penalty, ..Default::default() };
        let sampled = sample(&params, &logits, &[0, 0], 0).unwrap();
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = |id: u32| (f64::from(logits[id as usize]).exp() / total).ln();
        prop_assert!((f64::from(sampled.logprob.unwrap()) - expected(sampled.id)).abs() < 1e-5);
        prop_assert_eq!(sampled.top.len(), count.min(logits.len()));
        for pair in sampled.top.windows(2) {
            prop_assert!(pair[0].1 >= pair[1].1);
        }
        for &(id, logprob) in &sampled.top {
            prop_assert!((f64::from(logprob) - expected(id)).abs() < 1e-5);
        }
    }

    #[test]
    fn hostile_logits_never_panic(
        logits in prop::collection::vec(prop::num::f32::ANY, 0..50),
        history in prop::collection::vec(any::<u32>(), 0..20),
        temperature in prop_oneof![Just(0.0f32), Just(f32::MIN_POSITIVE), Just(f32::MAX), 0.0f32..2.0],
        penalty in prop::num::f32::POSITIVE,
        top_k in 0usize..60,
    ) {
        let params = SamplingParams {
            temperature,
            top_k,
            repetition_penalty: penalty,
            frequency_penalty: penalty,
            logprobs: Some(3),
            ..Default::default()
        };
        if let Ok(sampled) = sample(&params, &logits, &history, 3) {
            prop_assert!(logits[sampled.id as usize] > NEVER, "a banned token was drawn");
        } else {
            let unsound = logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY);
            let nothing = logits.iter().all(|&l| l == NEVER);
            prop_assert!(unsound || nothing || !penalty.is_finite() || penalty < f32::MIN_POSITIVE);
        }
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    let greedy = SamplingParams::default();
    assert_eq!(id(&greedy, &[1.0, 3.0, 3.0, 2.0], 0), 1);
    assert_eq!(id(&greedy, &[-0.0, 0.0], 0), 0);
    let first_two = SamplingParams { temperature: 1.0, top_k: 2, ..Default::default() };
    assert!((0..200).all(|i| id(&first_two, &[5.0; 1000], i) < 2));
}

#[test]
fn shares_come_out_in_a_long_run() {
    let params = SamplingParams { temperature: 0.5, ..Default::default() };
    // Weights 1, e^-1, e^-2 after the temperature.
    let logits = [0.0, -0.5, -1.0, NEVER];
    let mut counts = [0.0f64; 4];
    for index in 0..20_000 {
        counts[id(&params, &logits, index) as usize] += 1.0 / 20_000.0;
    }
    for (share, expected) in counts.iter().zip([0.665, 0.245, 0.090, 0.0]) {
        assert!((share - expected).abs() < 0.01, "{counts:?}");
    }
    assert_eq!(counts[3], 0.0);
}

#[test]
fn a_draw_depends_on_seed_and_index_alone() {
    let params = SamplingParams { temperature: 1.0, seed: 7, ..Default::default() };
    let logits: Vec<f32> = (0..1000).map(|i| (i * 37 % 101) as f32 * 0.05).collect();
    let mut sampler = Sampler::new(params.clone()).unwrap();
    let mut draw = |index| sampler.sample(&mut logits.clone(), &[], index).unwrap().id;
    let forwards: Vec<u32> = (0..50).map(&mut draw).collect();
    let backwards: Vec<u32> = (0..50).rev().map(&mut draw).collect();
    assert!(forwards.iter().eq(backwards.iter().rev()));
    assert!(forwards.windows(2).any(|w| w[0] != w[1]), "all draws are the same");
    let other = SamplingParams { seed: 8, ..params };
    assert!((0..50).any(|i| id(&other, &logits, i) != forwards[i as usize]));
}

#[test]
fn the_first_draws_are_pinned() {
    // A seed is a promise: the same text from the next version, and on the next machine.
    let params = SamplingParams { temperature: 0.8, top_p: 0.95, min_p: 0.01, seed: 42, ..Default::default() };
    let logits: Vec<f32> = (0..500).map(|i| ((i * 7919) % 503) as f32 * 0.02).collect();
    let drawn: Vec<u32> = (0..8).map(|i| id(&params, &logits, i)).collect();
    assert_eq!(drawn, PINNED);
}

const PINNED: [u32; 8] = [160, 94, 390, 394, 55, 394, 137, 312];

/// What looks at tokens that are not likely needs all logits.
#[test]
fn some_draws_need_all_logits() {
    let default = SamplingParams::default;
    let plain = SamplingParams { temperature: 0.7, top_k: 40, ..default() };
    assert_eq!(Sampler::new(plain.clone()).unwrap().enough(1000), Some(40));
    for params in [
        SamplingParams { top_k: 0, ..plain.clone() },
        SamplingParams { top_k: ranking::BEST_MAX + 1, ..plain.clone() },
        SamplingParams { repetition_penalty: 1.1, ..plain.clone() },
        SamplingParams { frequency_penalty: 0.1, ..plain.clone() },
        SamplingParams { presence_penalty: 0.1, ..plain.clone() },
        SamplingParams { logit_bias: vec![(1, 1.0)], ..plain.clone() },
        SamplingParams { logprobs: Some(0), ..plain.clone() },
    ] {
        assert_eq!(Sampler::new(params.clone()).unwrap().enough(1000), None, "{params:?}");
    }
}

#[test]
fn bias_and_stop_tokens() {
    let params = SamplingParams { logit_bias: vec![(1, NEVER), (0, 2.0)], stop_tokens: vec![0], ..Default::default() };
    let sampled = sample(&params, &[1.0, 9.0, 2.0], &[], 0).unwrap();
    assert_eq!((sampled.id, sampled.stop, sampled.logprob), (0, true, None));
    let far = SamplingParams { logit_bias: vec![(3, 1.0)], ..Default::default() };
    let error = sample(&far, &[1.0; 3], &[], 0).unwrap_err();
    assert_eq!(error, SamplingError::BiasToken { token: 3, vocabulary: 3 });
    let huge = SamplingParams { logit_bias: vec![(0, f32::MAX)], temperature: 1.0, ..Default::default() };
    assert_eq!(id(&huge, &[f32::MAX, 0.0], 0), 0);
}

#[test]
fn unsound_logits_are_named() {
    let params = SamplingParams { temperature: 1.0, ..Default::default() };
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
        let error = sample(&params, &[0.0, bad], &[], 0).unwrap_err();
        assert!(matches!(error, SamplingError::BadLogit { token: 1, .. }), "{error}");
        assert!(error.to_string().contains("weights are damaged"));
    }
    for none in [&[][..], &[NEVER, NEVER]] {
        assert_eq!(sample(&params, none, &[], 0), Err(SamplingError::NothingLeft));
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let default = SamplingParams::default;
    let bad = [
        ("temperature", SamplingParams { temperature: -0.1, ..default() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..default() }),
        ("temperature", SamplingParams { temperature: f32::INFINITY, ..default() }),
        ("top_p", SamplingParams { top_p: 0.0, ..default() }),
        ("top_p", SamplingParams { top_p: 1.01, ..default() }),
        ("min_p", SamplingParams { min_p: -0.1, ..default() }),
        ("min_p", SamplingParams { min_p: 1.1, ..default() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..default() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: f32::NAN, ..default() }),
        ("presence_penalty", SamplingParams { presence_penalty: f32::INFINITY, ..default() }),
        ("logit bias of token 5", SamplingParams { logit_bias: vec![(5, f32::NAN)], ..default() }),
        ("logit bias of token 5", SamplingParams { logit_bias: vec![(5, f32::INFINITY)], ..default() }),
    ];
    for (name, params) in bad {
        let error = Sampler::new(params).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("must be"), "{error}");
    }
    assert!(Sampler::new(default()).is_ok());
}
