//! The card: context, stream, memory and launches. The only user of the driver.
//!
//! There is one stream, and all work of a device goes through it in order; launches by way of the queue (`queue.rs`). So memory that is
//! dropped may be handed out again at once: whoever writes it next stands behind whoever read it last. Nothing waits for the card but
//! reading and loading.
//!
//! Ops cannot fail in the middle of a step. The first failure is kept, later launches do nothing, and reading reports it.

use std::{
    ffi::CString,
    fmt::Display,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use cudarc::driver::{result, sys};
use tessera_ops::Error;

use crate::{
    attention,
    cache::Cache,
    compiler::Compiler,
    error::OpenError,
    hash::HashMap,
    kernels::{Module, Parameter},
    matmul::{
        tile::Launch,
        wide_tile::{Shape, Tile},
    },
    queue::{ARGS_MAX, Call, Queue, Touch},
};

mod args;
mod memory;
mod pinned;
mod sending;
pub(crate) mod timeline;
mod timing;
mod transfers;

pub(crate) use args::{Arg, Args};
use memory::Free;
pub(crate) use memory::Memory;
use pinned::{Inbox, Outbox};
pub use sending::Counts;
pub(crate) use sending::Launching;
use sending::Sent;
use timeline::Timeline;
use timing::Timing;

/// A card with all that a device needs of it.
pub(crate) struct Gpu {
    name: String,
    arch: String,
    attention_arch: String,
    processors: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    compiler: Compiler,
    cache: Cache,
    is_audited: bool,
    modules: RwLock<HashMap<Module, Arc<Loaded>>>,
    /// Free memory of steps, by size.
    free: Mutex<HashMap<usize, Vec<Free>>>,
    /// Launches so far, joined or not, and more for each time that the host waited.
    launches: AtomicU64,
    /// The first one.
    failure: OnceLock<String>,
    queue: Mutex<Queue>,
    launching: Launching,
    /// Whether the card has kernels that wait by themselves started before those ahead of them have ended.
    can_start_early: bool,
    sent: Sent,
    /// What is sent to steps, and what they answer, where the card reads and writes the host's memory.
    outbox: Option<Mutex<Outbox>>,
    inbox: Option<Inbox>,
    /// Stages that are timed, while any are.
    timing: Mutex<Option<Timing>>,
    /// Where kernels note their turns, if they do.
    timeline: Option<Timeline>,
}

/// What a card is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To run models.
    Use,
    /// To have its kernels held to the reference.
    Audit,
    /// To see when each kernel has its turn.
    Profile,
}

