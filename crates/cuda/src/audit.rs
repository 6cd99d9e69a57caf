//! What an audit of a card has to run: the widths at which a tile ends, from the tables that launches use.

use std::collections::BTreeSet;

use tessera_ops::audit::{Scope, Variant};

use crate::{
    CudaDevice, OpenError,
    cache::Cache,
    kernels::HOPPER_ARCH,
    matmul::{
        layout::Layout,
        many_tile::ManyTile,
        prefill_tile,
        tile::{CodesTile, FloatsTile},
        wide_tile::WideTile,
    },
};

/// Every width in tokens at which some kernel of these variants changes its way.
pub fn all_edges(variants: &[Variant<CudaDevice>]) -> BTreeSet<usize> {
    let codes =
        Layout::all().into_iter().flat_map(|layout| CodesTile::all(layout, HOPPER_ARCH)).map(CodesTile::columns);
    let wide = Layout::all().into_iter().flat_map(|layout| WideTile::all(layout, HOPPER_ARCH)).map(WideTile::columns);
    let many = Layout::all().into_iter().flat_map(|layout| ManyTile::all(layout, HOPPER_ARCH)).map(ManyTile::columns);
    let mut edges: BTreeSet<usize> =
        codes.chain(wide).chain(many).chain(FloatsTile::ALL.map(|tile| tile.columns)).collect();
    if variants.iter().any(|v| v.scope == Scope::Prompt) {
        edges.extend(prefill_tile::WIDTHS);
    }
    edges
}

/// The card, as what is audited: width alone picks a kernel, so there is one variant for each arithmetic.
///
/// # Errors
/// As [`CudaDevice::open`].
pub fn variants(ordinal: usize, cache: Cache) -> Result<Vec<Variant<CudaDevice>>, OpenError> {
    let device = CudaDevice::under_audit(ordinal, cache.clone())?;
    let name = tessera_ops::Device::name(&device);
    let prompts = CudaDevice::under_audit(ordinal, cache)?.for_prompts();
    let prompts = Variant { name: format!("{name}, prompt rows"), device: prompts, scope: Scope::Prompt };
    Ok(vec![Variant { name, device, scope: Scope::Card }, prompts])
}
