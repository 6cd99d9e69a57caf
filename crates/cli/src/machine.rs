//! The machine, and the build: where and from what a measurement was made.

/// The commit that the binary was built from, with `-dirty` where files had changed.
pub(crate) const COMMIT: &str = env!("TESSERA_COMMIT");

/// The processor's name, or its architecture where the system does not say.
pub(crate) fn name() -> String {
    name_in(&facts())
}

/// What the system tells of its processors; nothing where it does not.
fn facts() -> String {
    std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

fn name_in(facts: &str) -> String {
    let line = facts.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

/// The processor as exactly as the system tells: virtual machines give one name to several generations.
pub(crate) fn processor() -> String {
    let facts = facts();
    let of = |key: &str| {
        let found = facts.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key);
        found.map(|(_, value)| format!(", {key} {}", value.trim()))
    };
    name_in(&facts) + &["cpu family", "model", "stepping"].map(|key| of(key).unwrap_or_default()).concat()
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of the largest cache; a guess where the system does not say.
pub(crate) fn cache_bytes() -> usize {
    const GUESS: usize = 32 << 20;
    const MOST: usize = 512 << 20;
    let sizes = (0..10).filter_map(|index| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
    });
    sizes.max().unwrap_or(GUESS).min(MOST)
}
