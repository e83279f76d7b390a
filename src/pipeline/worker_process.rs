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

use super::description::WorkerLimits;
use super::expected_silence::ExpectedSilence;
use super::packages;
use super::worker_executables::{PIPELINE_WORKER_EXECUTABLE_NAME, WorkerExecutablesAndProcessSlots};
use super::worker_slots::{WorkerSlot, WorkerSlotLimitReached};
use millstream_worker_runtime::wire::{
    self, DemuxJob, MessageFromWorker, MessageToWorker, PipelineCheckResult, PipelineJob, SegmentChunk, WireError,
    WireFrame, WorkerFailure,
};

/// A running worker.
pub struct WorkerProcess {
    _running_guard: RunningWorkerCountGuard,
    _slot: WorkerSlot,
    child: Child,
    /// Set if the dynamic linker could not load the program.
    missing_library: Arc<OnceLock<String>>,
    reader: OwnedReadHalf,
    receive_buffer: BytesMut,
    command_sender: mpsc::Sender<MessageToWorker>,
    limits: WorkerLimits,
    started_at: Instant,
    /// Start of the timeout for the first frame.
    frame_timeout_start: Instant,
    /// Arrival of the last message; `None` before the first.
    last_message_at: Option<Instant>,
    /// Arrival of the last frame; `None` before the first.
    last_frame_at: Option<Instant>,
    expected_silence: ExpectedSilence,
    next_health_check_at: Instant,
}

static RUNNING_WORKER_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Returns the number of worker processes of this gateway.
pub fn running_worker_count() -> usize {
    RUNNING_WORKER_COUNT.load(Ordering::Relaxed)
}

/// Counts one worker process while it exists.
struct RunningWorkerCountGuard;

