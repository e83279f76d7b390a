//! Detects shards that have stopped ticking.
//!
//! A shard records the time of each tick, and ticks at least every [`IDLE_TICK_INTERVAL`] even when idle. Health checks read these
//! times. A separate thread ends the process when a shard stays stalled: the media of all its peers has stopped, and only a
//! restart recovers it. A supervisor (systemd, a container runtime) restarts the process.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::error;

use millstream_core::hub::stream::ShardIndex;
use millstream_core::shard::message::ShardMailbox;

/// Maximum time for which a shard waits for a datagram or a message, so that an idle shard ticks too.
pub const IDLE_TICK_INTERVAL: Duration = Duration::from_millis(250);

/// Health checks fail when the last tick of a shard is older than this.
pub const UNHEALTHY_STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The process ends when a shard has been stalled for this long: many times longer than a thread waits for a processor on
/// an overloaded machine.
pub const FATAL_STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval at which the watchdog observes the shards.
const WATCHDOG_INTERVAL: Duration = Duration::from_millis(250);

/// Exit status of a process that ends because of a stalled shard: EX_SOFTWARE of sysexits.h.
pub const STALL_EXIT_STATUS: i32 = 70;

/// What a shard is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ShardPhase {
    /// Waits for a datagram, a message or a timer.
    Waiting,
    Receiving,
    HandlingMailbox,
    HandlingDatagrams,
    HandlingTimers,
    /// Publishes and sends the packets of the tick.
    Sending,
    /// The thread has ended or has not started.
    Stopped,
}

impl ShardPhase {
    const ALL_PHASES: [Self; 7] = [
        Self::Waiting,
        Self::Receiving,
        Self::HandlingMailbox,
        Self::HandlingDatagrams,
        Self::HandlingTimers,
        Self::Sending,
        Self::Stopped,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Receiving => "receiving",
            Self::HandlingMailbox => "messages",
            Self::HandlingDatagrams => "datagrams",
            Self::HandlingTimers => "timers",
            Self::Sending => "sending",
            Self::Stopped => "stopped",
        }
    }
}

/// The last tick of one shard, written by its thread.
#[derive(Debug)]
struct ShardProgress {
    /// Milliseconds since [`ShardTicks::epoch`].
    at_millis: AtomicU64,
    tick_count: AtomicU64,
    phase: AtomicU8,
    /// The kernel's id of the thread.
    thread_id: AtomicU32,
}

/// The last tick of each shard.
#[derive(Debug)]
pub struct ShardTicks {
    epoch: Instant,
    last_ticks: Vec<ShardProgress>,
}

/// A stalled shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StalledShard {
    pub shard: ShardIndex,
    /// Time since the last tick.
    pub stalled_for: Duration,
    pub phase: ShardPhase,
}

impl fmt::Display for StalledShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.stalled_for.as_secs_f64();
        let (shard, phase) = (self.shard.0, self.phase.label());
        write!(
            f,
            "media thread (shard) {shard} has not run its event loop for {seconds:.1} s (phase: {phase})"
        )
    }
}

impl ShardTicks {
    pub fn new(epoch: Instant, shards: usize) -> Self {
        let tick = || ShardProgress {
            at_millis: AtomicU64::new(0),
            tick_count: AtomicU64::new(0),
            phase: AtomicU8::new(ShardPhase::Stopped as u8),
            thread_id: AtomicU32::new(0),
        };
        Self {
            epoch,
            last_ticks: (0..shards).map(|_| tick()).collect(),
        }
    }

    /// Called by the thread of a shard before its first tick, with the kernel's id of the thread.
    pub fn record_thread_start(&self, shard: ShardIndex, now: Instant, thread: u32) {
        if let Some(tick) = self.progress_of_shard(shard) {
            tick.thread_id.store(thread, Ordering::Relaxed);
        }
        self.enter_phase(shard, ShardPhase::Waiting);
        self.record_tick(shard, now);
    }

