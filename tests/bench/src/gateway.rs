//! The gateway under test as a child process: started on free ports, watched, stopped.

use std::{
    fs,
    io::{self, Error},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{http, procfs, sys};

/// The token that the tool's publisher shows.
pub(crate) const PUBLISH_TOKEN: &str = "bench-publish-token";

/// A gateway that does not listen within this time has failed to start. It takes well under one second, but a machine may be
/// busy.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Time to end in good order after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Ports that are tried before none is taken for free.
const MAX_PORT_TRIES: u32 = 100;

/// A running gateway; stopped when dropped.
pub(crate) struct Gateway {
    child: Child,
    log: PathBuf,
    http: SocketAddr,
    media_port: u16,
}

impl Gateway {
    /// Starts `binary` with its HTTP and media ports on loopback and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When the binary cannot be run, ends at once, or does not listen in time; the message has the end of its log.
    pub(crate) fn start(binary: &Path) -> io::Result<Self> {
        Self::start_with(binary, None)
    }

    /// As [`Self::start`], with a configuration file.
    ///
    /// # Errors
    ///
    /// As for [`Self::start`].
    pub(crate) fn start_with(binary: &Path, config: Option<&Path>) -> io::Result<Self> {
        // All the viewers of this tool come from one address, faster than any one user may.
        let limits = [
            ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0"),
            ("MILLSTREAM_LIMITS__CONNECTIONS_PER_ADDRESS", "4096"),
            ("MILLSTREAM_LIMITS__HALF_OPEN_PER_ADDRESS", "4096"),
        ];
        Self::start_by(binary, config, &limits)
    }

    /// As [`Self::start_with`], with the limits that the gateway has by default.
    ///
    /// # Errors
    ///
    /// As for [`Self::start`].
    pub(crate) fn start_with_shipped_limits(binary: &Path, config: Option<&Path>) -> io::Result<Self> {
        Self::start_by(binary, config, &[])
    }

    fn start_by(binary: &Path, config: Option<&Path>, variables: &[(&str, &str)]) -> io::Result<Self> {
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let media = free_media_address()?;
        let log = std::env::temp_dir().join(format!("millstream-bench-{}-{}.log", std::process::id(), http.port()));
        let file = fs::File::create(&log)?;
        let mut command = Command::new(binary);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        let child = command
            .arg("serve")
            .env("MILLSTREAM_HTTP__LISTEN", http.to_string())
            .env("MILLSTREAM_LIMITS__DRAIN_SECONDS", "0")
            .env("MILLSTREAM_WEBRTC__LISTEN", media.to_string())
            .env("MILLSTREAM_WEBRTC__ANNOUNCE", "127.0.0.1")
            .env("MILLSTREAM_AUTH__PUBLISH_TOKEN", PUBLISH_TOKEN)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|error| Error::new(error.kind(), format!("cannot start {}: {error}", binary.display())))?;
        let mut gateway = Self {
            child,
            log,
            http,
            media_port: media.port(),
        };
        gateway.wait_until_ready()?;
        Ok(gateway)
    }

    /// Where it answers HTTP.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// CPU time of the process tree so far.
    ///
    /// # Errors
    ///
    /// When the gateway is gone; the message has the end of its log.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        procfs::cpu(self.child.id()).map_err(|error| self.failure(&error.to_string()))
    }

    /// Memory of the process tree.
    ///
    /// # Errors
    ///
    /// When the gateway is gone; the message has the end of its log.
    pub(crate) fn memory(&self) -> io::Result<procfs::Memory> {
        procfs::memory(self.child.id()).map_err(|error| self.failure(&error.to_string()))
    }

    /// What the gateway's own process occupies, without its workers.
    ///
    /// # Errors
    ///
    /// When the gateway is gone; the message has the end of its log.
    pub(crate) fn footprint(&self) -> io::Result<procfs::Footprint> {
        procfs::footprint(self.child.id()).map_err(|error| self.failure(&error.to_string()))
    }

    /// Length of its log in bytes.
    pub(crate) fn log_bytes(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }

    /// Datagrams that found the gateway's own socket full.
    pub(crate) fn socket_drops(&self) -> u64 {
        procfs::udp_drops(&[self.media_port])
    }

    /// # Errors
    ///
    /// When the process has ended; the message has its exit status and the end of its log.
    pub(crate) fn ensure_alive(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(self.failure(&format!("it ended: {status}"))),
            None => Ok(()),
        }
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let started = Instant::now();
        loop {
            self.ensure_alive()?;
            if http::get(self.http, "/readyz").is_ok_and(|response| response.status != 503) {
                return Ok(());
            }
            if started.elapsed() > START_LIMIT {
                return Err(self.failure("not ready in time"));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn failure(&self, what: &str) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        Error::other(format!("gateway: {what}\n{tail}"))
    }
}

/// An address that is free by UDP and by TCP: media goes by both.
fn free_media_address() -> io::Result<SocketAddr> {
    let mut tries = 0;
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        match TcpListener::bind(udp) {
            Ok(_) => return Ok(udp),
            Err(error) if tries == MAX_PORT_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let asked = Instant::now();
        if matches!(self.child.try_wait(), Ok(None)) && sys::terminate(self.child.id()).is_ok() {
            while matches!(self.child.try_wait(), Ok(None)) && asked.elapsed() < STOP_LIMIT {
                thread::sleep(Duration::from_millis(10));
            }
        }
        // Both are no-ops for a process that has ended in good order.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}
