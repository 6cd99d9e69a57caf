//! A cache of packed rows: what it says, and which models can have it.

use std::sync::Arc;

use tessera_engine::{Checkpoint, LoadOptions, Session, models};
use tessera_ops::{KvFormat, reference::ReferenceDevice};

use crate::deepseek4::{Parts, bits, folder, prompt};

/// Packed rows are what F16 has of rounded ones, so not a bit moves; and they cannot be had where nothing is rounded.
#[test]
fn packed_rows_change_no_bit() {
    let parts = Parts::fixture();
    let tokens: Vec<u32> = prompt(300);
    let scores = |kv_format: KvFormat, packed_rows: bool, chunk: usize| {
        let options = LoadOptions { context: Some(320), kv_format, packed_rows, ..LoadOptions::default() };
        let model = models::load(&parts.checkpoint(), Arc::new(ReferenceDevice), &options, &mut |_| {}).unwrap();
        let bytes = model.cache_bytes();
        let (mut session, mut all) = (Session::new(model, chunk), vec![]);
        session.score(&tokens[..150], &mut |_, logits| all.extend_from_slice(logits)).unwrap();
        let saved = session.snapshot().unwrap();
        session.prefill(&tokens[200..210]).unwrap();
        session.restore(&saved).unwrap();
        session.score(&tokens[150..200], &mut |_, logits| all.extend_from_slice(logits)).unwrap();
        (bits(&all), bytes)
    };
    let ((want, halves), (packed, bytes)) = (scores(KvFormat::F16, false, 64), scores(KvFormat::F16, true, 7));
    assert!(packed == want, "a bit moved");
    assert!(bytes < halves, "{bytes} of {halves} bytes");
    for (parts, latent_rounding, why) in [
        (&Parts::fixture(), false, "rounding is switched off"),
        (&Parts::of(&Checkpoint::open(&folder().join("../llama/model.gguf")).unwrap()), true, "rounds none"),
    ] {
        let options = LoadOptions { packed_rows: true, latent_rounding, ..LoadOptions::default() };
        let refused = models::load(&parts.checkpoint(), Arc::new(ReferenceDevice), &options, &mut |_| {});
        let error = refused.err().unwrap().to_string();
        assert!(error.contains(why) && error.contains("use another cache format"), "{error}");
    }
}