// SAFETY: context, stream and functions are handles that the driver lets any thread use, once it has made the context current,
// which `bind` does before each use. All else is behind locks.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// A module on the card.
struct Loaded {
    module: sys::CUmodule,
    functions: Vec<(&'static str, Function)>,
}

// SAFETY: as for `Gpu`.
unsafe impl Send for Loaded {}
// SAFETY: as for `Gpu`.
unsafe impl Sync for Loaded {}

struct Function {
    handle: sys::CUfunction,
    /// Bytes of each parameter, as the compiled kernel states them.
    parameters: Vec<usize>,
    /// What its source says of them.
    declared: Vec<Parameter>,
    /// The one that tells who runs beside it.
    beside: Option<usize>,
}

impl Gpu {
    /// Opens a card.
    pub(crate) fn open(ordinal: usize, cache: Cache, purpose: Purpose) -> Result<Arc<Gpu>, OpenError> {
        // SAFETY: opening the driver's library runs its initialisers, which it may do at any time.
        if !unsafe { sys::is_culib_present() } {
            return Err(OpenError::NoDriver);
        }
        let failed = |what| move |e: result::DriverError| OpenError::Driver { what, reason: words(e) };
        result::init().map_err(failed("start"))?;
        let count = result::device::get_count().map_err(failed("count cards"))? as usize;
        if ordinal >= count {
            return Err(OpenError::NoCard { ordinal, count });
        }
        let device = result::device::get(ordinal as i32).map_err(failed("name a card"))?;
        let name = result::device::get_name(device).map_err(failed("name a card"))?;
        let attribute = |a| {
            // SAFETY: the device is one that the driver gave.
            unsafe { result::device::get_attribute(device, a) }.map_err(failed("describe a card"))
        };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(OpenError::TooOld { name, major, minor });
        }
        let processors = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        // Hopper's own instructions are in no other card.
        let arch = format!("sm_{major}{minor}{}", if (major, minor) == (9, 0) { "a" } else { "" });
        let compiler = Compiler::find()?;
        // SAFETY: the device is one that the driver gave; the context is let go of when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("open a card"))?;
        // SAFETY: the context was made above.
        unsafe { result::ctx::set_current(context) }.map_err(failed("open a card"))?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("open a stream"))?;
        let (modules, free, launches, failure, sent, timing) = Default::default();
        // Clusters of blocks, and kernels that start early, came with Hopper.
        let is_hopper = major >= 9;
        let timeline = (purpose == Purpose::Profile).then(Timeline::take).transpose().map_err(failed("open a card"))?;
        let compiler = if timeline.is_some() { compiler.noting(timeline::BLOCKS_MAX) } else { compiler };
        let is_audited = purpose == Purpose::Audit;
        let launching = if is_audited { Launching::Serial } else { Launching::from_environment()? };
        let attention_arch = attention::arch_from_environment(&arch)?;
        let gpu = Gpu {
            name,
            arch,
            attention_arch,
            processors,
            device,
            context,
            stream,
            compiler,
            cache,
            is_audited,
            modules,
            free,
            launches,
            failure,
            queue: Mutex::new(Queue::of_card(is_hopper)),
            launching,
            can_start_early: is_hopper,
            sent,
            outbox: Outbox::take().map(Mutex::new),
            inbox: Inbox::take(),
            timing,
            timeline,
        };
        Ok(Arc::new(gpu))
    }

    /// For people: `CUDA (NVIDIA H200)`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `sm_90a`
    pub(crate) fn arch(&self) -> &str {
        &self.arch
    }

    /// The card whose kernels attention uses.
    pub(crate) fn attention_arch(&self) -> &str {
        &self.attention_arch
    }

    /// Blocks that can each have a processor.
    pub(crate) fn processors(&self) -> usize {
        self.processors
    }

    /// Whether kernels are held to the reference.
    pub(crate) fn is_audited(&self) -> bool {
        self.is_audited
    }

    /// The tile of a product. Under audit matrices are small, so any tile of its width may be asked to compute what one would.
    pub(crate) fn tile(&self, tiles: &[Tile], shape: Shape) -> Tile {
        if self.is_audited { Tile::any(tiles, shape) } else { Tile::select(tiles, self.processors, shape) }
    }

    fn bind(&self) {
        // SAFETY: the context lives as long as this.
        if let Err(error) = unsafe { result::ctx::set_current(self.context) } {
            self.fail("make the card current", words(error));
        }
    }

    /// Keeps the first failure.
    pub(crate) fn fail(&self, what: &str, reason: impl Display) {
        self.failure.get_or_init(|| format!("{what}: {reason}"));
    }

    fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    fn lost(&self, reason: String) -> Error {
        Error::DeviceLost { device: self.name.clone(), reason: format!("{reason}; start again, or use the CPU") }
    }

    /// Compiles and loads modules, so that no step has to.
    pub(crate) fn prepare(&self, modules: &[Module]) -> Result<(), Error> {
        let known = self.modules.read().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<Module> = modules.iter().copied().filter(|m| !known.contains_key(m)).collect();
        drop(known);
        let compile = |module: Module| (module, self.cache.binary(self.compiler, module, &self.arch));
        let binaries: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = missing.iter().map(|m| scope.spawn(move || compile(*m))).collect();
            threads.into_iter().map(|t| t.join().expect("the compiler does not panic")).collect()
        });
        for (module, binary) in binaries {
            let binary = binary.map_err(|e| self.lost(e.to_string()))?;
            let loaded = self.load(module, &binary).map_err(|reason| self.lost(format!("{module}: {reason}")))?;
            self.modules.write().unwrap_or_else(PoisonError::into_inner).insert(module, Arc::new(loaded));
        }
        Ok(())
    }

    fn load(&self, module: Module, binary: &[u8]) -> Result<Loaded, String> {
        self.bind();
        // SAFETY: the binary is what the compiler made, whole (the cache checks a hash), and outlives the call.
        let handle = unsafe { result::module::load_data(binary.as_ptr().cast()) }.map_err(words)?;
        let mut loaded = Loaded { module: handle, functions: vec![] };
        let name = CString::new("tile_stamp").map_err(|e| e.to_string())?;
        let mut stamp = [0u64];
        // SAFETY: the module is loaded; the symbol's size is held to be that of the number it is read into.
        unsafe {
            let (pointer, bytes) = result::module::get_global(loaded.module, name).map_err(words)?;
            if bytes != size_of_val(&stamp) {
                return Err(format!("a stamp of {bytes} bytes"));
            }
            result::memcpy_dtoh_sync(&mut stamp, pointer).map_err(words)?;
        }
        if stamp[0] != module.stamp() {
            return Err("compiled for another tile; delete the cache of kernels".to_owned());
        }
        if let Some(timeline) = &self.timeline {
            timeline.show_to(handle).map_err(words)?;
        }
        for entry in module.entries() {
            let name = CString::new(*entry).map_err(|e| e.to_string())?;
            // SAFETY: the module is loaded.
            let handle = unsafe { result::module::get_function(loaded.module, name) }.map_err(words)?;
            self.allow_shared_memory(handle);
            let (parameters, declared) = (parameters(handle), module.parameters(entry));
            if parameters.len() != declared.len() {
                return Err(format!("{entry} has other parameters than its source"));
            }
            let beside = declared.iter().position(|p| *p == Parameter::Beside);
            loaded.functions.push((entry, Function { handle, parameters, declared, beside }));
        }
        Ok(loaded)
    }

    /// Lets a function have all shared memory that a block can have beside its own. Where that fails, so does its first launch.
    fn allow_shared_memory(&self, function: sys::CUfunction) {
        use sys::{CUdevice_attribute as Device, CUfunction_attribute as Attribute};
        let most = Device::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device is one that the driver gave.
        let most = unsafe { result::device::get_attribute(self.device, most) }.unwrap_or(0);
        let mut own = 0;
        // SAFETY: the function belongs to a loaded module, and the number is written.
        unsafe { sys::cuFuncGetAttribute(&mut own, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function) };
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as above.
        let _ = unsafe { sys::cuFuncSetAttribute(function, attribute, most - own) };
    }

    fn module(&self, module: Module) -> Option<Arc<Loaded>> {
        let find = || self.modules.read().unwrap_or_else(PoisonError::into_inner).get(&module).cloned();
        find().or_else(|| {
            self.prepare(&[module]).map_err(|e| self.fail("compile", e)).ok()?;
            find()
        })
    }

    /// Enqueues a kernel. A launch of no block does nothing.
    ///
    /// Kernels are this crate's own code, as its intrinsics are a CPU crate's: what each reads and writes is a function of its
    /// parameters, stated in its source, and whoever launches it holds the shapes to each other before.
    pub(crate) fn launch(&self, module: Module, entry: &str, launch: Launch, args: &[Arg<'_>]) {
        self.launch_clusters(module, entry, (launch, 1), args);
    }

    /// The same in clusters of so many blocks along rows; one where the kernel says it itself.
    pub(crate) fn launch_clusters(
        &self,
        module: Module,
        entry: &str,
        (launch, cluster): (Launch, usize),
        args: &[Arg<'_>],
    ) {
        if launch.grid.contains(&0) || self.has_failed() {
            return;
        }
        let Some(call) = self.call(module, entry, launch, args) else { return };
        let call = Call { cluster: cluster as u32, ..call };
        self.launches.fetch_add(1, Ordering::Relaxed);
        let mut queue = lock(&self.queue);
        let find = |module: Module| {
            let loaded = if module.runs_on(&self.arch) { self.module(module)? } else { return None };
            loaded.functions.first().map(|(_, function)| function.handle)
        };
        let is_full = match self.launching {
            Launching::Apart => queue.hold(call),
            _ => queue.push(call, &find),
        };
        if is_full {
            self.send_held(&mut queue, true);
        }
    }

    /// A launch with all that it takes.
    fn call(&self, module: Module, entry: &str, launch: Launch, args: &[Arg<'_>]) -> Option<Call> {
        let loaded = self.module(module)?;
        let found = loaded.functions.iter().find(|(name, _)| *name == entry);
        let Some((name, function)) = found else {
            self.fail(entry, "no such kernel");
            return None;
        };
        // Who runs beside it is told later.
        let (count, beside) = (function.parameters.len(), function.beside);
        assert_eq!(beside.unwrap_or(count), args.len(), "{entry}: a kernel is called with all that it takes");
        let mut values = [0u64; ARGS_MAX];
        for ((value, arg), bytes) in values.iter_mut().zip(args).zip(&function.parameters) {
            let mut bits = [0; 8];
            assert_eq!(arg.put(&mut bits), *bytes, "{entry}: a parameter has its type's size");
            *value = u64::from_le_bytes(bits);
        }
        let grid = launch.grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let (threads, shared_bytes) = (launch.threads as u32, launch.shared_bytes as u32);
        let touch = |(arg, declared): (&Arg<'_>, &Parameter)| {
            let (writes, is_list) = (*declared == Parameter::Written, *declared == Parameter::Listed);
            arg.bytes().map(|bytes| Touch { bytes, writes, is_list })
        };
        let mut touched = Vec::with_capacity(args.iter().filter(|arg| arg.bytes().is_some()).count());
        touched.extend(args.iter().zip(&function.declared).filter_map(touch));
        let (entry, function) = (*name, function.handle);
        Some(Call {
            module,
            entry,
            function,
            grid,
            threads,
            shared_bytes,
            cluster: 1,
            args: values,
            count,
            touched,
            beside,
        })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.bind();
        self.empty_pool();
        self.drop_graphs();
        let modules = std::mem::take(&mut *self.modules.write().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: no memory is left, since each holds this; so no work is left that anybody waits for, and each handle is let go of
        // once. A failure changes nothing any more.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            for loaded in modules.into_values() {
                let _ = result::module::unload(loaded.module);
            }
            if let Some(timeline) = self.timeline.take() {
                timeline.free();
            }
            drop((self.outbox.take(), self.inbox.take()));
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

fn parameters(function: sys::CUfunction) -> Vec<usize> {
    let (mut sizes, mut at, mut size) = (vec![], 0, 0);
    loop {
        // SAFETY: the function belongs to a loaded module; both numbers are written. Past the last parameter it is an error.
        let told = unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut at, &mut size) };
        if told != sys::CUresult::CUDA_SUCCESS {
            return sizes;
        }
        sizes.push(size);
    }
}

fn words(error: result::DriverError) -> String {
    let text = error.error_string().map(|s| s.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("{:?}", error.0))
}

/// Nothing behind these locks can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
