//! Any bytes as a GGUF file: refused, or so sound that every tensor decodes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_formats::{Bytes, Gguf};

fuzz_target!(|data: &[u8]| {
    let Ok(file) = Gguf::parse("fuzz", Bytes::new(data.to_vec())) else { return };
    for tensor in file.tensors() {
        assert_eq!(tensor.decode().len(), tensor.len());
    }
});
