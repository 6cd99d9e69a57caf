//! The server's life: it listens, serves, and stops when it is told to.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch};

use crate::{Loader, Settings, app::App, catalog::Catalog, connections, problem::Problem, routes};

/// How long clients have to hear that their replies were cut off.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A server that is bound to an address.
pub struct Server {
    app: Arc<App>,
    listener: std::net::TcpListener,
    address: SocketAddr,
    stop: (StopSwitch, Stop),
    on_signal: Option<OnSignal>,
}

/// Is called with 0 when signals are heard from now on, with 1 for the first signal, 2 for the second, and so on.
type OnSignal = Box<dyn FnMut(usize) + Send>;

/// Tells a server to stop.
#[derive(Clone, Debug)]
pub struct StopSwitch(Arc<watch::Sender<bool>>);

/// Waits for the switch.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Requests that were open when it was told to stop.
    pub open: usize,
    /// Replies that were cut off because the grace was over.
    pub cut_off: usize,
}

impl StopSwitch {
    /// The server takes no more requests and ends those that it has.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    pub(crate) async fn told(mut self) {
        // Without a switch nobody can tell any more; then it never comes.
        if self.0.wait_for(|told| *told).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Server {
    /// Binds to an address (port 0: any that is free), for models of these names.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn bind(
        address: (&str, u16),
        names: Vec<String>,
        loader: Box<dyn Loader>,
        settings: Settings,
    ) -> io::Result<Server> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let app = Arc::new(App::new(settings, Arc::new(Catalog::new(loader, names))));
        let (sender, receiver) = watch::channel(false);
        Ok(Server { app, listener, address, stop: (StopSwitch(Arc::new(sender)), Stop(receiver)), on_signal: None })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells it to stop.
    pub fn switch(&self) -> StopSwitch {
        self.stop.0.clone()
    }

    /// Stops by SIGINT and SIGTERM too (elsewhere than on Unix by Ctrl-C). `told` hears of each, with their number so far; and of
    /// none, 0, as soon as they would be heard: whoever is told that the server listens may stop it at once.
    pub fn on_signal(mut self, told: impl FnMut(usize) + Send + 'static) -> Server {
        self.on_signal = Some(Box::new(told));
        self
    }

    /// Loads one of its models.
    ///
    /// # Errors
    /// If the name is none of its own, or the loader fails.
    pub fn load(&self, name: &str) -> Result<(), Problem> {
        self.app.catalog.load(name).map(|_| ())
    }

    /// Serves until it is told to stop. Then it takes no more requests, and replies have the grace of the settings to end.
    ///
    /// # Errors
    /// If the system gives no threads or sockets.
    pub fn run(self) -> io::Result<Closing> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("tessera-server")
            .enable_all()
            .build()?;
        let closing = runtime.block_on(self.serve());
        runtime.shutdown_timeout(Duration::from_secs(1));
        closing
    }

    async fn serve(self) -> io::Result<Closing> {
        let Server { app, listener, stop: (switch, stop), on_signal, .. } = self;
        if let Some(mut told) = on_signal {
            let signals = Signals::new()?;
            told(0);
            tokio::spawn(listen(signals, switch.clone(), told));
        }
        let listener = TcpListener::from_std(listener)?;
        let serving = connections::serve(listener, routes::router(&app), app.settings.head_time, stop.clone());
        let mut served = tokio::spawn(serving);
        stop.told().await;
        app.closing.store(true, Ordering::Release);
        let open = app.open();
        let in_time = tokio::time::timeout(app.settings.grace, &mut served).await.is_ok();
        let catalog = app.catalog.clone();
        let end = move || {
            let names = catalog.all().into_iter().map(|(name, _)| name);
            names.filter_map(|name| catalog.unload(&name, Duration::ZERO).ok().flatten()).sum()
        };
        let cut_off = tokio::task::spawn_blocking(end).await.unwrap_or(0);
        if !in_time {
            // Those that were cut off are still to be told.
            let _ = tokio::time::timeout(LAST_WORDS, &mut served).await;
            served.abort();
        }
        Ok(Closing { open, cut_off })
    }
}

/// Stops the server at the first signal, and tells of all.
async fn listen(mut signals: Signals, switch: StopSwitch, mut told: OnSignal) {
    for count in 1.. {
        signals.next().await;
        told(count);
        switch.stop();
    }
}

/// What asks a process to end.
#[cfg(unix)]
struct Signals([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    async fn next(&mut self) {
        std::future::poll_fn(|context| {
            let came = |signal: &mut tokio::signal::unix::Signal| signal.poll_recv(context).is_ready();
            // Both are asked, so that both wake.
            if self.0.iter_mut().map(came).fold(false, |any, came| any | came) {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }
}

/// What asks a process to end.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
