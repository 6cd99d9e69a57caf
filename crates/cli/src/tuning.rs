//! The file of measured numbers that `tessera tune` writes and every command reads: one for a user, keyed by machine.
//!
//! It holds a table for each instruction set and number of threads that was tuned. A file that is damaged, of another
//! version or of another machine is left aside with a note, never an error: the defaults give the same bits.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    device::{Parameter, Tuning},
    machine, store,
    ui::{self, Failure},
};

/// Names the file.
pub(crate) const FILE_VARIABLE: &str = "TESSERA_TUNING";
const FILE: &str = "tuning.json";
/// Of the file; to be raised when a number changes its name or its meaning.
const VERSION: u64 = 1;
/// A longer file is none of ours.
const BYTES_MAX: u64 = 1 << 20;

/// What a table is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) machine: Machine,
    /// The instruction set.
    pub(crate) isa: &'static str,
    pub(crate) threads: usize,
}

/// Where a file was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Machine {
        Machine { processor: machine::processor(), cores: machine::cores() }
    }
}

/// The numbers that kernels run with, and the file that they are from, if any.
#[derive(Clone, Debug, Default)]
pub(crate) struct InForce {
    pub(crate) tuning: Tuning,
    pub(crate) file: Option<PathBuf>,
}

impl InForce {
    /// For people: `tuning: defaults`, or the file and what is other than by default.
    pub(crate) fn describe(&self) -> String {
        let Some(file) = &self.file else { return "tuning: defaults".to_owned() };
        let others = self.tuning.to_string().replace(',', ", ");
        let others = if others.is_empty() { "all as by default".to_owned() } else { others };
        format!("tuning: {} ({others})", file.display())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u64,
    machine: Machine,
    tables: Vec<Table>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Table {
    isa: String,
    threads: usize,
    /// The build that measured.
    commit: String,
    values: Map<String, Value>,
}

/// The file of this user: the one that `TESSERA_TUNING` names, or one in the folder for caches; none where there is no
/// such folder.
pub(crate) fn path() -> Option<PathBuf> {
    let named = std::env::var_os(FILE_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(store::cache_folder()?.join(FILE)))
}

/// What holds for a device: the table of the file, or the defaults. Says so where it leaves a file aside.
pub(crate) fn in_force(isa: &'static str, threads: usize) -> InForce {
    let Some(path) = path() else { return InForce::default() };
    match load(&path, || Key { machine: Machine::this(), isa, threads }) {
        Ok(Some(tuning)) => InForce { tuning, file: Some(path) },
        Ok(None) => InForce::default(),
        Err(reason) => {
            let file = path.display();
            ui::note(&ui::harmless(&format!("{file} is ignored: {reason}; `tessera tune` makes a new one")));
            InForce::default()
        }
    }
}

/// The table for `key`; none where there is no file, or no table in it for this instruction set and number of threads.
/// The key is asked for only where there is a file: most machines have none, and every command starts here.
///
/// # Errors
/// Why the file cannot be used.
fn load(path: &Path, key: impl FnOnce() -> Key) -> Result<Option<Tuning>, String> {
    let Some(content) = read(path)? else { return Ok(None) };
    let key = key();
    if content.machine != key.machine {
        let Machine { processor, cores } = content.machine;
        let processor: String = processor.chars().take(80).collect();
        return Err(format!("it was measured on another machine ({processor}; {cores} cores)"));
    }
    let table = content.tables.iter().find(|t| t.isa == key.isa && t.threads == key.threads);
    table.map(|table| tuning_of(&table.values)).transpose()
}

fn read(path: &Path) -> Result<Option<Content>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("it cannot be read ({error})")),
    };
    let mut bytes = Vec::new();
    let length = file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| format!("it cannot be read ({e})"))?;
    if length as u64 > BYTES_MAX {
        return Err(format!("it is longer than {}", ui::size(BYTES_MAX)));
    }
    let damaged = |error: serde_json::Error| format!("it is damaged ({error})");
    // Another version may have another form.
    let value: Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    match value.get("version").and_then(Value::as_u64) {
        Some(VERSION) => serde_json::from_value(value).map(Some).map_err(damaged),
        Some(version) => Err(format!("it has version {version}, and this build reads version {VERSION}")),
        None => Err("it is damaged (it has no version)".to_owned()),
    }
}

/// All numbers, each in its range, and no other.
fn tuning_of(values: &Map<String, Value>) -> Result<Tuning, String> {
    let mut tuning = Tuning::default();
    for parameter in Parameter::ALL {
        let (name, range) = (parameter.name(), parameter.range());
        let value = values.get(name).ok_or_else(|| format!("it is damaged ({name} is missing)"))?;
        let number = value.as_u64().and_then(|v| usize::try_from(v).ok());
        tuning = number.and_then(|number| parameter.with(tuning, number)).ok_or_else(|| {
            format!("it is damaged ({name} is not a number from {} to {})", range.start(), range.end())
        })?;
    }
    if let Some(other) = values.keys().find(|key| Parameter::ALL.iter().all(|p| p.name() != key.as_str())) {
        let other: String = other.chars().take(40).collect();
        return Err(format!("it is damaged (there is no number `{other}`)"));
    }
    Ok(tuning)
}

