//! Any bytes as blocks of any format: they decode, and the integer view means the same weights.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tessera_formats::{
    DType,
    codec::{self, Integers, MAX_BLOCK_LEN, MAX_SUB_BLOCKS},
};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let dtype = DType::all().nth(usize::from(choice) % DType::all().count()).expect("within the table");
    let (len, sub_len) = (dtype.block_len(), dtype.sub_block_len());
    for block in data.chunks_exact(dtype.block_bytes()) {
        let mut weights = [0.0; MAX_BLOCK_LEN];
        codec::decode(dtype, block, &mut weights[..len]);
        if dtype.is_float() {
            continue;
        }
        let (mut codes, mut scales, mut mins) = ([0; MAX_BLOCK_LEN], [0.0; MAX_SUB_BLOCKS], [0.0; MAX_SUB_BLOCKS]);
        let (codes, subs) = (&mut codes[..len], len / sub_len);
        codec::integers(dtype, block, Integers { codes, scales: &mut scales[..subs], mins: &mut mins[..subs] });
        for (i, (&code, &weight)) in codes.iter().zip(&weights).enumerate() {
            let product = scales[i / sub_len] * (f32::from(code) - f32::from(dtype.code_offset()));
            let again = product + mins[i / sub_len];
            assert!(again == weight || again.is_nan() && weight.is_nan(), "{dtype}: {again} and {weight}");
        }
    }
});
