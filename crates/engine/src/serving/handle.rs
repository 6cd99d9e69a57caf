//! The engine on a thread of its own, for many callers.
//!
//! A caller submits a job with a [`Sink`] for its events and keeps the [`Ticket`]; dropping it ends the request. The thread
//! computes step after step while there is work, takes orders between two steps, and sleeps without work. What can be
//! refused is refused in the caller's thread, without waiting for a step.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Engine, Event, Gauges, Job, Options, Refused, RequestId, engine::check};
use crate::{Pooling, Tokenizer};

/// Where a request's events go. It is called on the engine's thread and must not wait.
pub trait Sink: Send {
    /// Takes the next event. Gives false if nobody listens any more: then the request ends.
    fn send(&mut self, event: Event) -> bool;
}

impl<F: FnMut(Event) -> bool + Send> Sink for F {
    fn send(&mut self, event: Event) -> bool {
        self(event)
    }
}

/// The way to an engine on its own thread. When all handles and tickets are gone, the thread ends.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    orders: Sender<Order>,
}

/// A request that was submitted. Dropping it ends the request, if it has not ended.
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    orders: Sender<Order>,
}

/// The events of a request, as an iterator that waits for the next. It ends after `Finished` or `Failed`, or where the engine died.
/// Dropping it ends the request.
#[derive(Debug)]
pub struct Replies {
    events: Receiver<Event>,
    _ticket: Ticket,
}

struct Shared {
    context: usize,
    vocabulary: usize,
    hidden: usize,
    options: Options,
    pooling: Option<Pooling>,
    tokenizer: Arc<Tokenizer>,
    /// Requests that were never admitted, those on the way to the thread among them.
    queued: AtomicUsize,
    numbers: AtomicU64,
    stopping: AtomicBool,
    gauges: Mutex<Gauges>,
    thread: Mutex<Option<JoinHandle<usize>>>,
}

enum Order {
    Submit {
        number: u64,
        job: Box<Job>,
        sink: Box<dyn Sink>,
    },
    Cancel(u64),
    /// Finish what was taken, but not after this moment.
    Stop(Instant),
}

impl EngineHandle {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(engine: Engine) -> std::io::Result<EngineHandle> {
        let shared = Arc::new(Shared {
            context: engine.context(),
            vocabulary: engine.sequences().config().vocabulary,
            hidden: engine.sequences().config().hidden,
            options: engine.options().clone(),
            pooling: engine.pooling(),
            tokenizer: engine.tokenizer().clone(),
            queued: AtomicUsize::new(0),
            numbers: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            gauges: Mutex::new(engine.gauges()),
            thread: Mutex::new(None),
        });
        let (orders, inbox) = mpsc::channel();
        let worker =
            Worker { engine, shared: shared.clone(), inbox, open: HashMap::new(), ids: HashMap::new(), stop: None };
        let thread = thread::Builder::new().name("tessera-engine".to_owned()).spawn(move || worker.run())?;
        *lock(&shared.thread) = Some(thread);
        Ok(EngineHandle { shared, orders })
    }

    /// The longest sequence, prompt and reply, in tokens.
    pub fn context(&self) -> usize {
        self.shared.context
    }

    /// The engine's limits.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Numbers in an embedding.
    pub fn hidden(&self) -> usize {
        self.shared.hidden
    }

    /// How it makes embeddings, if it does.
    pub fn pooling(&self) -> Option<Pooling> {
        self.shared.pooling
    }

    /// The tokenizer of its model.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared.tokenizer
    }

    /// The engine after its last step.
    pub fn gauges(&self) -> Gauges {
        lock(&self.shared.gauges).clone()
    }

    /// Takes a job; its events go to `sink`.
    ///
    /// # Errors
    /// As [`Engine::submit`]; and if the engine is stopped.
    pub fn submit(&self, job: Job, sink: impl Sink + 'static) -> Result<Ticket, Refused> {
        check(&job, self.shared.context, self.shared.vocabulary)?;
        if job.embed && self.shared.pooling.is_none() {
            return Err(Refused::NoEmbeddings);
        }
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(Refused::Stopped);
        }
        let limit = self.shared.options.queue;
        let enter = |queued| (queued < limit).then_some(queued + 1);
        let entered = self.shared.queued.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter);
        entered.map_err(|_| Refused::QueueFull { limit })?;
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let order = Order::Submit { number, job: Box::new(job), sink: Box::new(sink) };
        self.orders.send(order).map_err(|_| Refused::Stopped)?;
        Ok(Ticket { number, orders: self.orders.clone() })
    }

    /// Takes a job; its events are what the iterator gives.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub fn replies(&self, job: Job) -> Result<Replies, Refused> {
        let (sender, events) = mpsc::channel();
        let ticket = self.submit(job, move |event| sender.send(event).is_ok())?;
        Ok(Replies { events, _ticket: ticket })
    }

    /// Takes no more jobs, finishes those that were taken, and ends the thread; what is not finished after `within` is
    /// cancelled. Gives how many were, or none if the thread had ended before, or died.
    pub fn stop(&self, within: Duration) -> Option<usize> {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.orders.send(Order::Stop(Instant::now() + within)); // it may have ended by itself
        let thread = lock(&self.shared.thread).take()?;
        thread.join().ok()
    }
}