/// All numbers by their names.
pub(crate) fn values(tuning: &Tuning) -> Map<String, Value> {
    Parameter::ALL.map(|p| (p.name().to_owned(), Value::from(p.of(tuning)))).into_iter().collect()
}

/// Writes a table into the file, whole or not at all; tables of other instruction sets and numbers of threads stay if
/// they are this machine's.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn store(path: &Path, key: &Key, tuning: &Tuning) -> Result<()> {
    let old = read(path).ok().flatten().filter(|content| content.machine == key.machine);
    let mut tables = old.map_or_else(Vec::new, |content| content.tables);
    tables.retain(|t| (t.isa != key.isa || t.threads != key.threads) && tuning_of(&t.values).is_ok());
    tables.push(Table {
        isa: key.isa.to_owned(),
        threads: key.threads,
        commit: machine::COMMIT.to_owned(),
        values: values(tuning),
    });
    let content = Content { version: VERSION, machine: key.machine.clone(), tables };
    let text = serde_json::to_string_pretty(&content)? + "\n";
    let written = || -> io::Result<()> {
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        fs::write(&partial, text)?;
        fs::rename(&partial, path).inspect_err(|_| drop(fs::remove_file(&partial)))
    };
    written().map_err(|error| trouble("cannot write", path, error))
}

/// Deletes the file, and says whether there was one.
///
/// # Errors
/// If it cannot be deleted.
pub(crate) fn reset(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(trouble("cannot delete", path, error)),
    }
}

fn trouble(what: &str, path: &Path, error: io::Error) -> anyhow::Error {
    let remedy = format!("check the folder, or name another file in {FILE_VARIABLE}");
    Failure::new(format!("{what} {}", path.display()), remedy).caused_by(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(isa: &'static str, threads: usize) -> Key {
        Key { machine: Machine { processor: "an abacus".to_owned(), cores: 2 }, isa, threads }
    }

    fn tuned(value: usize) -> Tuning {
        Tuning { prefetch_bytes: value, ..Tuning::default() }
    }

    #[test]
    fn tables_of_a_machine_stand_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join(FILE);
        assert_eq!(load(&path, || unreachable!("there is no file")), Ok(None));
        for (isa, threads, value) in [("avx2", 2, 1), ("avx2", 1, 2), ("avx512", 2, 3), ("avx2", 2, 4)] {
            store(&path, &key(isa, threads), &tuned(value)).unwrap();
        }
        for (isa, threads, value) in [("avx2", 2, 4), ("avx2", 1, 2), ("avx512", 2, 3)] {
            assert_eq!(load(&path, || key(isa, threads)), Ok(Some(tuned(value))));
        }
        assert_eq!(load(&path, || key("avx512", 1)), Ok(None));
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
        assert!(reset(&path).unwrap() && !reset(&path).unwrap());
    }

    #[test]
    fn another_machine_is_left_aside_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mine) = (folder.path().join(FILE), key("avx2", 2));
        let mut other = mine.clone();
        other.machine.cores = 3;
        store(&path, &other, &tuned(5)).unwrap();
        assert!(load(&path, || mine.clone()).unwrap_err().contains("another machine (an abacus; 3 cores)"));
        store(&path, &mine, &tuned(6)).unwrap();
        assert_eq!(load(&path, || mine.clone()), Ok(Some(tuned(6))));
        assert!(load(&path, || other.clone()).is_err());
    }

    #[test]
    fn damage_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = (folder.path().join(FILE), key("avx2", 2));
        store(&path, &key, &tuned(4096)).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let long = " ".repeat(BYTES_MAX as usize + 1);
        let cases = [
            (String::new(), "damaged"),
            ("{".to_owned(), "damaged"),
            ("[1, 2]".to_owned(), "no version"),
            ("\0\u{1b}[2J".to_owned(), "damaged"),
            ("[".repeat(100_000), "damaged"),
            (good.clone() + &long, "longer than"),
            (good.replace("\"version\": 1", "\"version\": 2"), "version 2"),
            (good.replace("\"version\": 1", "\"version\": \"1\""), "no version"),
            (good.replace("4096", "-1"), "prefetch_bytes is not a number from 0 to 1048576"),
            (good.replace("4096", "1048577"), "prefetch_bytes is not"),
            (good.replace("4096", "1e9"), "prefetch_bytes is not"),
            (good.replace("4096", "\"4096\""), "prefetch_bytes is not"),
            (good.replace("prefetch_bytes", "postfetch_bytes"), "prefetch_bytes is missing"),
            (good.replace("\"values\": {", "\"values\": {\"speed\": 9,"), "no number `speed`"),
            (good.replace("\"threads\": 2", "\"threads\": -2"), "damaged"),
            (good.replace("\"tables\"", "\"chairs\""), "tables"),
        ];
        for (text, expect) in cases {
            assert_ne!(text, good);
            fs::write(&path, &text).unwrap();
            let reason = load(&path, || key.clone()).unwrap_err();
            assert!(reason.contains(expect), "{expect}: {reason}");
        }
        fs::write(&path, good).unwrap();
        assert_eq!(load(&path, || key.clone()), Ok(Some(tuned(4096))));
        assert!(load(folder.path(), || key.clone()).unwrap_err().contains("cannot be read"));
    }
}
