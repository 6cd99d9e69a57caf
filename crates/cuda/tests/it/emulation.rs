//! The emulated machine finds what is wrong with a kernel, and computes what is right. Kernels with one fault each go through the
//! stand-ins for compiler and driver, by the same entry points as the program's own.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    path::{Path, PathBuf},
    process::Command,
    ptr,
    sync::{Mutex, OnceLock, PoisonError},
};

use libloading::{Library, Symbol};

/// Numbers of the array that kernels get, and threads of a block.
const NUMBERS: usize = 40;
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

/// Launches `test(float* x, u32 count)` on `blocks` blocks over an array of 0, 1, 2 … and gives the array, or the driver's words.
fn run(text: &str, blocks: c_uint) -> Result<Vec<f32>, String> {
    let binary = compile(text).map_err(|log| format!("does not compile: {log}"))?;
    // There is one card.
    static CARD: Mutex<()> = Mutex::new(());
    let _alone = CARD.lock().unwrap_or_else(PoisonError::into_inner);
    let cuda = Stand::open("libcuda.so.1");
    let mut numbers: Vec<f32> = (0..NUMBERS).map(|i| i as f32).collect();
    let bytes = size_of_val(&numbers[..]);
    let (mut module, mut function, mut memory) = (ptr::null_mut::<c_void>(), ptr::null_mut::<c_void>(), 0u64);
    // SAFETY: types are those of the CUDA driver API; memory and parameters outlive the calls, which do all their work at once.
    unsafe {
        type Launch = unsafe extern "C" fn(
            *mut c_void,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            *mut c_void,
            *mut *mut c_void,
            *mut *mut c_void,
        ) -> c_int;
        let words = |result: c_int| {
            let mut text: *const c_char = ptr::null();
            cuda.entry::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>("cuGetErrorString")(
                result, &mut text,
            );
            CStr::from_ptr(text).to_string_lossy().into_owned()
        };
        let ok = |result: c_int| if result == 0 { Ok(()) } else { Err(words(result)) };
        ok(cuda.entry::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit")(0))?;
        // A card that an earlier kernel has ruined starts anew.
        ok(cuda.entry::<unsafe extern "C" fn(c_int) -> c_int>("cuDevicePrimaryCtxReset_v2")(0))?;
        ok(cuda.entry::<unsafe extern "C" fn(*mut *mut c_void, *const u8) -> c_int>("cuModuleLoadData")(
            &mut module,
            binary.as_ptr(),
        ))?;
        ok(cuda.entry::<unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int>(
            "cuModuleGetFunction",
        )(&mut function, module, c"test".as_ptr()))?;
        ok(cuda.entry::<unsafe extern "C" fn(*mut u64, usize) -> c_int>("cuMemAlloc_v2")(&mut memory, bytes))?;
        let send = cuda.entry::<unsafe extern "C" fn(u64, *const f32, usize) -> c_int>("cuMemcpyHtoD_v2");
        ok(send(memory, numbers.as_ptr(), bytes))?;
        let mut count = NUMBERS as u32;
        let mut values: [*mut c_void; 2] = [(&raw mut memory).cast(), (&raw mut count).cast()];
        let launch = cuda.entry::<Launch>("cuLaunchKernel");
        let dynamic = 256;
        let launched = launch(
            function,
            blocks,
            1,
            1,
            THREADS,
            1,
            1,
            dynamic,
            ptr::null_mut(),
            values.as_mut_ptr(),
            ptr::null_mut(),
        );
        let read = cuda.entry::<unsafe extern "C" fn(*mut f32, u64, usize) -> c_int>("cuMemcpyDtoH_v2");
        let done = ok(launched).and_then(|()| ok(read(numbers.as_mut_ptr(), memory, bytes)));
        ok(cuda.entry::<unsafe extern "C" fn(u64) -> c_int>("cuMemFree_v2")(memory))?;
        ok(cuda.entry::<unsafe extern "C" fn(*mut c_void) -> c_int>("cuModuleUnload")(module))?;
        done.map(|()| numbers)
    }
}

/// The body of a kernel with 64 threads, dynamic shared memory of 256 bytes and some of fixed size.
fn kernel(body: &str) -> String {
    format!(
        "KERNEL __launch_bounds__(64) test(float* x, u32 count) {{\n\
         __shared__ float fixed[64]; DYNAMIC_SHARED(float, dynamic); const u32 t = threadIdx.x, lane = t % 32;\n\
         (void)fixed; (void)dynamic; (void)lane;\n{body}\n}}"
    )
}

/// Bodies with a fault, and what is said of it. Line 4 is the body's first.
const FAULTS: [(&str, &[&str]); 23] = [
    ("x[t] = 1.0f;", &["fault.cu:4", "thread (40, 0, 0)", "writes 4 bytes at byte 160 of memory of 160 bytes"]),
    ("float v = x[(int)t - 1]; if (v > 9e9f) x[0] = v;", &["thread (0, 0, 0)", "reads 4 bytes at byte -4 of memory"]),
    ("dynamic[t + 1] = 0.0f;", &["thread (63, 0, 0)", "byte 256 of 256 of shared memory"]),
    ("((float*)0)[t] = 1.0f;", &["writes 4 bytes at a null pointer"]),
    ("uint2 v = __ldg((const uint2*)(x + 1)); fixed[t] = v.x;", &["not a multiple of the access's width"]),
    (
        "fixed[t] = 1.0f; if (t < count) x[t] = fixed[63 - t];",
        &["fault.cu:4", "thread (32, 0, 0)", "which thread 31 touched", "no barrier"],
    ),
    (
        "fixed[t] = 1.0f; __syncwarp(); if (t < 32) x[t] = fixed[t + 32];",
        &["thread (63, 0, 0)", "writes 4 bytes", "which thread 31 touched"],
    ),
    (
        "fixed[t] = 1.0f; __syncthreads(); float v = fixed[t ^ 1]; fixed[t] = v;",
        &["reads 4 bytes", "which thread 0 wrote"],
    ),
    ("x[0] = (float)t;", &["writes 4 bytes at byte 0 of memory", "which thread 0 touched in the same launch"]),
    ("if (t == 3) x[0] = (float)blockIdx.x;", &["thread (3, 0, 0) of block", "which thread 3 touched"]),
    ("if (t < 7) __syncthreads();", &["wait for ever: ", "57 left", "7 wait for the block at test/fault.cu:4"]),
    ("if (t != 5) __syncwarp();\nelse __syncthreads();", &["wait for ever", "1 wait for the block at test/fault.cu:5"]),
    ("if (lane < 16) __syncthreads(); else __syncwarp();", &["32 wait for the block", "32 wait for the warp"]),
    (
        "if (lane < 8) __shfl_xor_sync(0xffffffffu, t, 1);\nelse __syncwarp();",
        &["meets others that want something else"],
    ),
    ("__shfl_sync(0x1u, t, 0);", &["thread (1, 0, 0)", "is not in the mask that it waits with"]),
    (
        "int c[4] = {}; u32 a[4] = {}; if (lane > 0) multiply(c, a, make_uint2(0, 0), c);",
        &["wait for ever", "62 wait in a product of matrices"],
    ),
    ("if (t == 0) copy_16(dynamic, x + 1);", &["not a multiple of the access's width"]),
    ("if (t == 0) copy_4(x, x + 1);", &["names what is not shared memory"]),
    ("if (t == 0) copy_8(dynamic, x + 40);", &["reads 8 bytes at byte 160 of memory of 160 bytes"]),
    (
        "fixed[t] = 1.0f; __syncthreads(); copy_4(&dynamic[t ^ 1], x); dynamic[t] = 2.0f;",
        &["writes 4 bytes", "touched"],
    ),
    (
        "u32 at = shared_address(dynamic); if (t == 0) barrier_init(at, 2); __syncthreads();\n\
         if (t == 0) barrier_expect(at, 16); barrier_wait(at, 0);",
        &["wait for ever: 64 wait for a barrier in shared memory at test/fault.cu:5"],
    ),
    ("if (t < 40) wait_for_threads(1, 64);", &["24 left", "40 wait for named threads"]),
    (
        "if (t < 4) copy_16(dynamic + 4 * t, x + 4 * t); end_of_copies(); __syncthreads(); if (t < count) x[t] = dynamic[1];\n\
         wait_for_copies<0>();",
        &["fault.cu:4", "thread (1, 0, 0)", "reads 4 bytes at byte 4 of 256 of shared memory, which thread 0 wrote"],
    ),
];

/// Bodies without, and what becomes of number `i`.
type Sound = (&'static str, fn(usize) -> f32);
const SOUND: [Sound; 9] = [
    ("if (t < count && blockIdx.x == 0) x[t] = x[t] + 1.0f;", |i| i as f32 + 1.0),
    (
        "fixed[t] = (float)t; __syncthreads(); float v = fixed[63 - t]; __syncthreads(); fixed[t] = v; dynamic[t] = v;\n\
         if (t < count && blockIdx.x == 0) x[t] = fixed[t] + dynamic[t];",
        |i| 2.0 * (63 - i) as f32,
    ),
    (
        "float v = (float)lane; for (int w = 16; w > 0; w /= 2) v = v + __shfl_xor_sync(0xffffffffu, v, w);\n\
         u32 odd = __ballot_sync(0xffffffffu, lane & 1); if (t < count && blockIdx.x == 0) x[t] = v + (float)(odd >> 24);",
        |_| 496.0 + 170.0,
    ),
    // Shared memory is NaN before it is written, also for the next block.
    ("float v = fixed[t]; fixed[t] = 1.0f; if (t < count && blockIdx.x == 1) x[t] = v == v ? 0.0f : 5.0f;", |_| 5.0),
    // Row g of the first matrix is g + 1 everywhere, column n of the second n - 3.
    (
        "u32 low = (lane / 4 + 1) * 0x01010101u, high = (lane / 4 + 9) * 0x01010101u, b = (lane / 4 - 3 & 0xff) * 0x01010101u;\n\
         int c[4], start[4] = {100, 100, 100, 100}; u32 a[4] = {low, high, low, high}; multiply(c, a, make_uint2(b, b), start);\n\
         if (t < 4 && blockIdx.x == 0) for (int i = 0; i < 4; i++) x[(i / 2 * 4 + t) * 2 + i % 2] = (float)c[i];",
        |i| match i {
            // Row 0 and row 8.
            0..16 => 100.0 + 32.0 * (1.0 + 8.0 * (i / 8) as f32) * ((i % 8) as f32 - 3.0),
            _ => i as f32,
        },
    ),
    // Copies that are waited for.
    (
        "if (blockIdx.x) return; if (t < 4) copy_16(dynamic + 4 * t, x + 4 * t); end_of_copies(); wait_for_copies<0>(); __syncthreads();\n\
         if (t < count && blockIdx.x == 0) x[t] = dynamic[t % 16];",
        |i| (i % 16) as f32,
    ),
    // Of two groups the first has come.
    (
        "if (blockIdx.x) return; if (t == 0) { copy_4(dynamic, x + 7); end_of_copies(); copy_4(dynamic + 1, x + 8); end_of_copies(); }\n\
         wait_for_copies<1>(); __syncthreads(); float v = dynamic[0], w = dynamic[1]; __syncthreads();\n\
         if (t < count && blockIdx.x == 0) x[t] = w == w ? -1.0f : v;",
        |_| 7.0,
    ),
    // A bulk copy under a barrier, in two phases.
    (
        "if (blockIdx.x) return; u32 at = shared_address(dynamic) + 128, to = shared_address(dynamic); if (t == 0) barrier_init(at, 1);\n\
         __syncthreads(); float sum = 0.0f;\n\
         for (u32 i = 0; i < 2; i++) {\n\
           if (t == 0) { barrier_expect(at, 32); copy_bulk(to, x + 8 * i, 32, at); }\n\
           barrier_wait(at, i); sum = sum + dynamic[t % 8]; __syncthreads(); }\n\
         wait_for_threads(3, 64); if (t < count && blockIdx.x == 0) x[t] = sum;",
        |i| 8.0 + 2.0 * (i % 8) as f32,
    ),
    // Rounded once: in f32 first, the sum would stand between two f16, and go to the even one.
    (
        "u32 one = half_to_float(fma_halves(0x28012801u, 0x23FE23FEu, 0x3C013C01u) >> 16) == 1.0f + 1.0f / 1024;\n\
         u32 two = half_to_float(add_halves(0x7800u, 0x0001u)) == 32768.0f && pair_of_halves(1.0f, -2.0f) == 0xC0003C00u;\n\
         if (t < count && blockIdx.x == 0) x[t] = (float)(one + 2 * two);",
        |_| 3.0,
    ),
];

#[test]
fn faults_are_found_and_told() {
    let mut wrong = vec![];
    for (body, words) in FAULTS {
        let told = run(&kernel(body), if body.contains("blockIdx") { 2 } else { 1 }).expect_err(body);
        if told.contains('\n') || words.iter().any(|word| !told.contains(word)) {
            wrong.push(format!("{body}\n  {words:?}\n  {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sound_kernels_give_what_a_card_gives() {
    for (body, expected) in SOUND {
        let want: Vec<f32> = (0..NUMBERS).map(expected).collect();
        assert_eq!(run(&kernel(body), 3).as_deref(), Ok(&want[..]), "{body}");
    }
}

#[test]
fn what_the_machine_lacks_is_an_error_of_the_compiler() {
    let told = run(&kernel("x[t] = __nanosleep(3);"), 1).unwrap_err();
    assert!(
        told.contains("does not compile") && told.contains("test/fault.cu:4") && told.contains("__nanosleep"),
        "{told}"
    );
}
