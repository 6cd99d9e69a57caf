//! Any bytes as a safetensors file: refused, or tensors that lie within it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_formats::safetensors;

fuzz_target!(|data: &[u8]| {
    for tensor in safetensors::parse("fuzz", data.to_vec().into()).unwrap_or_default() {
        assert!(tensor.bytes.len() < data.len());
    }
});
