//! Sources to machine code: NVRTC, called at run time. Needs neither a card nor a driver.

use std::{
    ffi::{CStr, CString},
    path::{Path, PathBuf},
    ptr,
    sync::OnceLock,
};

use cudarc::nvrtc::sys;

use crate::{
    error::{CompileError, OpenError},
    kernels::Module,
};

/// Names a folder that holds the compiler's libraries.
pub const FOLDER_VARIABLE: &str = "TESSERA_NVRTC";

const LIBRARY: &str = "libnvrtc.so.13";
const BUILTINS: &str = "libnvrtc-builtins.so.13";
const FOLDERS: [&str; 3] = ["/usr/local/cuda/lib64", "/usr/local/cuda-13/lib64", "/opt/cuda/lib64"];

/// The compiler, once its library is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiler {
    version: (i32, i32),
    /// How many blocks note at most when they ran; none: kernels note nothing.
    noted: Option<usize>,
}

/// Machine code, and what the assembler says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The module, for the driver.
    pub binary: Vec<u8>,
    /// The most registers that a thread of any entry takes.
    pub registers: u32,
    /// Bytes of registers that any entry keeps in memory.
    pub spilled_bytes: u32,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// What the assembler warns of: products that it could not leave running, registers that it could not move.
    pub warnings: Vec<String>,
}

impl Compiler {
    /// Looks for the library: in the folder that `TESSERA_NVRTC` names, where the loader looks, and where toolkits are.
    ///
    /// # Errors
    /// If there is none.
    pub fn find() -> Result<Compiler, OpenError> {
        static FOUND: OnceLock<Option<Compiler>> = OnceLock::new();
        (*FOUND.get_or_init(find)).ok_or(OpenError::NoCompiler)
    }

    /// Major and minor number.
    pub fn version(self) -> (i32, i32) {
        self.version
    }

    /// The same, whose blocks note when they run, so many at most; `kernels/timeline.cuh`.
    pub fn noting(self, blocks: usize) -> Compiler {
        Compiler { noted: Some(blocks), ..self }
    }

    /// What tells one compiler's code from another's.
    pub(crate) fn key(self) -> String {
        self.noted.map_or_else(|| format!("{:?}", self.version), |blocks| format!("{:?} noting {blocks}", self.version))
    }

    /// Compiles a module for a card: `sm_90a`.
    ///
    /// # Errors
    /// The compiler's words, if it refuses.
    pub fn compile(self, module: Module, arch: &str) -> Result<Compiled, CompileError> {
        let failed = |log: String| CompileError { module: module.to_string(), arch: arch.to_owned(), log };
        let text = |text: String| CString::new(text).map_err(|e| failed(e.to_string()));
        let source = module.source();
        let source = text(if self.noted.is_some() { with_notes(&source) } else { source })?;
        let name = text(format!("{}.cu", module.name()))?;
        let noting = self.noted.map(|blocks| format!("-DTIMELINE={blocks}"));
        let options: Vec<CString> =
            options(module, arch).into_iter().chain(noting).map(text).collect::<Result<_, _>>()?;
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = Program(ptr::null_mut());
        // SAFETY: source and name are strings that end in zero and outlive the call; there are no headers; `program` is written.
        let created = unsafe {
            sys::nvrtcCreateProgram(&mut program.0, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        if created != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(failed(format!("{created:?}")));
        }
        // SAFETY: the program was made above; `options` holds as many strings as are counted, which outlive the call.
        let compiled = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
        let log = program.log();
        if compiled != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(failed(format!("{compiled:?}: {log}")));
        }
        let (registers, spilled) = (largest(&log, " registers"), largest(&log, " bytes spill stores"));
        let binary = program.binary().ok_or_else(|| failed("no machine code came of it".to_owned()))?;
        let shared_bytes = largest(&log, " bytes smem");
        // C7519 tells of an order that the assembler has put right.
        let is_warning = |l: &&str| l.contains("(C75") && !l.contains("(C7519)");
        let warnings = log.lines().filter(is_warning).map(str::to_owned).collect();
        Ok(Compiled { binary, registers, spilled_bytes: spilled, shared_bytes, warnings })
    }
}

/// A source each of whose kernels begins with its notes; lines stay where they are.
fn with_notes(source: &str) -> String {
    let mut noted = String::with_capacity(source.len() + 64);
    let mut is_head = false;
    for line in source.lines() {
        is_head |= line.starts_with("KERNEL");
        match line.split_once('{').filter(|_| is_head) {
            Some((head, body)) => {
                noted.extend([head, "{ Noting noting(__func__);", body]);
                is_head = false;
            }
            None => noted.push_str(line),
        }
        noted.push('\n');
    }
    noted
}

