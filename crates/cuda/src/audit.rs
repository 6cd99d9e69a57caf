//! What an audit of a card has to run: the widths at which a tile ends, from the tables that launches use.

use std::collections::BTreeSet;

use tessera_ops::audit::{Scope, Variant};

use crate::{
    CudaDevice, Numerics, OpenError,
    cache::Cache,
    matmul::{
        layout::Layout,
        prefill_tile,
        tile::{CodesTile, FloatsTile},
    },
};

/// Every width in tokens at which some kernel changes its way.
pub fn all_edges() -> BTreeSet<usize> {
    let codes = Layout::all().into_iter().flat_map(CodesTile::all).map(CodesTile::columns);
    codes.chain(FloatsTile::ALL.map(|tile| tile.columns)).chain(prefill_tile::WIDTHS).collect()
}

/// The card, as what is audited: width alone picks a kernel, so there is one variant; and where prompt rows have an arithmetic of
/// their own, another for that.
///
/// # Errors
/// As [`CudaDevice::open`].
pub fn variants(ordinal: usize, cache: Cache) -> Result<Vec<Variant<CudaDevice>>, OpenError> {
    let device = CudaDevice::under_audit(ordinal, cache.clone())?;
    let name = tessera_ops::Device::name(&device);
    let mut all = vec![Variant { name: name.clone(), device, scope: Scope::All }];
    if all[0].device.numerics() == Numerics::ByRole {
        let device = CudaDevice::under_audit(ordinal, cache)?.for_prompts();
        all.push(Variant { name: format!("{name}, prompt rows"), device, scope: Scope::Prompt });
    }
    Ok(all)
}
