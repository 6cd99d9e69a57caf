//! Connections: each is served on its own, and kept no longer than it is used.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;

use crate::serve::Stop;

/// How long nobody is accepted after the system gave no socket, as it does when a process has too many.
const BREATH: Duration = Duration::from_millis(100);

/// Serves whoever connects until it is told to stop, and then ends when the requests have ended that are under way. Who takes
/// longer than `head_time` for the head of a request is let go.
pub(crate) async fn serve(listener: TcpListener, router: Router, head_time: Duration, stop: Stop) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_time);
    let (open, mut told) = (GracefulShutdown::new(), pin!(stop.told()));
    loop {
        let accepted = poll_fn(|context| match told.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => listener.poll_accept(context).map(Some),
        });
        match accepted.await {
            None => break,
            Some(Err(_)) => tokio::time::sleep(BREATH).await,
            Some(Ok((socket, _))) => {
                // Each token is a small write of its own, and must not wait for the one before to be acknowledged.
                let _ = socket.set_nodelay(true); // without it tokens come late, and that is all
                let service = TowerToHyperService::new(router.clone());
                let connection = open.watch(http.serve_connection(TokioIo::new(socket), service));
                tokio::spawn(async move {
                    let _ = connection.await; // who goes away, or talks no HTTP, is nobody's problem but its own
                });
            }
        }
    }
    drop(listener);
    open.shutdown().await;
}
