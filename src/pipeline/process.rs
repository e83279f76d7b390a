//! The gateway's side of one worker process: it starts the worker with a socket, supervises its heartbeats, frames and
//! memory, and kills it if necessary. A crash of the worker is only an error here.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::description::Limits;
use super::packages;
use super::programs::{PIPELINE_WORKER, WorkerPrograms};
use millstream_worker_runtime::wire::{
    self, DemuxJob, Failure, Finding, FromWorker, Job, SegmentChunk, ToWorker, WireError, WireFrame,
};

/// A running worker.
pub struct Process {
    _counted: RunningProcess,
    child: Child,
    /// Set if the dynamic linker could not load the program.
    missing_library: Arc<OnceLock<String>>,
    reader: OwnedReadHalf,
    buffer: BytesMut,
    commands: mpsc::Sender<ToWorker>,
    limits: Limits,
    started: Instant,
    /// Start of the timeout for the first frame.
    frame_timer: Instant,
    /// Arrival of the last message; `None` before the first.
    last_message: Option<Instant>,
    /// Arrival of the last frame; `None` before the first.
    last_frame: Option<Instant>,
    next_poll: Instant,
}

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Returns the number of worker processes of this gateway.
pub fn running() -> usize {
    RUNNING.load(Ordering::Relaxed)
}

/// Counts one worker process while it exists.
struct RunningProcess;

impl RunningProcess {
    fn new() -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for RunningProcess {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a worker stopped or must be stopped.
#[derive(Debug, Error)]
pub enum ProcessError {
    #[error("the worker cannot be started: {0}")]
    Start(io::Error),
    #[error(
        "the program {PIPELINE_WORKER}, which runs pipelines, is not installed: put it next to the program of the gateway, \
         from the same release"
    )]
    NotInstalled,
    #[error(
        "GStreamer is not installed ({library} is missing); install with: apt-get install {}",
        packages::LIBRARIES
    )]
    NoGStreamer { library: String },
    #[error("the worker crashed ({0})")]
    Crashed(ExitStatus),
    #[error("the worker hung: no heartbeat for {} ms", ALIVE_LIMIT.as_millis())]
    Hung,
    #[error("the worker used {used} MiB of memory, more than its limit of {limit} MiB")]
    Memory { used: u64, limit: u32 },
    #[error("no frame arrived within {0:?} of the start")]
    NoOutput(Duration),
    #[error("no frame arrived for {0:?}")]
    Stalled(Duration),
    #[error("invalid message from the worker: {0}")]
    Wire(#[from] WireError),
    #[error("{}", explain(.0))]
    Failed(Failure),
    #[error("the source ended")]
    Ended,
}

/// Sends segment chunks to a worker.
#[derive(Clone, Debug)]
pub struct Feeder(mpsc::Sender<ToWorker>);

impl Feeder {
    /// Waits until there is room for a chunk and enqueues it; returns `false` if the worker is gone.
    pub async fn send(&self, chunk: SegmentChunk) -> bool {
        self.0.send(ToWorker::SegmentChunk(chunk)).await.is_ok()
    }
}

/// Returns a failure as text, with advice on how to fix it.
pub fn explain(failure: &Failure) -> String {
    match failure {
        Failure::Missing(elements) => format!("{failure}; {}", packages::advice(elements)),
        failure => failure.to_string(),
    }
}

/// Command of the gateway's program that runs [`super::demuxer`].
pub const DEMUXER_COMMAND: &str = "demuxer";

/// Maximum time between two messages; heartbeats arrive every 200 ms.
const ALIVE_LIMIT: Duration = Duration::from_millis(1_000);

/// Maximum time until the first message: the program is read from disk, and plugins are loaded.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Time between two checks of a worker's memory and timeouts.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum number of commands and frames queued for a worker. A frame that finds no room is dropped.
const QUEUE: usize = 256;

/// How long a worker may take to stop gracefully, for example to close its session with a camera.
const GRACE: Duration = Duration::from_millis(500);

/// Checking all pipelines loads all their plugins; the first run also scans every installed plugin.
const CHECK_LIMIT: Duration = Duration::from_secs(120);

/// Maximum number of lines of a worker that are logged, and maximum bytes of each.
const MAX_LINES: usize = 200;
const MAX_LINE: u64 = 500;

/// Environment variables passed to a worker. All others, such as tokens and proxies, are withheld.
const VARIABLES: [&str; 12] = [
    "PATH",
    "HOME",
    "LANG",
    "XDG_CACHE_HOME",
    "GST_REGISTRY",
    "GST_PLUGIN_PATH",
    "GST_PLUGIN_SYSTEM_PATH",
    // If these are set, GStreamer ignores their counterparts without a version.
    "GST_REGISTRY_1_0",
    "GST_PLUGIN_PATH_1_0",
    "GST_PLUGIN_SYSTEM_PATH_1_0",
    "GST_DEBUG",
    "LD_LIBRARY_PATH",
];

