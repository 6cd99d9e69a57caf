//! Tests from the outside.

mod again;
mod alike;
mod arrived;
mod beside;
mod best;
mod card;
mod clusters;
mod connected;
mod emulation;
mod followed;
mod gated;
mod heads;
mod highest;
mod joined;
mod latent;
mod packed;
mod packing;
mod products;
mod prompt;
mod sent;
mod spans;
mod stand_in;

use std::sync::{RwLock, RwLockReadGuard};

use tessera_cuda::{Cache, CudaDevice};
use tessera_ops::Device;

/// Held while a card is used; alone by `stand_in`, whose libraries have the names of the driver's, so that whoever looks for a card
/// meanwhile would find the emulated one, with the faults that it is given.
static CARD: RwLock<()> = RwLock::new(());

/// Keeps `stand_in` waiting.
fn without_stand_in() -> RwLockReadGuard<'static, ()> {
    CARD.read().unwrap_or_else(|e| e.into_inner())
}

/// The card, or the emulated one if the tests run on it, for as long as the guard lives: it comes first, so that it goes last. What a card
/// waits for when it goes would let what `stand_in` launches pass for complete.
fn opened_card() -> Option<(RwLockReadGuard<'static, ()>, CudaDevice)> {
    let alone = without_stand_in();
    Some((alone, CudaDevice::open(0, Cache::default()).ok()?))
}

/// Whether the card starts kernels before those ahead of them have ended. Memory of a step rests there before it is given out again.
fn starts_early(card: &CudaDevice) -> bool {
    ["sm_90a", "sm_100", "sm_120"].iter().any(|arch| card.name().contains(arch))
}