impl Ticket {
    /// Ends the request, if it has not ended; its last event says so.
    pub fn cancel(&self) {
        let _ = self.orders.send(Order::Cancel(self.number)); // an engine that ended has no requests
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Iterator for Replies {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.events.recv().ok()
    }
}

/// What the thread owns.
struct Worker {
    engine: Engine,
    shared: Arc<Shared>,
    inbox: Receiver<Order>,
    /// By request: the number of its ticket, and where its events go.
    open: HashMap<RequestId, (u64, Box<dyn Sink>)>,
    ids: HashMap<u64, RequestId>,
    stop: Option<Instant>,
}

impl Worker {
    /// Runs until it is stopped or nobody is left to ask for anything. Gives how many requests it cut off.
    fn run(mut self) -> usize {
        let mut events = Vec::new();
        loop {
            let (queued, taken) = (self.engine.queued(), self.take_orders());
            let Some(taken) = taken else { return 0 };
            if self.stop.is_some_and(|at| Instant::now() >= at) {
                return self.cut_off();
            }
            let busy = self.engine.step(&mut events);
            for (id, event) in events.drain(..) {
                self.deliver(id, event);
            }
            let left = queued + taken - self.engine.queued();
            self.shared.queued.fetch_sub(left, Ordering::AcqRel);
            *lock(&self.shared.gauges) = self.engine.gauges();
            if !busy && self.stop.is_some() {
                return 0;
            }
        }
    }

    /// Takes all orders that are there, and waits for one if there is nothing else to do. Gives how many jobs came; none if
    /// nobody is left.
    fn take_orders(&mut self) -> Option<usize> {
        let (mut taken, mut cancelled) = (0, false);
        loop {
            // What a cancel changed is to be told before it waits.
            let idle = self.engine.is_idle() && taken == 0 && !cancelled && self.stop.is_none();
            let order = if idle {
                self.inbox.recv().ok()?
            } else {
                match self.inbox.try_recv() {
                    Ok(order) => order,
                    Err(TryRecvError::Empty) => return Some(taken),
                    // Sinks that report their own end keep requests alive without a ticket.
                    Err(TryRecvError::Disconnected) => return (!self.engine.is_idle()).then_some(taken),
                }
            };
            match order {
                Order::Submit { number, job, sink } => {
                    taken += 1;
                    self.submit(number, *job, sink);
                }
                Order::Cancel(number) => {
                    let Some(id) = self.ids.get(&number).copied() else { continue };
                    if let Some(event) = self.engine.cancel(id) {
                        cancelled = true;
                        self.deliver(id, event);
                    }
                }
                Order::Stop(at) => self.stop = Some(at),
            }
        }
    }

    fn submit(&mut self, number: u64, job: Job, mut sink: Box<dyn Sink>) {
        match self.engine.submit(job) {
            Ok(id) => {
                self.open.insert(id, (number, sink));
                self.ids.insert(number, id);
            }
            Err(refused) => {
                sink.send(Event::Failed(Arc::new(refused.into())));
            }
        }
    }

    fn deliver(&mut self, id: RequestId, event: Event) {
        let last = matches!(event, Event::Finished(_) | Event::Failed(_));
        let Some((number, sink)) = self.open.get_mut(&id) else { return };
        let number = *number;
        if sink.send(event) && !last {
            return;
        }
        self.open.remove(&id);
        self.ids.remove(&number);
        if !last {
            self.engine.cancel(id);
        }
    }

    /// Cancels all that is left.
    fn cut_off(mut self) -> usize {
        let left: Vec<RequestId> = self.open.keys().copied().collect();
        for id in &left {
            if let Some(event) = self.engine.cancel(*id) {
                self.deliver(*id, event);
            }
        }
        *lock(&self.shared.gauges) = self.engine.gauges();
        left.len()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is inside is replaced as a whole, so a panic elsewhere leaves it sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