impl Process {
    /// Starts a worker for a job.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Start`] and [`ProcessError::NotInstalled`].
    pub fn start(programs: &WorkerPrograms, job: Job, limits: Limits) -> Result<Self, ProcessError> {
        Self::begin(pipeline_worker(&programs.pipeline), ToWorker::Run(job), limits)
    }

    /// Starts a worker that demuxes segments.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Start`] and [`ProcessError::NotInstalled`].
    pub fn start_demuxer(programs: &WorkerPrograms, job: DemuxJob, limits: Limits) -> Result<Self, ProcessError> {
        Self::begin(demuxer(&programs.demuxer), ToWorker::Demux(job), limits)
    }

    fn begin(command: Command, first: ToWorker, limits: Limits) -> Result<Self, ProcessError> {
        let (mut command, ours) = prepare(command).map_err(ProcessError::Start)?;
        // GStreamer must not fork a plugin scanner or write its plugin registry.
        command.env("GST_REGISTRY_FORK", "no").env("GST_REGISTRY_UPDATE", "no");
        let mut child = command.spawn().map_err(start_error)?;
        drop(command);
        let missing_library = Arc::new(OnceLock::new());
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log(stderr, child.id(), missing_library.clone()));
        }
        let (reader, writer) = ours.into_split();
        let (commands, queue) = mpsc::channel(QUEUE);
        // The queue is empty, so there is room.
        let _ = commands.try_send(first);
        tokio::spawn(write(writer, queue));
        let now = Instant::now();
        Ok(Self {
            _counted: RunningProcess::new(),
            child,
            missing_library,
            reader,
            buffer: BytesMut::new(),
            commands,
            limits,
            started: now,
            frame_timer: now,
            last_message: None,
            last_frame: None,
            next_poll: now + POLL_INTERVAL,
        })
    }

    /// Returns the process id while the worker runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a frame to the worker; returns `false` if the queue is full and the frame is dropped.
    pub fn send(&self, frame: WireFrame) -> bool {
        self.commands.try_send(ToWorker::Frame(frame)).is_ok()
    }

    /// Returns a handle that sends segment chunks.
    pub fn feeder(&self) -> Feeder {
        Feeder(self.commands.clone())
    }

    /// Requests a key frame from the encoder of the pipeline.
    pub fn request_key_frame_of_source(&self) {
        let _ = self.commands.try_send(ToWorker::KeyFrame);
    }

    /// Returns the next message other than a heartbeat. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// A [`ProcessError`]; the worker can no longer be used.
    pub async fn next(&mut self) -> Result<FromWorker, ProcessError> {
        let result = self.read().await;
        if let Err(ProcessError::Hung | ProcessError::Memory { .. } | ProcessError::Wire(_)) = result {
            // It will not exit by itself, and its resources must be released.
            let _ = self.child.start_kill();
        }
        result
    }

    async fn read(&mut self) -> Result<FromWorker, ProcessError> {
        loop {
            while let Some(message) = FromWorker::read(&mut self.buffer)? {
                self.last_message = Some(Instant::now());
                match message {
                    FromWorker::Alive => {}
                    FromWorker::Failed(failure) => return Err(ProcessError::Failed(failure.shown())),
                    FromWorker::Ended => return Err(ProcessError::Ended),
                    FromWorker::Frame(frame) => {
                        self.last_frame = Some(Instant::now());
                        return Ok(FromWorker::Frame(frame));
                    }
                    message => return Ok(message),
                }
            }
            let poll = self.next_poll;
            tokio::select! {
                biased;
                read = self.reader.read_buf(&mut self.buffer) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(self.exit_error().await),
                },
                () = tokio::time::sleep_until(poll) => self.poll()?,
            }
        }
    }

    /// Checks timeouts and memory. Called after [`POLL_INTERVAL`] without a read.
    fn poll(&mut self) -> Result<(), ProcessError> {
        let now = Instant::now();
        self.next_poll = now + POLL_INTERVAL;
        let silent = match self.last_message {
            Some(last_message) => now - last_message >= ALIVE_LIMIT,
            None => now - self.started >= START_LIMIT,
        };
        if silent {
            return Err(ProcessError::Hung);
        }
        let is_alive = self
            .last_message
            .is_some_and(|last_message| now - last_message < ALIVE_LIMIT / 2);
        if let Some(used) = self.child.id().and_then(resident)
            && used > self.limits.memory_bytes()
        {
            return Err(ProcessError::Memory {
                used: used >> 20,
                limit: self.limits.memory,
            });
        }
        match self.last_frame {
            None if now >= self.frame_timer + self.limits.start_timeout() => {
                Err(ProcessError::NoOutput(self.limits.start_timeout()))
            }
            // A worker without heartbeats is not a stalled source: it is about to be reported as hung.
            Some(frame) if now >= frame + self.limits.stall_timeout() && is_alive => {
                Err(ProcessError::Stalled(self.limits.stall_timeout()))
            }
            _ => Ok(()),
        }
    }

    /// Restarts the frame timeout: the input of the worker may pause, and no frame is due then.
    pub fn expect_no_frame(&mut self) {
        if let Some(frame) = &mut self.last_frame {
            *frame = Instant::now();
        } else {
            self.frame_timer = Instant::now();
        }
    }

    async fn exit_error(&mut self) -> ProcessError {
        match tokio::time::timeout(GRACE, self.child.wait()).await {
            Ok(Ok(status)) if status.code() == Some(NOT_LOADED) => self.load_error(status).await,
            Ok(Ok(status)) => ProcessError::Crashed(status),
            Ok(Err(error)) => ProcessError::Start(error),
            Err(_) => ProcessError::Hung,
        }
    }

    /// The task that reads standard error may need a moment until it has found the name of the library.
    async fn load_error(&self, status: ExitStatus) -> ProcessError {
        for _ in 0..50 {
            match self.missing_library.get() {
                Some(library) => {
                    return ProcessError::NoGStreamer {
                        library: library.clone(),
                    };
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        ProcessError::Crashed(status)
    }

    /// Stops the worker gracefully, or kills it after [`GRACE`]. Dropping it kills it.
    pub async fn stop(mut self) {
        let _ = self.commands.try_send(ToWorker::Stop);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Kills the worker and waits until it has exited.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }
}

/// Checks in a worker process what this host lacks for each job.
///
/// # Errors
///
/// A [`ProcessError`] if the check itself fails.
pub async fn check(programs: &WorkerPrograms, jobs: Vec<(String, Job)>) -> Result<Vec<Finding>, ProcessError> {
    let (mut command, mut ours) = prepare(pipeline_worker(&programs.pipeline)).map_err(ProcessError::Start)?;
    let mut child = command.spawn().map_err(start_error)?;
    drop(command);
    let missing_library = Arc::new(OnceLock::new());
    let logging = child
        .stderr
        .take()
        .map(|stderr| tokio::spawn(log(stderr, child.id(), missing_library.clone())));
    let checking = async {
        let mut bytes = BytesMut::new();
        ToWorker::Check(jobs).write(&mut bytes);
        // A worker that could not be loaded does not read it; the end of its output says so.
        let _ = ours.write_all(&bytes).await;
        let mut buffer = BytesMut::new();
        loop {
            while let Some(message) = FromWorker::read(&mut buffer)? {
                if let FromWorker::Checked(findings) = message {
                    return Ok(findings);
                }
            }
            if ours.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                let status = child.wait().await.map_err(ProcessError::Start)?;
                if let Some(logging) = logging {
                    let _ = logging.await;
                }
                return Err(match missing_library.get() {
                    Some(library) => ProcessError::NoGStreamer {
                        library: library.clone(),
                    },
                    None => ProcessError::Crashed(status),
                });
            }
        }
    };
    tokio::time::timeout(CHECK_LIMIT, checking)
        .await
        .unwrap_or(Err(ProcessError::Hung))
}

/// Exit status of the dynamic linker for a program that it cannot load.
const NOT_LOADED: i32 = 127;

fn start_error(error: io::Error) -> ProcessError {
    match error.kind() {
        io::ErrorKind::NotFound => ProcessError::NotInstalled,
        _ => ProcessError::Start(error),
    }
}

fn pipeline_worker(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg0(PIPELINE_WORKER);
    command
}

fn demuxer(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg0("millstream").arg(DEMUXER_COMMAND);
    command
}

/// Returns the command and our end of the socket. Dropping the command closes the worker's end in this process.
fn prepare(mut command: Command) -> io::Result<(Command, UnixStream)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    command
        .env_clear()
        .envs(
            VARIABLES
                .iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        // Per-thread malloc arenas would make up most of a worker's memory.
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok((command, UnixStream::from_std(ours)?))
}

async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<ToWorker>) {
    let mut bytes = BytesMut::new();
    while let Some(message) = queue.recv().await {
        bytes.clear();
        message.write(&mut bytes);
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Logs what the libraries of a worker write to standard error, within bounds.
async fn log(stderr: ChildStderr, id: Option<u32>, missing_library: Arc<OnceLock<String>>) {
    let mut reader = BufReader::new(stderr);
    for _ in 0..MAX_LINES {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(MAX_LINE);
        match limited.read_until(b'\n', &mut line).await {
            Ok(1..) => {
                let text = wire::shown(&String::from_utf8_lossy(&line));
                if let Some(library) = missing_library_in(&text) {
                    let _ = missing_library.set(library.to_owned());
                }
                debug!(worker = id, text, "worker output");
            }
            Ok(0) | Err(_) => return,
        }
    }
    // If nobody read the pipe, the worker would block on it.
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
}

/// Returns the library that the dynamic linker (ld.so(8)) did not find, if this line of its output says so.
fn missing_library_in(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("error while loading shared libraries: ")?;
    rest.split(':').next()
}

/// Resident memory of a process in bytes.
fn resident(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_read_from_the_output_of_the_dynamic_linker() {
        let line = "millstream-worker: error while loading shared libraries: libgstapp-1.0.so.0: cannot open shared \
                    object file: No such file or directory";
        assert_eq!(missing_library_in(line), Some("libgstapp-1.0.so.0"));
        assert_eq!(missing_library_in("libgstapp-1.0.so.0: something else"), None);
    }
}