impl RunningWorkerCountGuard {
    fn new() -> Self {
        RUNNING_WORKER_COUNT.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for RunningWorkerCountGuard {
    fn drop(&mut self) {
        RUNNING_WORKER_COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a worker stopped or must be stopped.
#[derive(Debug, Error)]
pub enum WorkerProcessError {
    #[error("the pipeline or demuxer worker cannot be started: {0}")]
    CannotStart(io::Error),
    #[error("no further worker may run: {0}")]
    NoSlot(#[from] WorkerSlotLimitReached),
    #[error(
        "the program {PIPELINE_WORKER_EXECUTABLE_NAME}, which runs pipelines, is not installed: put it next to the program of the gateway, \
         from the same release"
    )]
    WorkerNotInstalled,
    #[error(
        "GStreamer is not installed ({library} is missing); install the missing Debian packages with: apt-get install {}",
        packages::GSTREAMER_LIBRARY_PACKAGES
    )]
    GStreamerNotInstalled { library: String },
    #[error("the pipeline or demuxer worker crashed ({0})")]
    Crashed(ExitStatus),
    #[error("the pipeline or demuxer worker hung: it sent no heartbeat for {} ms", HEARTBEAT_TIMEOUT.as_millis())]
    Hung,
    #[error("the pipeline or demuxer worker used {used} MiB of memory, more than its limit of {limit} MiB")]
    MemoryLimitExceeded { used: u64, limit: u32 },
    #[error("the pipeline or demuxer worker delivered no frame within {0:?} of its start")]
    NoFirstFrame(Duration),
    #[error("the pipeline or demuxer worker delivered no frame for {0:?}")]
    Stalled(Duration),
    #[error("the pipeline or demuxer worker sent an invalid message: {0}")]
    InvalidMessage(#[from] WireError),
    #[error("{}", describe_failure_with_advice(.0))]
    WorkerFailed(WorkerFailure),
    #[error("the pipeline or HLS source reached the end of its media")]
    SourceEnded,
}

/// Sends segment chunks to a worker.
#[derive(Clone, Debug)]
pub struct SegmentChunkSender(mpsc::Sender<MessageToWorker>);

impl SegmentChunkSender {
    /// Waits until there is room for a chunk and enqueues it; returns `false` if the worker is gone.
    pub async fn send(&self, chunk: SegmentChunk) -> bool {
        self.0.send(MessageToWorker::SegmentChunk(chunk)).await.is_ok()
    }
}

/// Returns a failure as text, with advice on how to fix it.
pub fn describe_failure_with_advice(failure: &WorkerFailure) -> String {
    match failure {
        WorkerFailure::Missing(elements) => format!("{failure}; {}", packages::install_advice(elements)),
        failure => failure.to_string(),
    }
}

/// Command of the gateway's program that runs [`super::demuxer`].
pub const DEMUXER_COMMAND: &str = "demuxer";

/// Maximum time between two messages; heartbeats arrive every 200 ms.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Maximum time until the first message: the program is read from disk, and plugins are loaded.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time between two checks of a worker's memory and timeouts.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum number of commands and frames queued for a worker. A frame that finds no room is dropped.
const MAX_QUEUED_WORKER_MESSAGES: usize = 256;

/// How long a worker may take to stop gracefully, for example to close its session with a camera.
const GRACEFUL_STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// Checking all pipelines loads all their plugins; the first run also scans every installed plugin.
const PIPELINE_CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// Maximum number of lines of a worker that are logged, and maximum bytes of each.
const MAX_LOGGED_STDERR_LINES: usize = 200;
const MAX_LOGGED_STDERR_LINE_BYTES: u64 = 500;

/// Environment variables passed to a worker. All others, such as tokens and proxies, are withheld.
const PASSED_ENV_VARIABLES: [&str; 12] = [
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

impl WorkerProcess {
    /// Starts a worker for a job.
    ///
    /// # Errors
    ///
    /// [`WorkerProcessError::CannotStart`] and [`WorkerProcessError::WorkerNotInstalled`].
    pub fn spawn_pipeline_worker(
        programs: &WorkerExecutablesAndProcessSlots,
        slot: WorkerSlot,
        job: PipelineJob,
        limits: WorkerLimits,
    ) -> Result<Self, WorkerProcessError> {
        let command = pipeline_worker_command(&programs.pipeline_worker);
        Self::spawn_worker(command, MessageToWorker::RunPipeline(job), limits, slot)
    }

    /// Starts a worker that demuxes segments.
    ///
    /// # Errors
    ///
    /// [`WorkerProcessError::CannotStart`] and [`WorkerProcessError::WorkerNotInstalled`].
    pub fn spawn_demuxer_worker(
        programs: &WorkerExecutablesAndProcessSlots,
        slot: WorkerSlot,
        job: DemuxJob,
        limits: WorkerLimits,
    ) -> Result<Self, WorkerProcessError> {
        let command = demuxer_command(&programs.demuxer);
        Self::spawn_worker(command, MessageToWorker::Demux(job), limits, slot)
    }

    fn spawn_worker(
        command: Command,
        first: MessageToWorker,
        limits: WorkerLimits,
        slot: WorkerSlot,
    ) -> Result<Self, WorkerProcessError> {
        let (mut command, ours) = set_socket_and_environment(command).map_err(WorkerProcessError::CannotStart)?;
        // GStreamer must not fork a plugin scanner or write its plugin registry.
        command.env("GST_REGISTRY_FORK", "no").env("GST_REGISTRY_UPDATE", "no");
        let mut child = command.spawn().map_err(start_error)?;
        drop(command);
        let missing_library = Arc::new(OnceLock::new());
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log_stderr(stderr, child.id(), missing_library.clone()));
        }
        let (reader, writer) = ours.into_split();
        let (commands, queue) = mpsc::channel(MAX_QUEUED_WORKER_MESSAGES);
        // The queue is empty, so there is room.
        let _ = commands.try_send(first);
        tokio::spawn(write_queued_messages_to_worker(writer, queue));
        let now = Instant::now();
        Ok(Self {
            _running_guard: RunningWorkerCountGuard::new(),
            _slot: slot,
            child,
            missing_library,
            reader,
            receive_buffer: BytesMut::new(),
            command_sender: commands,
            limits,
            started_at: now,
            frame_timeout_start: now,
            last_message_at: None,
            last_frame_at: None,
            expected_silence: ExpectedSilence::default(),
            next_health_check_at: now + HEALTH_CHECK_INTERVAL,
        })
    }

    /// Returns the process id while the worker runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a frame to the worker; returns `false` if the queue is full and the frame is dropped.
    pub fn send_frame(&self, frame: WireFrame) -> bool {
        self.command_sender.try_send(MessageToWorker::Frame(frame)).is_ok()
    }

    /// Returns a handle that sends segment chunks.
    pub fn segment_chunk_sender(&self) -> SegmentChunkSender {
        SegmentChunkSender(self.command_sender.clone())
    }

    /// Returns a handle that announces pauses in the input of the worker.
    pub fn expected_silence(&self) -> ExpectedSilence {
        self.expected_silence.clone()
    }

    /// Requests a key frame from the encoder of the pipeline.
    pub fn request_key_frame(&self) {
        let _ = self.command_sender.try_send(MessageToWorker::KeyFrameRequest);
    }

    /// Returns the next message other than a heartbeat. Cancel-safe: dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// A [`WorkerProcessError`]; the worker can no longer be used.
    pub async fn read_message_or_kill_worker(&mut self) -> Result<MessageFromWorker, WorkerProcessError> {
        let result = self.read_message_enforcing_limits().await;
        if let Err(
            WorkerProcessError::Hung
            | WorkerProcessError::MemoryLimitExceeded { .. }
            | WorkerProcessError::InvalidMessage(_),
        ) = result
        {
            // It will not exit by itself, and its resources must be released.
            let _ = self.child.start_kill();
        }
        result
    }

    async fn read_message_enforcing_limits(&mut self) -> Result<MessageFromWorker, WorkerProcessError> {
        loop {
            while let Some(message) = MessageFromWorker::take_message_from_buffer(&mut self.receive_buffer)? {
                self.last_message_at = Some(Instant::now());
                match message {
                    MessageFromWorker::Heartbeat => {}
                    MessageFromWorker::Failed(failure) => {
                        return Err(WorkerProcessError::WorkerFailed(failure.sanitized()));
                    }
                    MessageFromWorker::Ended => return Err(WorkerProcessError::SourceEnded),
                    MessageFromWorker::Frame(frame) => {
                        self.last_frame_at = Some(Instant::now());
                        return Ok(MessageFromWorker::Frame(frame));
                    }
                    message => return Ok(message),
                }
            }
            let poll = self.next_health_check_at;
            tokio::select! {
                biased;
                read = self.reader.read_buf(&mut self.receive_buffer) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(self.wait_for_exit_error().await),
                },
                () = tokio::time::sleep_until(poll) => self.enforce_timeouts_and_memory_limit()?,
            }
        }
    }

