//! Where and from what a measurement was made.

/// The commit that the binary was built from, with `-dirty` where files had changed.
pub(super) const COMMIT: &str = env!("TESSERA_COMMIT");

/// The processor's name, or its architecture where the system does not say.
pub(super) fn name() -> String {
    let facts = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = facts.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}
