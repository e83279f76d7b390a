//! Datagrams queued for one TCP connection, bounded in bytes and in time. A full queue drops whole datagrams, like a full
//! UDP socket. Writing fails when the peer does not read.

use std::array;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::timeout;

use millstream_core::hub::lock::{LockRank, RankedGuard, RankedMutex};

/// Maximum number of queued bytes including overhead: one second at 4 Mbit/s.
pub const MAX_TCP_QUEUED_BYTES: usize = 512 * 1024;

/// Datagrams are dropped while the first in the queue has waited for this long: a player would no longer use them.
const MAX_OLDEST_DATAGRAM_AGE_TO_ENQUEUE: Duration = Duration::from_secs(1);

/// Timeout of a write: the peer reads nothing.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Overhead of a queued run in bytes.
const DATAGRAM_RUN_OVERHEAD_BYTES: usize = 64;

/// Maximum number of runs per system call.
const MAX_DATAGRAM_RUNS_PER_WRITE: usize = 16;

/// Size of the length field before each datagram in bytes (RFC 4571 §2).
const LENGTH_FIELD_BYTES: usize = 2;

/// The queue of one connection. A shard adds datagrams, the task of the connection writes them.
#[derive(Debug)]
pub struct DatagramQueue {
    queued_runs: RankedMutex<QueuedDatagramRuns>,
    change_notify: Notify,
}

#[derive(Debug, Default)]
struct QueuedDatagramRuns {
    /// Framed datagrams, and when they were added.
    runs: VecDeque<(Instant, Bytes)>,
    total_bytes: usize,
    closed: bool,
}

impl Default for DatagramQueue {
    fn default() -> Self {
        Self {
            queued_runs: RankedMutex::new(LockRank::TcpWriteQueue, QueuedDatagramRuns::default()),
            change_notify: Notify::new(),
        }
    }
}

impl DatagramQueue {
    /// Adds datagrams of `segment` bytes, the last of which may be shorter, each after its length (RFC 4571 §2). Returns
    /// the number of datagrams added; the rest did not fit and is dropped.
    pub fn push_datagrams(&self, now: Instant, datagrams: &[u8], segment: usize) -> usize {
        let mut waiting = self.lock();
        let mut room = waiting
            .remaining_queue_capacity_bytes(now)
            .saturating_sub(DATAGRAM_RUN_OVERHEAD_BYTES);
        let fits = |datagram: &&[u8]| {
            let left = room.checked_sub(LENGTH_FIELD_BYTES + datagram.len());
            room = left.unwrap_or(room);
            left.is_some()
        };
        let segment = segment.max(1);
        let taken = datagrams.chunks(segment).take_while(fits).count();
        if taken == 0 {
            return 0;
        }
        let mut framed = BytesMut::with_capacity(datagrams.len().min(taken * segment) + LENGTH_FIELD_BYTES * taken);
        for datagram in datagrams.chunks(segment).take(taken) {
            framed.extend_from_slice(&(datagram.len() as u16).to_be_bytes());
            framed.extend_from_slice(datagram);
        }
        waiting.total_bytes += DATAGRAM_RUN_OVERHEAD_BYTES + framed.len();
        waiting.runs.push_back((now, framed.freeze()));
        drop(waiting);
        self.change_notify.notify_one();
        taken
    }

    /// Returns for how long the oldest datagram has waited.
    pub fn oldest_datagram_age(&self, now: Instant) -> Duration {
        let waiting = self.lock();
        let oldest = waiting.runs.front();
        oldest.map_or(Duration::ZERO, |(since, _)| now.saturating_duration_since(*since))
    }

    /// Closes the queue: nothing more is added, what is queued is still written.
    pub fn close(&self) {
        self.lock().closed = true;
        self.change_notify.notify_one();
    }

    /// Returns the number of queued bytes.
    pub fn queued_bytes(&self) -> usize {
        self.lock().total_bytes
    }

    /// Writes datagrams until the queue is closed and empty.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] if the peer reads nothing for [`WRITE_TIMEOUT`], or an error of the connection.
    pub async fn write_until_closed_and_empty<W: AsyncWrite + Unpin>(&self, writer: &mut W) -> io::Result<()> {
        loop {
            let changed = self.change_notify.notified();
            let (runs, closed) = self.peek_next_runs();
            let slices = runs.each_ref().map(|run| IoSlice::new(run));
            if slices.iter().all(|slice| slice.is_empty()) {
                if closed {
                    return writer.shutdown().await;
                }
                changed.await;
                continue;
            }
            let taken = timeout(WRITE_TIMEOUT, writer.write_vectored(&slices)).await??;
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.lock().remove_written(taken);
        }
    }

    fn peek_next_runs(&self) -> ([Bytes; MAX_DATAGRAM_RUNS_PER_WRITE], bool) {
        let waiting = self.lock();
        let mut runs = waiting.runs.iter().map(|(_, run)| run.clone());
        (array::from_fn(|_| runs.next().unwrap_or_default()), waiting.closed)
    }

