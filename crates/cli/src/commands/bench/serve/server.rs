//! The server under load: a process of its own, or one that runs elsewhere.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{commands::bench::args::Serve, ui, ui::Failure};

/// A model of many gigabytes may take so long to load.
const START: Duration = Duration::from_secs(600);
/// Of what the process said, the end is shown where it fails.
const LINES: usize = 20;

/// A server, which ends with this.
pub(super) struct Server {
    url: String,
    child: Option<Child>,
}

impl Server {
    /// Starts a server for what the command line names, and waits until it answers.
    ///
    /// # Errors
    /// If it ends, or does not answer in time.
    pub(super) fn start(args: &Serve) -> Result<Server> {
        if let Some(url) = &args.url {
            return Ok(Server { url: url.clone(), child: None });
        }
        // Free a moment ago; a server whose port is taken says so.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", &args.model, "--port", &port.to_string()]).args(&args.flags);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (stderr, lines) = (child.stderr.take(), said.clone());
        thread::spawn(move || {
            for line in stderr.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()).map_while(Result::ok) {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push_back(line);
                if lines.len() > LINES {
                    lines.pop_front();
                }
            }
        });
        let mut server = Server { url: format!("http://127.0.0.1:{port}"), child: Some(child) };
        let bar = ui::spinner("starting the server");
        let ready = server.wait_until_ready();
        bar.finish_and_clear();
        if let Err(problem) = ready {
            thread::sleep(Duration::from_millis(100));
            let said: Vec<_> = said.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
            let message = format!("the server {problem}; it said:\n{}", ui::harmless(&said.join("\n")));
            return Err(Failure::new(message, "try `tessera serve` with the same words").into());
        }
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let until = Instant::now() + START;
        while Instant::now() < until {
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                return Err(format!("ended with {status}"));
            }
            if ureq::get(format!("{}/health", self.url)).call().is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(format!("did not answer in {} s", START.as_secs()))
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Bytes of memory that the process holds, where the system tells and it is ours.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        let child = self.child.as_ref()?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it had ended by itself.
    pub(super) fn stop(mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            return Err(Failure::new(format!("the server ended with {status} under load"), "report this").into());
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // What it served is measured; how it ends gracefully is tested elsewhere.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
