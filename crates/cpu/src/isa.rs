//! Instruction sets: found once, proven by values, chosen in one place.
//!
//! A value of [`Avx2`] or [`Avx512`] exists only where the CPU has those instructions, so code that holds one needs no
//! further check. A [`Kernel`] is written once over [`Simd`]; [`Isa::run`] compiles it for each instruction set and
//! runs the one at hand. All of them give the same bits, so the choice is only ever one of speed.

use tessera_ops::Error;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Simd};

/// The variable that forces an instruction set: `portable`, `avx2` or `avx512`.
pub const ISA_VARIABLE: &str = "TESSERA_ISA";

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust; it defines the meaning of the others.
    Portable(Portable),
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// Code over any instruction set. `run` and all it calls must be `#[inline(always)]`: only what ends up inside
/// [`Isa::run`]'s compiled copies may use their instructions, and a closure or call left outside runs slowly (though
/// correctly).
pub trait Kernel {
    /// What it returns.
    type Output;

    /// Runs with the instructions that `simd` stands for.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Isa {
    /// Every instruction set that this CPU has, the plainest first.
    pub fn available() -> Vec<Isa> {
        #[cfg(target_arch = "x86_64")]
        let fast = [Avx2::detect().map(Isa::Avx2), Avx512::detect().map(Isa::Avx512)];
        #[cfg(not(target_arch = "x86_64"))]
        let fast: [Option<Isa>; 0] = [];
        std::iter::once(Isa::Portable(Portable)).chain(fast.into_iter().flatten()).collect()
    }

    /// The fastest one this CPU has.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Portable(Portable))
    }

    /// The one that `TESSERA_ISA` names, or the fastest.
    ///
    /// # Errors
    /// The variable names an instruction set that this CPU lacks, or none at all.
    pub fn choose() -> Result<Isa, Error> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) => Isa::from_name(&name),
            Err(_) => Ok(Isa::best()),
        }
    }

    /// The one of this name.
    ///
    /// # Errors
    /// This CPU lacks it, or there is none.
    pub fn from_name(name: &str) -> Result<Isa, Error> {
        Isa::available().into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            Error::Unsupported {
                device: "this CPU".to_owned(),
                what: format!("the instruction set {name:?}"),
                remedy: "unset TESSERA_ISA, or set it to portable, avx2 or avx512 where the CPU has it",
            }
        })
    }

    /// `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
        }
    }

    /// For people: `AVX-512 VNNI`.
    pub fn title(self) -> &'static str {
        match self {
            Isa::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "AVX-512 VNNI",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Portable(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => simd.vectorize(kernel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_what_is_there_and_refuse_the_rest() {
        for isa in Isa::available() {
            assert_eq!(Isa::from_name(&isa.name().to_uppercase()).unwrap(), isa);
        }
        let refusal = Isa::from_name("sse9").unwrap_err().to_string();
        assert!(refusal.contains("sse9") && refusal.contains("TESSERA_ISA"), "{refusal}");
    }

    #[test]
    fn the_best_comes_last() {
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
        assert_eq!(Isa::available()[0].name(), "portable");
    }
}