    /// Called by a shard at the beginning of each tick.
    pub fn record_tick(&self, shard: ShardIndex, now: Instant) {
        if let Some(tick) = self.progress_of_shard(shard) {
            tick.at_millis.store(self.millis_since_epoch(now), Ordering::Relaxed);
            tick.tick_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Called by a shard when it enters a phase.
    pub fn enter_phase(&self, shard: ShardIndex, phase: ShardPhase) {
        if let Some(tick) = self.progress_of_shard(shard) {
            tick.phase.store(phase as u8, Ordering::Relaxed);
        }
    }

    /// Returns the time since the last tick of each shard; zero if its thread has ended.
    pub fn times_since_last_tick(&self, now: Instant) -> Vec<Duration> {
        let now = self.millis_since_epoch(now);
        let age = |tick: &ShardProgress| match tick.current_phase() {
            ShardPhase::Stopped => Duration::ZERO,
            _ => Duration::from_millis(now.saturating_sub(tick.at_millis.load(Ordering::Relaxed))),
        };
        self.last_ticks.iter().map(age).collect()
    }

    /// Returns the shard with the oldest last tick, if that is older than `stall_limit`.
    pub fn find_stalled_shard(&self, now: Instant, limit: Duration) -> Option<StalledShard> {
        let ages = self.times_since_last_tick(now).into_iter().enumerate();
        let (index, age) = ages.max_by_key(|(_, age)| *age).filter(|(_, age)| *age > limit)?;
        let phase = self.last_ticks.get(index)?.current_phase();
        let shard = ShardIndex(index as u16);
        Some(StalledShard {
            shard,
            stalled_for: age,
            phase,
        })
    }

    fn progress_of_shard(&self, shard: ShardIndex) -> Option<&ShardProgress> {
        self.last_ticks.get(usize::from(shard.0))
    }

    fn millis_since_epoch(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl ShardProgress {
    fn current_phase(&self) -> ShardPhase {
        let value = usize::from(self.phase.load(Ordering::Relaxed));
        ShardPhase::ALL_PHASES
            .get(value)
            .copied()
            .unwrap_or(ShardPhase::Stopped)
    }
}

/// Measures for how long shards have been stalled, in time during which the watching thread was running too: a suspended
/// process or machine does not count as stalled.
#[derive(Debug)]
struct StallDetector {
    stall_limit: Duration,
    last_observed_at: Option<Instant>,
    /// Tick count and idle time of each shard.
    shard_stall_times: Vec<(u64, Duration)>,
}

impl StallDetector {
    fn new(limit: Duration) -> Self {
        Self {
            stall_limit: limit,
            last_observed_at: None,
            shard_stall_times: Vec::new(),
        }
    }

    /// Observes the shards. Returns one that has been stalled for longer than the limit.
    fn detect_stall(&mut self, now: Instant, ticks: &ShardTicks) -> Option<StalledShard> {
        let passed = self
            .last_observed_at
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let passed = passed.min(2 * WATCHDOG_INTERVAL);
        self.last_observed_at = Some(now);
        self.shard_stall_times
            .resize(ticks.last_ticks.len(), (u64::MAX, Duration::ZERO));
        for (seen, tick) in self.shard_stall_times.iter_mut().zip(&ticks.last_ticks) {
            let count = tick.tick_count.load(Ordering::Relaxed);
            let moved = count != seen.0 || tick.current_phase() == ShardPhase::Stopped;
            *seen = (count, if moved { Duration::ZERO } else { seen.1 + passed });
        }
        let (index, (_, age)) = self
            .shard_stall_times
            .iter()
            .enumerate()
            .max_by_key(|(_, (_, idle))| *idle)?;
        let phase = ticks.last_ticks.get(index)?.current_phase();
        let shard = ShardIndex(index as u16);
        (*age >= self.stall_limit).then_some(StalledShard {
            shard,
            stalled_for: *age,
            phase,
        })
    }
}

/// The thread that watches the shards.
#[derive(Debug)]
pub struct Watchdog {
    stop_sender: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    /// Starts to watch the shards. When a shard has been stalled for `stall_limit`, it is described in the log and `end` is called.
    ///
    /// # Errors
    ///
    /// The error of the operating system if the thread cannot be started.
    pub fn start(
        ticks: Arc<ShardTicks>,
        mailboxes: Vec<ShardMailbox>,
        limit: Duration,
        now: fn() -> Instant,
        on_stall: fn(),
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let run = move || {
            let mut watch = StallDetector::new(limit);
            while stopped.recv_timeout(WATCHDOG_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Some(stalled) = watch.detect_stall(now(), &ticks) {
                    log_shard_states(&stalled, &ticks, &mailboxes, now());
                    return on_stall();
                }
            }
        };
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(run)?;
        Ok(Self {
            stop_sender: stop,
            thread,
        })
    }

    /// Stops the thread.
    pub fn stop(self) {
        drop(self.stop_sender);
        if self.thread.join().is_err() {
            error!("the watchdog of the media threads (shards) panicked");
        }
    }
}

/// Logs the state of all shards, without waiting for any of them.
fn log_shard_states(stalled: &StalledShard, ticks: &ShardTicks, mailboxes: &[ShardMailbox], now: Instant) {
    for ((index, tick), age) in ticks
        .last_ticks
        .iter()
        .enumerate()
        .zip(ticks.times_since_last_tick(now))
    {
        let thread = tick.thread_id.load(Ordering::Relaxed);
        let phase = tick.current_phase().label();
        let queued = mailboxes.get(index).and_then(|mailbox| mailbox.try_queued_count());
        let queued = queued.map_or_else(|| "locked".into(), |count| count.to_string());
        let kernel = |file: &str| {
            let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/{file}")).unwrap_or_default();
            text.trim().to_owned()
        };
        let (wchan, syscall) = (kernel("wchan"), kernel("syscall"));
        error!(
            shard = index,
            ?age,
            phase,
            queued,
            thread,
            wchan,
            syscall,
            "state of a media thread (shard) at the time of a stall"
        );
    }
    let shard = stalled.shard.0;
    error!(
        shard,
        stalled_for = ?stalled.stalled_for,
        "media forwarding stopped because a media thread (shard) is stalled: the gateway exits, to be restarted by its \
         process supervisor"
    );
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn two_shard_ticks(now: Instant) -> ShardTicks {
        let ticks = ShardTicks::new(now, 2);
        ticks.record_thread_start(ShardIndex(0), now, 1);
        ticks.record_thread_start(ShardIndex(1), now, 2);
        ticks
    }

    #[test]
    fn a_shard_without_a_tick_for_a_second_is_stalled_until_it_ticks() {
        let t = Instant::now();
        let ticks = two_shard_ticks(t);
        ticks.record_tick(ShardIndex(0), t + SECOND);
        ticks.enter_phase(ShardIndex(1), ShardPhase::HandlingMailbox);
        assert_eq!(ticks.find_stalled_shard(t + SECOND, UNHEALTHY_STALL_TIMEOUT), None);
        let stalled = ticks
            .find_stalled_shard(t + 2 * SECOND, UNHEALTHY_STALL_TIMEOUT)
            .expect("shard 1 is late");
        assert_eq!(
            (stalled.shard, stalled.phase),
            (ShardIndex(1), ShardPhase::HandlingMailbox)
        );
        assert_eq!(
            stalled.to_string(),
            "media thread (shard) 1 has not run its event loop for 2.0 s (phase: messages)"
        );
        ticks.record_tick(ShardIndex(1), t + 2 * SECOND);
        assert_eq!(ticks.find_stalled_shard(t + 2 * SECOND, UNHEALTHY_STALL_TIMEOUT), None);
    }

    #[test]
    fn a_shard_that_has_ended_is_not_stalled() {
        let t = Instant::now();
        let ticks = two_shard_ticks(t);
        let mut watch = StallDetector::new(FATAL_STALL_TIMEOUT);
        for shard in [0, 1] {
            ticks.enter_phase(ShardIndex(shard), ShardPhase::Stopped);
        }
        assert_eq!(ticks.find_stalled_shard(t + 60 * SECOND, UNHEALTHY_STALL_TIMEOUT), None);
        for step in 0..400 {
            assert_eq!(watch.detect_stall(t + step * WATCHDOG_INTERVAL, &ticks), None);
        }
    }

    #[test]
    fn ten_seconds_of_standstill_are_fatal_and_nine_are_not() {
        let t = Instant::now();
        let ticks = two_shard_ticks(t);
        let mut watch = StallDetector::new(FATAL_STALL_TIMEOUT);
        for step in 0..41 {
            let now = t + step * WATCHDOG_INTERVAL;
            ticks.record_tick(ShardIndex(1), now);
            let stalled = watch.detect_stall(now, &ticks);
            assert_eq!(
                stalled.map(|stalled| stalled.shard),
                (step == 40).then_some(ShardIndex(0)),
                "{step}"
            );
        }
        ticks.record_tick(ShardIndex(0), t + 11 * SECOND);
        assert_eq!(watch.detect_stall(t + 11 * SECOND, &ticks), None, "it goes on");
    }

    #[test]
    fn suspended_process_is_not_treated_as_stalled() {
        let t = Instant::now();
        let ticks = two_shard_ticks(t);
        let mut watch = StallDetector::new(FATAL_STALL_TIMEOUT);
        assert_eq!(watch.detect_stall(t, &ticks), None);
        // SIGSTOP for an hour: the watching thread happens to run before the shards do.
        for hour in 1..10 {
            let now = t + 3_600 * hour * SECOND;
            assert_eq!(watch.detect_stall(now, &ticks), None);
            ticks.record_tick(ShardIndex(0), now);
            ticks.record_tick(ShardIndex(1), now);
        }
    }
}
