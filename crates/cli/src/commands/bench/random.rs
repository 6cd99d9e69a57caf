//! Random numbers that a seed fixes: SplitMix64 (Steele, Lea and Flood 2014).

/// Where they come from; its first state is the seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// A number below `most`, which is small.
    pub(super) fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % most as u64) as usize
    }
}
