//! A kernel's way through the stand-ins for compiler and driver, by the entry points that the program calls.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    path::{Path, PathBuf},
    process::Command,
    ptr,
    sync::{OnceLock, PoisonError},
};

use cudarc::driver::sys;
use libloading::{Library, Symbol};

/// Numbers of the array that kernels get, and threads of a block.
pub(super) const NUMBERS: usize = 40;
const THREADS: c_uint = 64;

/// Builds the libraries, if they are not there; their folder.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/emulate");
        let out = Command::new(tool).args(["printenv", "TESSERA_NVRTC"]).output().unwrap();
        assert!(out.status.success(), "tools/emulate needs g++: {}", String::from_utf8_lossy(&out.stderr));
        PathBuf::from(String::from_utf8(out.stdout).unwrap().trim_end())
    })
}

/// One of the two libraries, open.
struct Stand(Library);

impl Stand {
    fn open(name: &str) -> Stand {
        // SAFETY: the library is the project's own, and opening it has no effect beyond itself.
        Stand(unsafe { Library::new(folder().join(name)) }.unwrap())
    }

    /// An entry point.
    ///
    /// # Safety
    /// `F` is its type.
    unsafe fn entry<F>(&self, name: &str) -> Symbol<'_, F> {
        // SAFETY: the caller's promise.
        unsafe { self.0.get(name) }.unwrap()
    }
}

/// Compiles a kernel as the program's compiler does.
fn compile(text: &str) -> Result<Vec<u8>, String> {
    let nvrtc = Stand::open("libnvrtc.so.13");
    let source =
        format!("#line 1 \"ptx.cuh\"\n#error \"the machine has its own\"\n#line 1 \"test/fault.cu\"\n{text}\n");
    let (source, name) = (CString::new(source).unwrap(), CString::new("fault.cu").unwrap());
    let options = [c"-DSTAMP=7ull".as_ptr(), c"--gpu-architecture=sm_80".as_ptr()];
    let mut program: *mut c_void = ptr::null_mut();
    // SAFETY: types are those of the NVRTC API; strings end in zero and outlive the calls; buffers have the sizes that were told.
    unsafe {
        type Create = unsafe extern "C" fn(
            *mut *mut c_void,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let create = nvrtc.entry::<Create>("nvrtcCreateProgram");
        assert_eq!(create(&mut program, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null()), 0);
        let compile = nvrtc
            .entry::<unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int>("nvrtcCompileProgram");
        let done = compile(program, options.len() as c_int, options.as_ptr());
        let get = |size: &str, bytes: &str| {
            let mut length = 0usize;
            nvrtc.entry::<unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int>(size)(program, &mut length);
            let mut out = vec![0u8; length];
            nvrtc.entry::<unsafe extern "C" fn(*mut c_void, *mut u8) -> c_int>(bytes)(program, out.as_mut_ptr());
            out
        };
        let result = if done == 0 {
            Ok(get("nvrtcGetCUBINSize", "nvrtcGetCUBIN"))
        } else {
            Err(String::from_utf8_lossy(&get("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")).into_owned())
        };
        nvrtc.entry::<unsafe extern "C" fn(*mut *mut c_void) -> c_int>("nvrtcDestroyProgram")(&mut program);
        result
    }
}

/// How a kernel gets to the card.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    /// Behind all that was enqueued before.
    InTurn,
    /// It may start before that is done.
    Early,
    /// So many do, one behind another, behind one that does not.
    EarlyBehind(u32),
    /// Captured, and run twice as a graph.
    Graph,
}

type Handle = *mut c_void;

/// The stand-in driver.
struct Card(Stand);

