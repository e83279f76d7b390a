//! The gateway's side of one worker process: it starts the worker with a socket, supervises its heartbeats, frames and
//! memory, and kills it if necessary. A crash of the worker is only an error here.

use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::description::WorkerLimits;
use super::expected_silence::ExpectedSilence;
use super::worker_command::{demuxer_command, pipeline_worker_command, set_socket_and_environment};
use super::worker_error::{HEARTBEAT_TIMEOUT, start_error};
use super::worker_executables::WorkerExecutablesAndProcessSlots;
use super::worker_slots::WorkerSlot;
use super::worker_stderr::log_stderr;
use millstream_worker_runtime::wire::{
    DemuxJob, MessageFromWorker, MessageToWorker, PipelineJob, SegmentChunk, WireFrame,
};

pub use super::worker_error::WorkerProcessError;

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

/// Sends segment chunks to a worker.
#[derive(Clone, Debug)]
pub struct SegmentChunkSender(mpsc::Sender<MessageToWorker>);

impl SegmentChunkSender {
    /// Waits until there is room for a chunk and enqueues it; returns `false` if the worker is gone.
    pub async fn send(&self, chunk: SegmentChunk) -> bool {
        self.0.send(MessageToWorker::SegmentChunk(chunk)).await.is_ok()
    }
}

/// Maximum time until the first message: the program is read from disk, and plugins are loaded.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time between two checks of a worker's memory and timeouts.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum number of commands and frames queued for a worker. A frame that finds no room is dropped.
const MAX_QUEUED_WORKER_MESSAGES: usize = 256;

/// How long a worker may take to stop gracefully, for example to close its session with a camera.
const GRACEFUL_STOP_TIMEOUT: Duration = Duration::from_millis(500);

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

/// Exit status of the dynamic linker for a program that it cannot load.
const DYNAMIC_LINKER_ERROR_EXIT_CODE: i32 = 127;

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

/// Resident memory of a process in bytes.
fn resident_memory_bytes(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
