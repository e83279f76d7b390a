//! One worker process, as the gateway sees it: started with a socket, watched for signs of life, frames and memory, and
//! ended with everything that it holds. Its crash is an error here and nothing more.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use super::wire::{self, DemuxJob, Failure, Finding, FromWorker, Job, SegmentChunk, ToWorker, WireError, WireFrame};

/// A worker that runs.
pub struct Process {
    _counted: ProcessCount,
    child: Child,
    reader: OwnedReadHalf,
    buffer: BytesMut,
    commands: mpsc::Sender<ToWorker>,
    limits: Limits,
    started: Instant,
    /// Since when a first frame is due.
    begun: Instant,
    /// The last sign of life; `None` before the first.
    heard: Option<Instant>,
    /// When the last frame came; `None` before the first.
    frame: Option<Instant>,
    next_look: Instant,
}

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Worker processes of this gateway.
pub fn running() -> usize {
    RUNNING.load(Ordering::Relaxed)
}

/// One of them, for as long as it lives.
struct ProcessCount;

impl ProcessCount {
    fn new() -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for ProcessCount {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a worker is gone, or has to go.
#[derive(Debug, Error)]
pub enum ProcessError {
    #[error("the worker cannot be started: {0}")]
    Start(io::Error),
    #[error("the worker crashed ({0})")]
    Crashed(std::process::ExitStatus),
    #[error("the worker hung: no sign of life for {} ms", ALIVE_LIMIT.as_millis())]
    Hung,
    #[error("the worker took {used} MiB of memory, its limit is {limit} MiB")]
    Memory { used: u64, limit: u32 },
    #[error("no frame came within {0:?} of the start")]
    NothingCame(Duration),
    #[error("no frame came for {0:?}")]
    Stalled(Duration),
    #[error("the worker said what cannot be read: {0}")]
    Wire(#[from] WireError),
    #[error("{}", explain(.0))]
    Failed(Failure),
    #[error("the source ended")]
    Ended,
}

/// Gives pieces of segments to a worker.
#[derive(Clone, Debug)]
pub struct Feeder(mpsc::Sender<ToWorker>);

impl Feeder {
    /// Waits until there is room for a piece; `false` when the worker is gone.
    pub async fn give(&self, piece: SegmentChunk) -> bool {
        self.0.send(ToWorker::SegmentChunk(piece)).await.is_ok()
    }
}

/// A failure in words, with what to do about it.
pub fn explain(failure: &Failure) -> String {
    match failure {
        Failure::Missing(elements) => format!("{failure}; {}", packages::advice(elements)),
        failure => failure.to_string(),
    }
}

/// Signs of life come every 200 ms.
const ALIVE_LIMIT: Duration = Duration::from_millis(1_000);

/// Until the first sign of life: the program is read from disk, and plugins are loaded.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Between looks at the memory of a worker.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Commands and frames that may wait for a worker. A frame that finds no room is dropped.
const QUEUE: usize = 256;

/// How long a worker may take to end in good order: to say goodbye to a camera, for example.
const GRACE: Duration = Duration::from_millis(500);

/// Checking all pipelines loads all their plugins, and on the first run looks at every plugin that is installed.
const CHECK_LIMIT: Duration = Duration::from_secs(120);

/// Lines that a worker may write for the log, each so long at most.
const MAX_LINES: usize = 200;
const MAX_LINE: u64 = 500;

/// Variables that a worker gets. Everything else, tokens and proxies among it, is kept from it.
const VARIABLES: [&str; 12] = [
    "PATH",
    "HOME",
    "LANG",
    "XDG_CACHE_HOME",
    "GST_REGISTRY",
    "GST_PLUGIN_PATH",
    "GST_PLUGIN_SYSTEM_PATH",
    // Where these are set, GStreamer looks at them alone.
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
    /// [`ProcessError::Start`].
    pub fn start(program: &Path, job: Job, limits: Limits) -> Result<Self, ProcessError> {
        Self::begin(program, ToWorker::Run(job), limits)
    }

    /// Starts a worker that takes segments apart.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Start`].
    pub fn start_demuxer(program: &Path, job: DemuxJob, limits: Limits) -> Result<Self, ProcessError> {
        Self::begin(program, ToWorker::Demux(job), limits)
    }

    fn begin(program: &Path, first: ToWorker, limits: Limits) -> Result<Self, ProcessError> {
        let (mut command, ours) = prepare(program).map_err(ProcessError::Start)?;
        // Its libraries must not start programs, nor write what they know of the plugins.
        command.env("GST_REGISTRY_FORK", "no").env("GST_REGISTRY_UPDATE", "no");
        let mut child = command.spawn().map_err(ProcessError::Start)?;
        drop(command);
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log(stderr, child.id()));
        }
        let (reader, writer) = ours.into_split();
        let (commands, queue) = mpsc::channel(QUEUE);
        // There is room: nothing else was said.
        let _ = commands.try_send(first);
        tokio::spawn(write(writer, queue));
        let now = Instant::now();
        Ok(Self {
            _counted: ProcessCount::new(),
            child,
            reader,
            buffer: BytesMut::new(),
            commands,
            limits,
            started: now,
            begun: now,
            heard: None,
            frame: None,
            next_look: now + POLL_INTERVAL,
        })
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Gives it a frame; `false` if there is no room, and the frame is lost.
    pub fn give(&self, frame: WireFrame) -> bool {
        self.commands.try_send(ToWorker::Frame(frame)).is_ok()
    }

    /// Where pieces of segments go in.
    pub fn feeder(&self) -> Feeder {
        Feeder(self.commands.clone())
    }

    /// Asks its encoder for a key frame.
    pub fn request_key_frame_of_source(&self) {
        let _ = self.commands.try_send(ToWorker::KeyFrame);
    }

    /// The next message that is no sign of life. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    ///
    /// A [`ProcessError`]; the worker is of no use any more.
    pub async fn next(&mut self) -> Result<FromWorker, ProcessError> {
        let result = self.read().await;
        if let Err(ProcessError::Hung | ProcessError::Memory { .. } | ProcessError::Wire(_)) = result {
            // It will not end by itself, and what it holds is needed.
            let _ = self.child.start_kill();
        }
        result
    }

    async fn read(&mut self) -> Result<FromWorker, ProcessError> {
        loop {
            while let Some(message) = FromWorker::read(&mut self.buffer)? {
                self.heard = Some(Instant::now());
                match message {
                    FromWorker::Alive => {}
                    FromWorker::Failed(failure) => return Err(ProcessError::Failed(failure.shown())),
                    FromWorker::Ended => return Err(ProcessError::Ended),
                    FromWorker::Frame(frame) => {
                        self.frame = Some(Instant::now());
                        return Ok(FromWorker::Frame(frame));
                    }
                    message => return Ok(message),
                }
            }
            let poll = self.next_look;
            tokio::select! {
                biased;
                read = self.reader.read_buf(&mut self.buffer) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(self.how_it_ended().await),
                },
                () = tokio::time::sleep_until(poll) => self.poll()?,
            }
        }
    }

    /// Not to be called more often than signs of life come: nothing was read for that long.
    fn poll(&mut self) -> Result<(), ProcessError> {
        let now = Instant::now();
        self.next_look = now + POLL_INTERVAL;
        let silent = match self.heard {
            Some(heard) => now - heard >= ALIVE_LIMIT,
            None => now - self.started >= START_LIMIT,
        };
        if silent {
            return Err(ProcessError::Hung);
        }
        let is_alive = self.heard.is_some_and(|heard| now - heard < ALIVE_LIMIT / 2);
        if let Some(used) = self.child.id().and_then(resident)
            && used > self.limits.memory_bytes()
        {
            return Err(ProcessError::Memory {
                used: used >> 20,
                limit: self.limits.memory,
            });
        }
        match self.frame {
            None if now >= self.begun + self.limits.start_timeout() => {
                Err(ProcessError::NothingCame(self.limits.start_timeout()))
            }
            // One that gives no sign of life is no stalled source but about to be found hung.
            Some(frame) if now >= frame + self.limits.stall_timeout() && is_alive => {
                Err(ProcessError::Stalled(self.limits.stall_timeout()))
            }
            _ => Ok(()),
        }
    }

    /// What it is given may stop for a while: then no frame is due.
    pub fn expect_no_frame(&mut self) {
        if let Some(frame) = &mut self.frame {
            *frame = Instant::now();
        } else {
            self.begun = Instant::now();
        }
    }

    async fn how_it_ended(&mut self) -> ProcessError {
        match tokio::time::timeout(GRACE, self.child.wait()).await {
            Ok(Ok(status)) => ProcessError::Crashed(status),
            Ok(Err(error)) => ProcessError::Start(error),
            Err(_) => ProcessError::Hung,
        }
    }

    /// Ends it: in good order if it is quick, else by force. Dropping it does the latter.
    pub async fn stop(mut self) {
        let _ = self.commands.try_send(ToWorker::Stop);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends it by force; returns when it is gone.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }
}

/// Has a worker tell what the machine lacks for each of these.
///
/// # Errors
///
/// A [`ProcessError`] if it cannot tell.
pub async fn check(program: &Path, jobs: Vec<(String, Job)>) -> Result<Vec<Finding>, ProcessError> {
    let (mut command, mut ours) = prepare(program).map_err(ProcessError::Start)?;
    command.stderr(Stdio::null());
    let mut child = command.spawn().map_err(ProcessError::Start)?;
    drop(command);
    let checking = async {
        let mut bytes = BytesMut::new();
        ToWorker::Check(jobs).write(&mut bytes);
        ours.write_all(&bytes).await.map_err(ProcessError::Start)?;
        let mut buffer = BytesMut::new();
        loop {
            while let Some(message) = FromWorker::read(&mut buffer)? {
                if let FromWorker::Checked(findings) = message {
                    return Ok(findings);
                }
            }
            if ours.read_buf(&mut buffer).await.map_err(ProcessError::Start)? == 0 {
                let status = child.wait().await.map_err(ProcessError::Start)?;
                return Err(ProcessError::Crashed(status));
            }
        }
    };
    tokio::time::timeout(CHECK_LIMIT, checking)
        .await
        .unwrap_or(Err(ProcessError::Hung))
}

/// The program that is running: it is its own worker. This stays the same program when the file is replaced by another
/// version meanwhile.
pub fn own_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// The command, and our end of the socket. Dropping the command closes the other end here.
fn prepare(program: &Path) -> io::Result<(Command, UnixStream)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(program);
    command
        .arg("worker")
        .env_clear()
        .envs(
            VARIABLES
                .iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        // Arenas of memory for each thread would be most of a worker.
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

/// What a worker's libraries write goes to the log, within bounds.
async fn log(stderr: ChildStderr, id: Option<u32>) {
    let mut reader = BufReader::new(stderr);
    for _ in 0..MAX_LINES {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(MAX_LINE);
        match limited.read_until(b'\n', &mut line).await {
            Ok(1..) => debug!(
                worker = id,
                text = wire::shown(&String::from_utf8_lossy(&line)),
                "worker says"
            ),
            Ok(0) | Err(_) => return,
        }
    }
    // A pipe that nobody reads would stop the worker.
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
}

/// Resident memory of a process in bytes.
fn resident(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