    /// Checks timeouts and memory. Called after [`HEALTH_CHECK_INTERVAL`] without a read.
    fn enforce_timeouts_and_memory_limit(&mut self) -> Result<(), WorkerProcessError> {
        let now = Instant::now();
        self.next_health_check_at = now + HEALTH_CHECK_INTERVAL;
        let silent = match self.last_message_at {
            Some(last_message) => now - last_message >= HEARTBEAT_TIMEOUT,
            None => now - self.started_at >= FIRST_MESSAGE_TIMEOUT,
        };
        if silent {
            return Err(WorkerProcessError::Hung);
        }
        let is_alive = self
            .last_message_at
            .is_some_and(|last_message| now - last_message < HEARTBEAT_TIMEOUT / 2);
        if let Some(used) = self.child.id().and_then(resident_memory_bytes)
            && used > self.limits.memory_bytes()
        {
            return Err(WorkerProcessError::MemoryLimitExceeded {
                used: used >> 20,
                limit: self.limits.memory,
            });
        }
        let timeout_start = self
            .expected_silence
            .delay_timeout_start(self.last_frame_at.unwrap_or(self.frame_timeout_start));
        match self.last_frame_at {
            None if now >= timeout_start + self.limits.start_timeout() => {
                Err(WorkerProcessError::NoFirstFrame(self.limits.start_timeout()))
            }
            // A worker without heartbeats is not a stalled source: it is about to be reported as hung.
            Some(_) if now >= timeout_start + self.limits.stall_timeout() && is_alive => {
                Err(WorkerProcessError::Stalled(self.limits.stall_timeout()))
            }
            _ => Ok(()),
        }
    }

    /// Restarts the frame timeout: the input of the worker may pause, and no frame is due then.
    pub fn restart_frame_timeout(&mut self) {
        if let Some(frame) = &mut self.last_frame_at {
            *frame = Instant::now();
        } else {
            self.frame_timeout_start = Instant::now();
        }
    }