/// What the compiler is told. Contraction is off: sums are fused where the source says so, and nowhere else.
fn options(module: Module, arch: &str) -> Vec<String> {
    let fixed = ["--std=c++17", "--fmad=false", "--ptxas-options=-v", "-default-device"].map(str::to_owned);
    let constants = module.constants().into_iter().map(|(name, value)| format!("-D{name}={value}"));
    let stamp = format!("-DSTAMP={}ull", module.stamp());
    [format!("--gpu-architecture={arch}"), stamp].into_iter().chain(fixed).chain(constants).collect()
}

/// A program of the compiler's, let go of at the end.
struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: the program is alive, and `size` is written.
        if unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut size) } != sys::nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut log = vec![0u8; size + 1];
        // SAFETY: the program is alive, and `log` has room for the `size` bytes that are written.
        if unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) } != sys::nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        CStr::from_bytes_until_nul(&log).map(|l| l.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn binary(&self) -> Option<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program is alive, and `size` is written.
        let sized = unsafe { sys::nvrtcGetCUBINSize(self.0, &mut size) };
        if sized != sys::nvrtcResult::NVRTC_SUCCESS || size == 0 {
            return None;
        }
        let mut binary = vec![0u8; size];
        // SAFETY: the program is alive, and `binary` has room for the `size` bytes that are written.
        let got = unsafe { sys::nvrtcGetCUBIN(self.0, binary.as_mut_ptr().cast()) };
        (got == sys::nvrtcResult::NVRTC_SUCCESS).then_some(binary)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the program is alive, and nobody uses it after this.
            unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
        }
    }
}

/// The largest number that stands before `what` anywhere in the assembler's report.
fn largest(log: &str, what: &str) -> u32 {
    let before = |at: usize| log[..at].rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
    log.match_indices(what).filter_map(|(at, _)| before(at)).max().unwrap_or(0)
}

fn find() -> Option<Compiler> {
    let named = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
    let folders = named.into_iter().chain(FOLDERS.map(PathBuf::from));
    for folder in folders.filter(|f| f.join(LIBRARY).exists()) {
        preload(&folder);
    }
    // SAFETY: opening the library runs its initialisers, which a CUDA toolkit's library may do at any time.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let mut version = (0, 0);
    // SAFETY: both numbers are written.
    unsafe { sys::nvrtcVersion(&mut version.0, &mut version.1) };
    Some(Compiler { version, noted: None })
}

/// Opens the libraries by their whole paths, for good: later they are found by name. The compiler itself opens its built-ins by
/// name, and has no path to look along.
fn preload(folder: &Path) {
    let Ok(entries) = folder.read_dir() else { return };
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|n| n.starts_with(BUILTINS) && !n.contains(".alt")).collect();
    names.push(LIBRARY.to_owned());
    for name in names {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        // SAFETY: as in `find`.
        if let Ok(library) = unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) } {
            std::mem::forget(library);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read() {
        let log = "ptxas info : Used 40 registers, used 1 barriers, 528 bytes smem\n    8 bytes stack frame, 12 bytes spill stores, \
            16 bytes spill loads\nptxas info : Used 128 registers";
        assert_eq!(largest(log, " registers"), 128);
        assert_eq!((largest(log, " bytes spill stores"), largest(log, " bytes smem")), (12, 528));
        assert_eq!(largest("", " registers"), 0);
    }

    /// Kernels whose heads take several lines, or stand in one with their bodies, begin with notes; nothing else does, and no line moves.
    #[test]
    fn every_kernel_begins_with_its_notes() {
        let source = |notes: &str| {
            let first = format!("KERNEL bounds(4) first(u32 a,\n    u32 b) {{{notes}\n    if (a) {{\n    }}\n}}");
            format!("struct A {{\n}};\n{first}\nKERNEL last() {{{notes} b(); }}\n")
        };
        assert_eq!(with_notes(&source("")), source(" Noting noting(__func__);"));
        for module in Module::all() {
            let (plain, noted) = (module.source(), with_notes(&module.source()));
            let kernels = plain.lines().filter(|line| line.starts_with("KERNEL")).count();
            assert!(kernels > 0, "{module}");
            assert_eq!(noted.matches("Noting noting(__func__);").count(), kernels, "{module}");
            assert_eq!(noted.lines().count(), plain.lines().count(), "{module}");
        }
    }
}
