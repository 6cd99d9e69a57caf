//! Compiles every variant of every table for every card, without one: `cargo run -p tessera-cuda --example check_kernels [few] [ARCH...]
//! [KERNEL...] [CONSTANT=VALUE...] [keep=FOLDER]`. With `few`, the widest and the narrowest tiles alone for all cards but the last.
//! Kernels that are named are told each, and of these only those that are compiled with the constants.
//!
//! `keep` writes what was compiled into a folder, for `nvdisasm -hex`.
//!
//! Prints registers, spills and shared memory, the worst of each kernel and card, and fails where a kernel does not compile or
//! spills more than [`SPILLED_BYTES_MAX`].

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tessera_cuda::{
    compiler::{Compiled, Compiler},
    kernels::{CARDS, Module},
    matmul::{prefill_tile, tile::CodesTile},
};

/// The assembler moves loads ahead until registers run out, and then spills a few. Measured, such tiles are faster than the narrower
/// ones that spill nothing; beyond this, they are not.
const SPILLED_BYTES_MAX: u32 = 192;

/// Letters of a kept file's name that tell what it is. File systems take 255.
const NAME_MAX: usize = 200;

/// Whether a module has the narrowest or the widest tile, or none.
fn is_edge(module: Module) -> bool {
    match module {
        Module::Codes(layout, tile) => {
            let others = || CodesTile::all(layout, CARDS[0]).into_iter().map(CodesTile::columns);
            Some(tile.columns()) == others().min() || Some(tile.columns()) == others().max()
        }
        Module::Prefill(form, tile) => {
            let others = || prefill_tile::all(form).into_iter().map(|t| t.sums());
            Some(tile.sums()) == others().min() || Some(tile.sums()) == others().max()
        }
        _ => true,
    }
}

/// Modules of these names, or of all if there is none, that are compiled with these constants.
fn modules_of(names: &[&str], constants: &[&str]) -> Vec<Module> {
    let is_asked = |module: &Module| {
        let text = module.to_string();
        let has = |constant: &&str| text.split(' ').any(|word| word == *constant);
        (names.is_empty() || names.contains(&module.name())) && constants.iter().all(has)
    };
    Module::all().into_iter().filter(is_asked).collect()
}

/// Of a module that is kept: what it is, and of long names the first part and a hash of all.
fn file_name(module: Module, arch: &str) -> String {
    let text = format!("{module} {arch}").replace(['/', ' '], "_");
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    if text.len() > NAME_MAX {
        format!("{}_{:016x}.cubin", &text[..NAME_MAX], hasher.finish())
    } else {
        text + ".cubin"
    }
}

/// What is wrong with a compiled module, which is kept in the folder.
fn faults(module: Module, arch: &str, compiled: &Compiled, folder: Option<&Path>) -> Vec<String> {
    let mut faults = vec![];
    if let Some(Err(error)) = folder.map(|f| fs::write(f.join(file_name(module, arch)), &compiled.binary)) {
        faults.push(format!("{module} for {arch} can't be kept: {error}"));
    }
    if compiled.spilled_bytes > SPILLED_BYTES_MAX {
        faults.push(format!("{module} for {arch} spills {} bytes", compiled.spilled_bytes));
    }
    faults.extend(compiled.warnings.first().map(|warning| format!("{module} for {arch}: {warning}")));
    faults
}

fn main() -> ExitCode {
    let compiler = match Compiler::find() {
        Ok(compiler) => compiler,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut asked: Vec<String> = std::env::args().skip(1).collect();
    let is_few = asked.first().is_some_and(|a| a == "few");
    asked.drain(..usize::from(is_few));
    let (archs, names): (Vec<&str>, Vec<&str>) = asked.iter().map(String::as_str).partition(|a| a.starts_with("sm_"));
    let archs = if archs.is_empty() { CARDS.to_vec() } else { archs };
    let (constants, names): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|a| a.contains('='));
    let (folder, constants): (Vec<&str>, Vec<&str>) = constants.into_iter().partition(|a| a.starts_with("keep="));
    let folder = folder.first().map(|a| Path::new(&a["keep=".len()..]));
    if let Some(Err(error)) = folder.map(fs::create_dir_all) {
        eprintln!("the folder to keep kernels in can't be made: {error}");
        return ExitCode::FAILURE;
    }
    let modules = modules_of(&names, &constants);
    let all = archs.iter().flat_map(|a| modules.iter().filter(|m| m.runs_on(a)).map(move |m| (*m, *a)));
    let jobs: Vec<(Module, &str)> = all.filter(|(m, a)| !is_few || Some(a) == archs.last() || is_edge(*m)).collect();
    let (next, worst, failures) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(vec![]));
    let work = || {
        while let Some((module, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let compiled = match compiler.compile(*module, arch) {
                Ok(compiled) => compiled,
                Err(error) => {
                    failures.lock().unwrap().push(error.to_string());
                    continue;
                }
            };
            failures.lock().unwrap().extend(faults(*module, arch, &compiled, folder));
            if !names.is_empty() {
                println!("{module} for {arch}: {} registers, {} spilled", compiled.registers, compiled.spilled_bytes);
            }
            let mut worst = worst.lock().unwrap();
            let entry: &mut (usize, u32, u32, u32) = worst.entry((module.name(), *arch)).or_default();
            entry.0 += 1;
            entry.1 = entry.1.max(compiled.registers);
            entry.2 = entry.2.max(compiled.spilled_bytes);
            entry.3 = entry.3.max(compiled.shared_bytes);
        }
    };
    // One of each kernel as a profile has it.
    let mut profiled: BTreeMap<&str, (Module, &str)> = BTreeMap::new();
    jobs.iter().filter(|(_, arch)| Some(arch) == archs.last()).for_each(|job| {
        profiled.entry(job.0.name()).or_insert(*job);
    });
    for (module, arch) in profiled.into_values() {
        if let Err(error) = compiler.noting(1).compile(module, arch) {
            failures.lock().unwrap().push(format!("for a profile: {error}"));
        }
    }
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    println!("{:12} {:8} {:>8} {:>10} {:>8} {:>8}", "kernel", "card", "variants", "registers", "spilled", "shared");
    for ((name, arch), (count, registers, spilled, shared)) in worst.into_inner().unwrap() {
        println!("{name:12} {arch:8} {count:>8} {registers:>10} {spilled:>8} {shared:>8}");
    }
    let failures = failures.into_inner().unwrap();
    failures.iter().for_each(|f| eprintln!("{f}"));
    println!("{} modules compiled by NVRTC {:?}, {} failures", jobs.len(), compiler.version(), failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