    async fn wait_for_exit_error(&mut self) -> WorkerProcessError {
        match tokio::time::timeout(GRACEFUL_STOP_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) if status.code() == Some(DYNAMIC_LINKER_ERROR_EXIT_CODE) => {
                self.missing_library_error(status).await
            }
            Ok(Ok(status)) => WorkerProcessError::Crashed(status),
            Ok(Err(error)) => WorkerProcessError::CannotStart(error),
            Err(_) => WorkerProcessError::Hung,
        }
    }

    /// The task that reads standard error may need a moment until it has found the name of the library.
    async fn missing_library_error(&self, status: ExitStatus) -> WorkerProcessError {
        for _ in 0..50 {
            match self.missing_library.get() {
                Some(library) => {
                    return WorkerProcessError::GStreamerNotInstalled {
                        library: library.clone(),
                    };
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        WorkerProcessError::Crashed(status)
    }

    /// Stops the worker gracefully, or kills it after [`GRACEFUL_STOP_TIMEOUT`]. Dropping it kills it.
    pub async fn stop(mut self) {
        let _ = self.command_sender.try_send(MessageToWorker::Stop);
        if tokio::time::timeout(GRACEFUL_STOP_TIMEOUT, self.child.wait())
            .await
            .is_err()
        {
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
/// A [`WorkerProcessError`] if the check itself fails.
pub async fn check_pipelines(
    programs: &WorkerExecutablesAndProcessSlots,
    jobs: Vec<(String, PipelineJob)>,
) -> Result<Vec<PipelineCheckResult>, WorkerProcessError> {
    let (mut command, mut ours) = set_socket_and_environment(pipeline_worker_command(&programs.pipeline_worker))
        .map_err(WorkerProcessError::CannotStart)?;
    let mut child = command.spawn().map_err(start_error)?;
    drop(command);
    let missing_library = Arc::new(OnceLock::new());
    let logging = child
        .stderr
        .take()
        .map(|stderr| tokio::spawn(log_stderr(stderr, child.id(), missing_library.clone())));
    let checking = async {
        let mut bytes = BytesMut::new();
        MessageToWorker::CheckPipelines(jobs).write(&mut bytes);
        // A worker that could not be loaded does not read it; the end of its output says so.
        let _ = ours.write_all(&bytes).await;
        let mut buffer = BytesMut::new();
        loop {
            while let Some(message) = MessageFromWorker::take_message_from_buffer(&mut buffer)? {
                if let MessageFromWorker::CheckResults(findings) = message {
                    return Ok(findings);
                }
            }
            if ours.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                let status = child.wait().await.map_err(WorkerProcessError::CannotStart)?;
                if let Some(logging) = logging {
                    let _ = logging.await;
                }
                return Err(match missing_library.get() {
                    Some(library) => WorkerProcessError::GStreamerNotInstalled {
                        library: library.clone(),
                    },
                    None => WorkerProcessError::Crashed(status),
                });
            }
        }
    };
    tokio::time::timeout(PIPELINE_CHECK_TIMEOUT, checking)
        .await
        .unwrap_or(Err(WorkerProcessError::Hung))
}

/// Exit status of the dynamic linker for a program that it cannot load.
const DYNAMIC_LINKER_ERROR_EXIT_CODE: i32 = 127;

fn start_error(error: io::Error) -> WorkerProcessError {
    match error.kind() {
        io::ErrorKind::NotFound => WorkerProcessError::WorkerNotInstalled,
        _ => WorkerProcessError::CannotStart(error),
    }
}

fn pipeline_worker_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg0(PIPELINE_WORKER_EXECUTABLE_NAME);
    command
}

fn demuxer_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg0("millstream").arg(DEMUXER_COMMAND);
    command
}

/// Returns the command and our end of the socket. Dropping the command closes the worker's end in this process.
fn set_socket_and_environment(mut command: Command) -> io::Result<(Command, UnixStream)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    command
        .env_clear()
        .envs(
            PASSED_ENV_VARIABLES
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

async fn write_queued_messages_to_worker(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<MessageToWorker>) {
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
async fn log_stderr(stderr: ChildStderr, id: Option<u32>, missing_library: Arc<OnceLock<String>>) {
    let mut reader = BufReader::new(stderr);
    for _ in 0..MAX_LOGGED_STDERR_LINES {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(MAX_LOGGED_STDERR_LINE_BYTES);
        match limited.read_until(b'\n', &mut line).await {
            Ok(1..) => {
                let text = wire::sanitize_worker_text(&String::from_utf8_lossy(&line));
                if let Some(library) = parse_missing_library(&text) {
                    let _ = missing_library.set(library.to_owned());
                }
                debug!(worker = id, text, "pipeline or demuxer worker wrote to standard error");
            }
            Ok(0) | Err(_) => return,
        }
    }
    // If nobody read the pipe, the worker would block on it.
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
}

/// Returns the library that the dynamic linker (ld.so(8)) did not find, if this line of its output says so.
fn parse_missing_library(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("error while loading shared libraries: ")?;
    rest.split(':').next()
}

/// Resident memory of a process in bytes.
fn resident_memory_bytes(id: u32) -> Option<u64> {
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
        assert_eq!(parse_missing_library(line), Some("libgstapp-1.0.so.0"));
        assert_eq!(parse_missing_library("libgstapp-1.0.so.0: something else"), None);
    }
}