    fn lock(&self) -> RankedGuard<'_, QueuedDatagramRuns> {
        self.queued_runs.lock()
    }
}

impl QueuedDatagramRuns {
    fn remaining_queue_capacity_bytes(&self, now: Instant) -> usize {
        let is_late =
            |(since, _): &(Instant, Bytes)| now.saturating_duration_since(*since) >= MAX_OLDEST_DATAGRAM_AGE_TO_ENQUEUE;
        if self.closed || self.runs.front().is_some_and(is_late) {
            return 0;
        }
        MAX_TCP_QUEUED_BYTES.saturating_sub(self.total_bytes)
    }

    /// Removes bytes that were written.
    fn remove_written(&mut self, mut written: usize) {
        while let Some((_, run)) = self.runs.front_mut() {
            let part = written.min(run.len());
            run.advance(part);
            self.total_bytes -= part;
            written -= part;
            if !run.is_empty() {
                break;
            }
            self.total_bytes -= DATAGRAM_RUN_OVERHEAD_BYTES;
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_full_queue_holds_half_a_mebibyte_and_takes_whole_datagrams() {
        let (queue, now) = (DatagramQueue::default(), Instant::now());
        let run = vec![7; 50 * 1_200];
        let taken: usize = (0..1_000).map(|_| queue.push_datagrams(now, &run, 1_200)).sum();
        let waiting = queue.lock();
        let framed: usize = waiting.runs.iter().map(|(_, run)| run.len()).sum();
        assert_eq!(framed, taken * (LENGTH_FIELD_BYTES + 1_200), "no half datagram");
        assert!(
            waiting.total_bytes <= MAX_TCP_QUEUED_BYTES && waiting.total_bytes + 1_300 > MAX_TCP_QUEUED_BYTES,
            "{}",
            waiting.total_bytes
        );
    }

    #[test]
    fn small_datagrams_count_their_overhead() {
        let (queue, now) = (DatagramQueue::default(), Instant::now());
        let taken: usize = (0..1_000_000).map(|_| queue.push_datagrams(now, &[1], 1)).sum();
        assert!(taken * DATAGRAM_RUN_OVERHEAD_BYTES < MAX_TCP_QUEUED_BYTES, "{taken}");
    }

    #[test]
    fn queue_refuses_datagrams_behind_stale_ones() {
        let (queue, now) = (DatagramQueue::default(), Instant::now());
        assert_eq!(queue.push_datagrams(now, &[1; 100], 50), 2);
        assert_eq!(queue.push_datagrams(now + SECOND / 2, &[1; 100], 50), 2);
        assert_eq!(queue.push_datagrams(now + SECOND, &[1; 100], 50), 0);
        // The first run has been written, the second waits for half a second only.
        queue.lock().remove_written(104);
        assert_eq!(queue.push_datagrams(now + SECOND, &[1; 100], 50), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_peer_that_reads_nothing_times_out() {
        for (bytes, is_given_up) in [(0, true), (1_000, false)] {
            let (mut ours, mut theirs) = duplex(4_096);
            let queue = Arc::new(DatagramQueue::default());
            queue.push_datagrams(Instant::now(), &[7; 500_000], 1_000);
            let whole = queue.queued_bytes();
            let reading = async {
                let mut buffer = vec![0; bytes];
                for _ in 0..60 {
                    tokio::time::sleep(SECOND).await;
                    let _ = theirs.read(&mut buffer).await;
                }
            };
            let begun = tokio::time::Instant::now();
            tokio::select! {
                ended = queue.write_until_closed_and_empty(&mut ours) => {
                    assert!(is_given_up, "{bytes} bytes a second: {ended:?}");
                    assert_eq!(ended.expect_err("given up").kind(), io::ErrorKind::TimedOut);
                    assert_eq!(begun.elapsed().as_secs(), WRITE_TIMEOUT.as_secs());
                }
                () = reading => assert!(!is_given_up, "{bytes} bytes a second"),
            }
            assert!(queue.queued_bytes() < whole, "some was written");
        }
    }

    #[tokio::test]
    async fn queued_datagrams_are_written_in_order_before_close() {
        let (mut ours, mut theirs) = duplex(100);
        let queue = DatagramQueue::default();
        let mut expected = Vec::new();
        for n in 0..100u8 {
            assert_eq!(queue.push_datagrams(Instant::now(), &[n; 250], 100), 3);
            for length in [100u8, 100, 50] {
                expected.extend([0, length]);
                expected.extend(vec![n; usize::from(length)]);
            }
        }
        queue.close();
        assert_eq!(queue.push_datagrams(Instant::now(), &[1], 1), 0);
        let mut read = Vec::new();
        let (written, seen) = tokio::join!(
            queue.write_until_closed_and_empty(&mut ours),
            theirs.read_to_end(&mut read)
        );
        assert!(written.is_ok() && seen.is_ok());
        assert_eq!(read, expected);
        assert_eq!(queue.queued_bytes(), 0);
    }
}