impl Card {
    /// Calls an entry point that takes these and gives a result; the driver's words where it fails.
    ///
    /// # Safety
    /// `F` is the entry's type, which `call` calls as the driver's API says.
    unsafe fn ask<F>(&self, name: &str, call: impl FnOnce(&F) -> c_int) -> Result<(), String> {
        // SAFETY: the caller's promise.
        let result = unsafe { call(&self.0.entry::<F>(name)) };
        if result == 0 {
            return Ok(());
        }
        let mut text: *const c_char = ptr::null();
        // SAFETY: as the driver's API says; what it points to stays until the thread's next failure.
        unsafe {
            let words = self.0.entry::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>("cuGetErrorString");
            words(result, &mut text);
            Err(CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }

    /// Launches, one way or another, and waits.
    ///
    /// # Safety
    /// The function is a kernel that takes `values`.
    unsafe fn launch(&self, function: Handle, blocks: c_uint, values: &mut [Handle], way: Way) -> Result<(), String> {
        type Launch = unsafe extern "C" fn(*const sys::CUlaunchConfig, Handle, *mut Handle, *mut Handle) -> c_int;
        type Begin = unsafe extern "C" fn(Handle, c_int) -> c_int;
        type Two = unsafe extern "C" fn(Handle, *mut Handle) -> c_int;
        type Make = unsafe extern "C" fn(*mut Handle, Handle, u64) -> c_int;
        type Run = unsafe extern "C" fn(Handle, Handle) -> c_int;
        type One = unsafe extern "C" fn(Handle) -> c_int;
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let (stream, none) = (ptr::null_mut::<c_void>(), ptr::null_mut());
        let config = sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: THREADS,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 256,
            hStream: ptr::null_mut(),
            attrs: &mut early,
            numAttrs: u32::from(way == Way::Early),
        };
        // SAFETY: types are those of the CUDA driver API; the caller's promise; a graph is let go of once.
        unsafe {
            let launch = |f: &Launch| f(&config, function, values.as_mut_ptr(), none);
            if way != Way::Graph {
                return self.ask::<Launch>("cuLaunchKernelEx", launch);
            }
            let (mut graph, mut ready) = (ptr::null_mut(), ptr::null_mut());
            self.ask::<Begin>("cuStreamBeginCapture_v2", |f| f(stream, 0))?;
            self.ask::<Launch>("cuLaunchKernelEx", launch)?;
            self.ask::<Two>("cuStreamEndCapture", |f| f(stream, &mut graph))?;
            // Parameters were copied.
            values.fill(ptr::null_mut());
            self.ask::<Make>("cuGraphInstantiateWithFlags", |f| f(&mut ready, graph, 0))?;
            self.ask::<One>("cuGraphDestroy", |f| f(graph))?;
            self.ask::<Run>("cuGraphLaunch", |f| f(ready, stream))?;
            self.ask::<Run>("cuGraphLaunch", |f| f(ready, stream))?;
            self.ask::<One>("cuGraphExecDestroy", |f| f(ready))
        }
    }
}

/// Launches `test(float* x, u32 count, u32 launch)` on `blocks` blocks over an array of 0, 1, 2 … and gives the array, or the driver's
/// words. The last parameter is the number of the launch.
pub(super) fn run(text: &str, blocks: c_uint, way: Way) -> Result<Vec<f32>, String> {
    type Copy = unsafe extern "C" fn(u64, *const f32, usize) -> c_int;
    // There is one card, and one name for its compiler.
    let _alone = crate::CARD.write().unwrap_or_else(PoisonError::into_inner);
    let binary = compile(text).map_err(|log| format!("does not compile: {log}"))?;
    let card = Card(Stand::open("libcuda.so.1"));
    let mut numbers: Vec<f32> = (0..NUMBERS).map(|i| i as f32).collect();
    let bytes = size_of_val(&numbers[..]);
    let (mut module, mut function, mut memory) = (ptr::null_mut::<c_void>(), ptr::null_mut::<c_void>(), 0u64);
    // SAFETY: types are those of the CUDA driver API; memory and parameters outlive the calls, which do all their work at once.
    unsafe {
        card.ask::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit", |f| f(0))?;
        // A card that an earlier kernel has ruined starts anew.
        card.ask::<unsafe extern "C" fn(c_int) -> c_int>("cuDevicePrimaryCtxReset_v2", |f| f(0))?;
        card.ask::<unsafe extern "C" fn(*mut Handle, *const u8) -> c_int>("cuModuleLoadData", |f| {
            f(&mut module, binary.as_ptr())
        })?;
        card.ask::<unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int>("cuModuleGetFunction", |f| {
            f(&mut function, module, c"test".as_ptr())
        })?;
        card.ask::<unsafe extern "C" fn(*mut u64, usize) -> c_int>("cuMemAlloc_v2", |f| f(&mut memory, bytes))?;
        card.ask::<Copy>("cuMemcpyHtoD_v2", |f| f(memory, numbers.as_ptr(), bytes))?;
        let ways = match way {
            Way::EarlyBehind(count) => [&[Way::InTurn][..], &vec![Way::Early; count as usize]].concat(),
            one => vec![one],
        };
        let launched = (0u32..).zip(ways).try_for_each(|(mut launch, way)| {
            let (mut address, mut count) = (memory, NUMBERS as u32);
            let mut values: [Handle; 3] =
                [(&raw mut address).cast(), (&raw mut count).cast(), (&raw mut launch).cast()];
            card.launch(function, blocks, &mut values, way)
        });
        let done = launched.and_then(|()| {
            card.ask::<unsafe extern "C" fn(*mut f32, u64, usize) -> c_int>("cuMemcpyDtoH_v2", |f| {
                f(numbers.as_mut_ptr(), memory, bytes)
            })
        });
        card.ask::<unsafe extern "C" fn(u64) -> c_int>("cuMemFree_v2", |f| f(memory))?;
        card.ask::<unsafe extern "C" fn(Handle) -> c_int>("cuModuleUnload", |f| f(module))?;
        done.map(|()| numbers)
    }
}
