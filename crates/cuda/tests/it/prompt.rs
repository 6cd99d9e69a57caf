//! Products of prompt rows on Hopper's own instructions: every tile of the table gives the same bits, near float64, and leaves nothing
//! out. On a card, or an emulated one: `tools/emulate env EMULATED_CARD=capability=9.0 cargo test -p tessera-cuda prompt`.

use tessera_cuda::measure::prompt::{PromptMeasured, PromptSubject};
use tessera_formats::DType;

/// The farthest that f16 operands may be from float64, root mean square of what is summed.
const ERROR_MAX: f64 = 1.5e-3;

/// One of each kind of layout, with rows, depth, matrices and slots of a token, and tokens. The last is cut into parts.
type Case = (DType, usize, usize, Option<(usize, usize)>, &'static [usize]);
const CASES: [Case; 9] = [
    (DType::Q8_0, 200, 576, None, &[1, 33, 70]),
    (DType::Q4_K, 130, 768, None, &[65]),
    (DType::Q3_K, 65, 512, None, &[9]),
    (DType::Q2_K, 66, 512, None, &[10]),
    (DType::IQ2_XXS, 129, 256, None, &[31]),
    (DType::IQ2_S, 40, 256, None, &[11]),
    (DType::F16, 100, 100, None, &[40]),
    (DType::Q5_1, 70, 320, Some((5, 2)), &[30]),
    (DType::Q8_0, 140, 2304, None, &[20]),
];

#[test]
fn every_tile_gives_the_same_bits_near_float64() {
    // What is missing where there is no card, the test of the audit tells.
    let Some((_alone, device)) = crate::opened_card() else { return };
    if !tessera_ops::Device::name(&device).contains("sm_90a") {
        return;
    }
    for (dtype, rows, depth, experts, widths) in CASES {
        let mut subject = PromptSubject::single(&device, dtype, rows, depth, experts).unwrap();
        for &tokens in widths {
            let own = subject.check(tokens).unwrap();
            for tile in subject.tiles().into_iter().filter(|t| subject.takes(*t)).collect::<Vec<_>>() {
                subject.force_tile(Some(tile));
                let PromptMeasured { error, unwritten, hash, .. } = subject.check(tokens).unwrap();
                let what = format!("{dtype} {rows} x {depth}, {tokens} tokens in {tile:?}: {error:e} from float64");
                assert!(error < ERROR_MAX && unwritten == 0, "{what}, {unwritten} numbers left out");
                assert_eq!(hash, own.hash, "{what}");
            }
            subject.force_tile(None);
        }
    }
}
