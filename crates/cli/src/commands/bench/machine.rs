//! Where and from what a measurement was made.

/// The commit that the binary was built from, with `-dirty` where files had changed.
pub(super) const COMMIT: &str = env!("TESSERA_COMMIT");

/// The processor's name, or its architecture where the system does not say.
pub(super) fn name() -> String {
    let facts = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = facts.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

/// Bytes of the largest cache; a guess where the system does not say.
pub(super) fn cache_bytes() -> usize {
    const GUESS: usize = 32 << 20;
    const MOST: usize = 512 << 20;
    let sizes = (0..10).filter_map(|index| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
    });
    sizes.max().unwrap_or(GUESS).min(MOST)
}
