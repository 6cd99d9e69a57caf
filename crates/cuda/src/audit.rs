//! What an audit of a card has to run: the widths at which a tile ends, from the tables that launches use.

use std::collections::BTreeSet;

use tessera_ops::audit::{Scope, Variant};

use crate::{
    CudaDevice, OpenError,
    cache::Cache,
    matmul::{
        layout::Layout,
        tile::{CodesTile, FloatsTile},
    },
};

/// Every width in tokens at which some kernel changes its way.
pub fn all_edges() -> BTreeSet<usize> {
    let codes = Layout::all().into_iter().flat_map(CodesTile::all).map(CodesTile::columns);
    codes.chain(FloatsTile::ALL.map(|tile| tile.columns)).collect()
}

/// The card, as what is audited: width alone picks a kernel, so there is one variant.
///
/// # Errors
/// As [`CudaDevice::open`].
pub fn variants(ordinal: usize, cache: Cache) -> Result<Vec<Variant<CudaDevice>>, OpenError> {
    let device = CudaDevice::under_audit(ordinal, cache)?;
    Ok(vec![Variant { name: tessera_ops::Device::name(&device), device, scope: Scope::All }])
}
