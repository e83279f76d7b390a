//! Log lines on their way to standard error: a bounded queue and a thread that writes.
//!
//! Who logs never waits for who reads the log (invariant 5). Lines that find the queue full are dropped and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

/// Lines and bytes that may wait. A start with debug output and a log reader that needs some seconds fit.
const MAX_LINES: usize = 16_384;
const MAX_BYTES: usize = 2 << 20;

/// How long [`LogQueue::flush`] waits for lines to be written.
const FLUSH: Duration = Duration::from_millis(1_500);

/// The queue of this process, once it logs.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Where log lines are left.
#[derive(Clone)]
pub struct LogQueue {
    lines: NonBlocking,
    state: Arc<State>,
}

struct State {
    /// Bytes that wait.
    waiting: AtomicUsize,
    dropped: AtomicU64,
    /// The thread that writes.
    worker: Mutex<Option<WorkerGuard>>,
}

/// Writes lines out, and notes that they no longer wait.
struct Drain<W> {
    output: W,
    state: Arc<State>,
}

impl LogQueue {
    /// Starts the thread that writes to `output`.
    pub fn start(output: impl Write + Send + 'static) -> Self {
        let state = Arc::new(State {
            waiting: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            worker: Mutex::new(None),
        });
        let drain = Drain {
            output,
            state: state.clone(),
        };
        let builder = NonBlockingBuilder::default().buffered_lines_limit(MAX_LINES);
        let (lines, worker) = builder.lossy(true).thread_name("log").finish(drain);
        *state.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
        Self { lines, state }
    }

    /// Makes this the queue of the process: see [`flush`] and [`dropped_lines`].
    pub fn install(&self) {
        let _ = QUEUE.set(self.clone());
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed) + self.lines.error_counter().dropped_lines() as u64
    }

    /// Writes what waits, for [`FLUSH`] at most, and ends the thread that writes.
    pub fn flush(&self) {
        let worker = self.state.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(worker) = worker else { return };
        let (done, written) = mpsc::channel::<()>();
        // When nobody reads, dropping the worker may wait for as long as nobody does.
        let flush = move || {
            drop(worker);
            drop(done);
        };
        if std::thread::Builder::new()
            .name("log-flush".into())
            .spawn(flush)
            .is_ok()
        {
            let _ = written.recv_timeout(FLUSH);
        }
    }
}

/// Writes what waits, for a short time at most. What is logged after that is lost: for the end of the process.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush();
    }
}

/// Log lines of this process that were dropped because nobody read them in time.
pub fn dropped_lines() -> u64 {
    QUEUE.get().map_or(0, LogQueue::dropped)
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let waiting = self.state.waiting.fetch_add(line.len(), Ordering::AcqRel);
        let lost_before = self.lines.error_counter().dropped_lines();
        if waiting + line.len() > MAX_BYTES {
            self.state.waiting.fetch_sub(line.len(), Ordering::AcqRel);
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        let written = self.lines.write(line);
        if self.lines.error_counter().dropped_lines() > lost_before {
            // Full by lines. Several threads may see the same drop: then the bytes are counted a little low.
            self.state.subtract(line.len());
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl State {
    fn subtract(&self, bytes: usize) {
        let less = |waiting: usize| Some(waiting.saturating_sub(bytes));
        let _ = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }
}

impl<W: Write> Write for Drain<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A reader that is gone is no reason to keep lines.
        let _ = self.output.write_all(line);
        self.state.subtract(line.len());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Standard error of a process whose log nobody reads, until the other end is dropped.
    struct Blocked(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Blocked {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn blocked() -> (LogQueue, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let ((release, held), (sender, written)) = (mpsc::channel(), mpsc::channel());
        (LogQueue::start(Blocked(held, sender)), release, written)
    }

    #[test]
    fn a_log_that_nobody_reads_keeps_a_bounded_number_of_bytes_and_counts_the_rest() {
        let (mut queue, release, written) = blocked();
        let line = [b'x'; 1_024];
        let lines = 3 * MAX_BYTES / line.len();
        for _ in 0..lines {
            queue.write_all(&line).expect("never fails");
        }
        let waiting = queue.state.waiting.load(Ordering::Relaxed);
        assert!(waiting <= MAX_BYTES, "{waiting}");
        assert!(
            queue.dropped() >= (lines - MAX_BYTES / line.len()) as u64,
            "{}",
            queue.dropped()
        );
        // Once it is read again, all that was kept comes, and there is room for more.
        drop(release);
        let kept = lines as u64 - queue.dropped();
        assert_eq!(written.iter().take(kept as usize).count() as u64, kept);
        queue.write_all(b"more").expect("never fails");
        assert_eq!(written.recv().expect("written"), b"more");
        queue.flush();
        assert_eq!(queue.state.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn short_lines_are_bounded_by_their_number() {
        let (mut queue, release, _written) = blocked();
        for _ in 0..2 * MAX_LINES {
            queue.write_all(b"x").expect("never fails");
        }
        // The one in the writer's hands is not in the queue.
        assert!(queue.dropped() >= MAX_LINES as u64 - 1, "{}", queue.dropped());
        assert!(queue.state.waiting.load(Ordering::Relaxed) <= MAX_LINES + 1);
        drop(release);
    }

    #[test]
    fn the_last_lines_are_written_before_the_end() {
        let (mut queue, release, written) = blocked();
        drop(release);
        for _ in 0..100 {
            queue.write_all(b"line").expect("never fails");
        }
        queue.flush();
        assert_eq!(written.try_iter().count(), 100);
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader() {
        let (mut queue, release, _written) = blocked();
        queue.write_all(b"line").expect("never fails");
        // Would wait for ever.
        queue.flush();
        drop(release);
    }
}
