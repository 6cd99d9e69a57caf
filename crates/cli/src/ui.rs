//! What people see beside the answer: errors, progress bars, colours, sizes.
//!
//! All of it goes to stderr, so that stdout holds nothing but what was asked for. Bars and colours appear only on a
//! terminal, and colours give way to `NO_COLOR` (https://no-color.org).

use std::{
    error::Error,
    fmt,
    io::{self, IsTerminal, Write},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// An error with what its reader may do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    remedy: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// `message` says what is wrong, `remedy` what to do.
    pub(crate) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure { message: message.into(), remedy: remedy.into(), source: None }
    }

    /// The error that caused this one.
    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// Whether stderr takes colours.
pub(crate) fn stderr_colours() -> bool {
    io::stderr().is_terminal() && colours_allowed()
}

/// Whether stdout takes colours.
pub(crate) fn stdout_colours() -> bool {
    io::stdout().is_terminal() && colours_allowed()
}

fn colours_allowed() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Wraps `text` in an ANSI style such as `1;31`, if `on`.
pub(crate) fn styled(text: &str, style: &str, on: bool) -> String {
    if on { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Writes an error to stderr: what happened, why, and what to do.
pub(crate) fn print_error(error: &anyhow::Error) {
    let text = describe(error, stderr_colours());
    // Nobody is left to tell if stderr itself is gone.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The text of [`print_error`].
pub(crate) fn describe(error: &anyhow::Error, colours: bool) -> String {
    let mut text = format!("{} {}\n", styled("error:", "1;31", colours), harmless(&error.to_string()));
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some errors repeat their source in their own message.
        if !said.contains(&cause) {
            text += &format!("  {} {}\n", styled("because:", "1", colours), harmless(&cause));
        }
        said = cause;
    }
    let remedies = error.chain().filter_map(|cause| cause.downcast_ref::<Failure>()).map(|f| &f.remedy);
    for remedy in remedies {
        text += &format!("  {} {remedy}\n", styled("help:", "1;32", colours));
    }
    text
}

/// Keeps control characters, which names in a hostile file may hold, from the terminal.
pub(crate) fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

/// A line for people on stderr, such as what is being waited for.
pub(crate) fn note(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// A bar that counts bytes; invisible where stderr is no terminal.
pub(crate) fn bytes_bar(label: &str, total: u64) -> ProgressBar {
    let template = "{msg:24!} {bar:30} {bytes:>10} of {total_bytes:10} {bytes_per_sec:>12} {eta:>5}";
    bar(label, total, template)
}

/// A bar that counts steps; invisible where stderr is no terminal.
pub(crate) fn steps_bar(label: &str, total: u64) -> ProgressBar {
    bar(label, total, "{msg:24!} {bar:30} {pos:>6} of {len:6} {eta:>5}")
}

/// A line with the time that something takes whose end is not known; invisible where stderr is no terminal.
pub(crate) fn spinner(label: &str) -> ProgressBar {
    let bar = bar(label, 0, "{spinner} {msg} {elapsed}");
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

fn bar(label: &str, total: u64, template: &str) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(label.to_owned());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A size for people: `98.4 MB`, powers of ten.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_use_powers_of_ten() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (98_362_432, "98.4 MB"),
            (999_960_000, "1.0 GB"),
            (u64::MAX, "18446744.1 TB"),
        ];
        for (bytes, expect) in cases {
            assert_eq!(size(bytes), expect, "{bytes}");
        }
    }

    #[test]
    fn an_error_names_cause_and_remedy_once() {
        let cause = Failure::new("no network", "connect the cable");
        let error = anyhow::Error::new(Failure::new("cannot pull x", "try again").caused_by(cause));
        let expect = "error: cannot pull x\n  because: no network\n  help: try again\n  help: connect the cable\n";
        assert_eq!(describe(&error, false), expect);
        assert!(describe(&error, true).starts_with("\x1b[1;31merror:\x1b[0m cannot"));
    }

    #[test]
    fn a_name_from_a_file_cannot_steer_the_terminal() {
        let error = anyhow::anyhow!("tensor `\x1b[2J\x07`: wrong");
        assert_eq!(describe(&error, false), "error: tensor `\u{fffd}[2J\u{fffd}`: wrong\n");
    }

    #[test]
    fn a_source_repeated_in_its_error_is_said_once() {
        let source = io::Error::other("disk on fire");
        let error = anyhow::Error::new(Failure::new("cannot write: disk on fire", "buy water").caused_by(source));
        assert_eq!(describe(&error, false), "error: cannot write: disk on fire\n  help: buy water\n");
    }
}
