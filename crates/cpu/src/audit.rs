//! What an audit of this machine has to run: every variant that dispatch can name, and every edge, from the same tables.

use std::{collections::BTreeSet, num::NonZero};

use tessera_ops::audit::{Scope, Variant};

use crate::{
    CpuDevice,
    attention::select::Way,
    isa::Isa,
    matmul::{
        Kernels, Overrides, Tuning,
        dispatch::{PASS_TOKENS, Split, edges, tile_tokens_max},
    },
};

/// Every width in tokens at which some variant of this machine changes its way.
pub fn all_edges() -> BTreeSet<usize> {
    Isa::available().into_iter().flat_map(|isa| edges(isa, &Tuning::default())).collect()
}

/// Every variant of this machine: each instruction set, on one and two threads; each way to share; tiles capped at one
/// token and at half, and in a `full` audit at every width; each cap on passes over experts; each way of attention. What is `forced` leaves
/// only that, on one thread and two.
pub fn variants(full: bool, forced: Option<Overrides>) -> Vec<Variant<CpuDevice>> {
    let mut all = vec![];
    for isa in forced.and_then(|f| f.isa).map_or_else(Isa::available, |isa| vec![isa]) {
        let base = forced.unwrap_or_default();
        let mut add = |threads: usize, overrides: Overrides, scope: Scope| {
            let overrides = Overrides { isa: None, ..overrides };
            let s = if threads == 1 { "" } else { "s" };
            let switches = overrides.to_string();
            let comma = if switches.is_empty() { "" } else { ", " };
            let name = format!("{}, {threads} thread{s}{comma}{switches}", isa.name());
            let kernels = Kernels { overrides, ..Kernels::new(isa) };
            all.push(Variant { name, device: CpuDevice::under_audit(NonZero::new(threads), kernels), scope });
        };
        for threads in [1, 2] {
            add(threads, base, Scope::All);
        }
        if forced.is_some() {
            continue;
        }
        for split in Split::ALL {
            add(2, Overrides { split: Some(split), ..base }, Scope::Projections);
        }
        // The stages of attention are the same code on all of them.
        for (i, way) in Way::ALL.into_iter().enumerate().filter(|_| full || isa == Isa::best()) {
            let attention = Some(way);
            add(1 + i % 2, Overrides { attention, ..base }, Scope::Attention);
            if full {
                add(2 - i % 2, Overrides { attention, ..base }, Scope::Attention);
            }
        }
        add(1, Overrides { split: Some(Split::Weights), ..base }, Scope::Projections);
        for tile in tile_caps(isa, full) {
            add(1, Overrides { tile: Some(tile), ..base }, Scope::Projections);
        }
        // Wider caps than the tuned pass change nothing.
        for cap in PASS_TOKENS.into_iter().filter(|p| *p < Tuning::default().routed_pass_tokens) {
            add(1, Overrides { moe_tile: Some(cap), ..base }, Scope::Routed);
            for split in Split::ALL.into_iter().filter(|_| full) {
                add(2, Overrides { moe_tile: Some(cap), split: Some(split), ..base }, Scope::Routed);
            }
        }
    }
    all
}

/// Widths that tiles are capped at; the widest is no cap.
fn tile_caps(isa: Isa, full: bool) -> Vec<usize> {
    let most = tile_tokens_max(isa);
    let few: BTreeSet<usize> = [1, most / 2].into_iter().filter(|t| (1..most).contains(t)).collect();
    if full { (1..most).collect() } else { few.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::{
        dispatch::{Op, Request, plan},
        select::Packed,
    };

    #[test]
    fn names_are_unique_and_name_every_switch() {
        for full in [false, true] {
            let names: Vec<_> = variants(full, None).into_iter().map(|v| v.name).collect();
            let unique: BTreeSet<_> = names.iter().collect();
            assert_eq!(unique.len(), names.len(), "{names:?}");
            for isa in Isa::available() {
                for what in ["1 thread", "2 threads", "split=weights", "split=tokens", "tile=1", "moe_tile=32"] {
                    let has = |name: &&&String| name.starts_with(isa.name()) && name.contains(what);
                    assert!(unique.iter().any(|name| has(&name)), "{what} on {}", isa.name());
                }
                for way in Way::ALL.map(|way| format!("attention={}", way.name())) {
                    let has = unique.iter().any(|name| name.starts_with(isa.name()) && name.ends_with(&way));
                    assert_eq!(has, full || isa == Isa::best(), "{way} on {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn what_is_forced_is_all_there_is() {
        let forced = Overrides::parse("isa=portable,tile=1").unwrap();
        let names: Vec<_> = variants(true, Some(forced)).into_iter().map(|v| v.name).collect();
        assert_eq!(names, ["portable, 1 thread, tile=1", "portable, 2 threads, tile=1"]);
        assert_eq!(variants(false, Some(Overrides::default())).len(), 2 * Isa::available().len());
    }

    /// Whatever dispatch names is audited: its split, and widths on both sides of its tile and its pass.
    #[test]
    fn dispatch_names_nothing_that_the_audit_leaves_out() {
        let edges = all_edges();
        for (isa, op) in Isa::available().into_iter().flat_map(|isa| Op::ALL.map(|op| (isa, op))) {
            for (tokens, workers) in (1..=1100).flat_map(|t| [1, 2, 16].map(|w| (t, w))) {
                let (layout, tokens_total) = (Packed::SupersOf4, tokens);
                let request = Request { op, layout, rows: 37, depth: 256, tokens, segments: 1, tokens_total, workers };
                let plan = plan(isa, &request, &Tuning::default(), &Overrides::default());
                assert!(edges.contains(&plan.pass_tokens), "{plan}");
                assert!(edges.contains(&plan.tile.tokens) || plan.tile.tokens == tokens, "{plan}");
                assert!(Split::ALL.contains(&plan.split));
            }
        }
    }
}
