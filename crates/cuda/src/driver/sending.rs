//! Launches on their way from the queue to the stream: one by one, or as a graph.

use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{result, sys};

use super::{Gpu, lock, words};
use crate::{
    error::OpenError,
    queue::{ARGS_MAX, Call, Queue, Sending, ops},
};

/// The variable that says how kernels are launched: `graphs`, `apart`, `single` or `serial`.
const LAUNCHES_VARIABLE: &str = "TESSERA_CUDA_LAUNCHES";

/// How kernels are launched, for measurements. No bit depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Launching {
    /// What comes again as a graph; kernels that wait by themselves start early where the card can, those that share nothing run at once,
    /// and products take in the gates that follow them.
    #[default]
    Graphs,
    /// The same, but neighbours never become one, and none runs beside another.
    Apart,
    /// Without graphs.
    Single,
    /// Without graphs, and each starts when the one before it has ended.
    Serial,
}

impl Launching {
    /// Whether runs that come again are sent as graphs.
    fn has_graphs(self) -> bool {
        matches!(self, Launching::Graphs | Launching::Apart)
    }

    /// What the environment asks for.
    pub(super) fn from_environment() -> Result<Launching, OpenError> {
        match std::env::var(LAUNCHES_VARIABLE).as_deref() {
            Err(_) | Ok("graphs") => Ok(Launching::Graphs),
            Ok("apart") => Ok(Launching::Apart),
            Ok("single") => Ok(Launching::Single),
            Ok("serial") => Ok(Launching::Serial),
            Ok(other) => Err(OpenError::Launches { value: other.to_owned() }),
        }
    }
}

/// What was sent to the card.
#[derive(Debug, Default)]
pub(super) struct Sent {
    launches: AtomicU64,
    beside: AtomicU64,
    graphs: AtomicU64,
}

/// Launches of kernels so far, and graphs that some of them were sent in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels, but for those that fetch what the host has sent.
    pub launches: u64,
    /// Those of them that ran beside another.
    pub beside: u64,
    /// Graphs.
    pub graphs: u64,
}

impl Sent {
    fn count(&self, launches: usize, beside: usize, graphs: u64) {
        self.launches.fetch_add(launches as u64, Ordering::Relaxed);
        self.beside.fetch_add(beside as u64, Ordering::Relaxed);
        self.graphs.fetch_add(graphs, Ordering::Relaxed);
    }
}

impl Gpu {
    /// Sends the launches that are held back.
    pub(crate) fn flush(&self) {
        self.send_held(&mut lock(&self.queue), false);
    }

    /// The same; the last launch is left if `but_last`, since it may become one with the next.
    pub(super) fn send_held(&self, queue: &mut Queue, but_last: bool) {
        self.bind();
        if let Some(timing) = &mut *lock(&self.timing) {
            let (calls, marks) = queue.take_marked(but_last);
            self.sent.count(ops(&calls), 0, 0);
            return self.send_timed(&calls, &marks, timing);
        }
        let beside = |calls: &[Call]| calls.iter().filter(|call| call.is_beside()).count();
        match queue.take(self.launching.has_graphs(), self.has_pairs(), but_last) {
            Sending::Nothing => {}
            Sending::Calls(calls) => {
                self.sent.count(ops(&calls), beside(&calls), 0);
                calls.iter().for_each(|call| self.enqueue(call, self.can_start_early));
            }
            Sending::New(key, calls) => {
                if let Some(graph) = self.captured(&calls) {
                    self.sent.count(ops(&calls), beside(&calls), 1);
                    self.run_graph(graph);
                    queue.keep(key, graph, beside(&calls));
                }
            }
            Sending::Graph(graph, launches, beside) => {
                self.sent.count(launches, beside, 1);
                self.run_graph(graph);
            }
        }
        queue.gone().into_iter().for_each(destroy);
    }

    /// Whether launches run beside each other.
    pub(super) fn has_pairs(&self) -> bool {
        self.can_start_early && matches!(self.launching, Launching::Graphs | Launching::Single)
    }

    /// What was sent so far.
    pub(crate) fn counts(&self) -> Counts {
        let [launches, beside, graphs] =
            [&self.sent.launches, &self.sent.beside, &self.sent.graphs].map(|n| n.load(Ordering::Relaxed));
        Counts { launches, beside, graphs }
    }

    /// Enqueues a launch, which may start early if `early` and if its kernel waits by itself.
    pub(super) fn enqueue(&self, call: &Call, early: bool) {
        let early = early && self.launching != Launching::Serial && call.module.waits_by_itself();
        let mut args = call.args;
        let mut pointers = [std::ptr::null_mut(); ARGS_MAX];
        pointers.iter_mut().zip(&mut args).for_each(|(p, v)| *p = std::ptr::from_mut(v).cast());
        let [x, y, z] = call.grid;
        use sys::{CUlaunchAttributeID as Id, CUlaunchAttributeValue as Value};
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let started = Value { programmaticStreamSerializationAllowed: 1 };
        let clustered =
            Value { clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: call.cluster, y: 1, z: 1 } };
        let mut attributes = [
            attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, clustered),
            attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, started),
        ];
        let wanted = &mut attributes[usize::from(call.cluster == 1)..1 + usize::from(early)];
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: call.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: call.shared_bytes,
            hStream: self.stream,
            attrs: wanted.as_mut_ptr(),
            numAttrs: wanted.len() as u32,
        };
        // SAFETY: the function belongs to a loaded module, which lives as long as this; it takes as many parameters, of these sizes.
        // They are copied by the call. The memory behind them is on this card, and is handed out again only to work behind this in
        // the stream. That the kernel stays within it: see `launch`. A kernel that starts early waits by itself.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&config, call.function, pointers.as_mut_ptr(), std::ptr::null_mut()) };
        if launched != sys::CUresult::CUDA_SUCCESS {
            self.fail(call.entry, words(result::DriverError(launched)));
        }
    }

    /// Launches as a graph; none, and a failure, where the driver makes none of them.
    fn captured(&self, calls: &[Call]) -> Option<sys::CUgraphExec> {
        let failed = |e: result::DriverError| self.fail("make a graph", words(e));
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this; between both calls it gets nothing but the launches, since the queue is locked.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed).ok()?;
        calls.iter().for_each(|call| self.enqueue(call, self.can_start_early));
        // SAFETY: as above.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(failed).ok()?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph was made above and is let go of once; `exec` is written.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            made
        };
        made.result().map_err(failed).ok()?;
        Some(exec)
    }

    fn run_graph(&self, graph: sys::CUgraphExec) {
        // SAFETY: graph and stream are alive. Its launches are as they were; see `enqueue`.
        let ran = unsafe { sys::cuGraphLaunch(graph, self.stream) }.result();
        ran.unwrap_or_else(|e| self.fail("run a graph", words(e)));
    }

    /// Lets go of all graphs. Nothing runs any more.
    pub(super) fn drop_graphs(&self) {
        let mut queue = lock(&self.queue);
        queue.forget();
        queue.gone().into_iter().for_each(destroy);
    }
}

fn destroy(graph: sys::CUgraphExec) {
    // SAFETY: the graph was made by `captured`, and nobody else has it. The driver waits for its work.
    let _ = unsafe { sys::cuGraphExecDestroy(graph) };
}
