//! Launches on their way from the queue to the stream: one by one, or as a graph.

use cudarc::driver::{result, sys};

use super::{Gpu, lock, words};
use crate::queue::{ARGS_MAX, Call, Queue, Sending};

impl Gpu {
    /// Sends the launches that are held back.
    pub(crate) fn flush(&self) {
        self.send_held(&mut lock(&self.queue));
    }

    pub(super) fn send_held(&self, queue: &mut Queue) {
        self.bind();
        match queue.take(!self.is_audited) {
            Sending::Nothing => {}
            Sending::Calls(calls) => calls.iter().for_each(|call| self.enqueue(call)),
            Sending::New(key, calls) => {
                if let Some(graph) = self.captured(&calls) {
                    self.run_graph(graph);
                    queue.keep(key, graph);
                }
            }
            Sending::Graph(graph) => self.run_graph(graph),
        }
        queue.gone().into_iter().for_each(destroy);
    }

    fn enqueue(&self, call: &Call) {
        let mut args = call.args;
        let mut pointers = [std::ptr::null_mut(); ARGS_MAX];
        pointers.iter_mut().zip(&mut args).for_each(|(p, v)| *p = std::ptr::from_mut(v).cast());
        let [x, y, z] = call.grid;
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: call.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: call.shared_bytes,
            hStream: self.stream,
            attrs: &mut early,
            numAttrs: u32::from(self.starts_early && call.module.waits_by_itself()),
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
        calls.iter().for_each(|call| self.enqueue(call));
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
