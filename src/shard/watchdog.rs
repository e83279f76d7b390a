//! Detects shards that have stopped ticking.
//!
//! A shard records the time of each tick, and ticks at least every [`MAX_WAIT`] even when idle. Health checks read these
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
pub const MAX_WAIT: Duration = Duration::from_millis(250);

/// Health checks fail when the last tick of a shard is older than this.
pub const UNHEALTHY_AFTER: Duration = Duration::from_secs(1);

/// The process ends when a shard has been stalled for this long: many times longer than a thread waits for a processor on
/// an overloaded machine.
pub const FATAL_AFTER: Duration = Duration::from_secs(10);

/// Interval at which the watchdog observes the shards.
const INTERVAL: Duration = Duration::from_millis(250);

/// Exit status of a process that ends because of a stalled shard: EX_SOFTWARE of sysexits.h.
pub const EXIT_STATUS: i32 = 70;

/// What a shard is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Waits for a datagram, a message or a timer.
    Waiting,
    Receiving,
    Messages,
    Datagrams,
    Timers,
    /// Publishes and sends the packets of the tick.
    Sending,
    /// The thread has ended or has not started.
    Stopped,
}

impl Phase {
    const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Receiving,
        Self::Messages,
        Self::Datagrams,
        Self::Timers,
        Self::Sending,
        Self::Stopped,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Receiving => "receiving",
            Self::Messages => "messages",
            Self::Datagrams => "datagrams",
            Self::Timers => "timers",
            Self::Sending => "sending",
            Self::Stopped => "stopped",
        }
    }
}

/// The last tick of one shard, written by its thread.
#[derive(Debug)]
struct Tick {
    /// Milliseconds since [`Ticks::epoch`].
    at: AtomicU64,
    count: AtomicU64,
    phase: AtomicU8,
    /// The kernel's id of the thread.
    thread: AtomicU32,
}

/// The last tick of each shard.
#[derive(Debug)]
pub struct Ticks {
    epoch: Instant,
    shards: Vec<Tick>,
}

/// A stalled shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    pub shard: ShardIndex,
    /// Time since the last tick.
    pub age: Duration,
    pub phase: Phase,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.age.as_secs_f64();
        let (shard, phase) = (self.shard.0, self.phase.label());
        write!(f, "shard {shard} has not ticked for {seconds:.1} s (phase: {phase})")
    }
}

impl Ticks {
    pub fn new(epoch: Instant, shards: usize) -> Self {
        let tick = || Tick {
            at: AtomicU64::new(0),
            count: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Stopped as u8),
            thread: AtomicU32::new(0),
        };
        Self {
            epoch,
            shards: (0..shards).map(|_| tick()).collect(),
        }
    }

    /// Called by the thread of a shard before its first tick, with the kernel's id of the thread.
    pub fn begin(&self, shard: ShardIndex, now: Instant, thread: u32) {
        if let Some(tick) = self.tick_of(shard) {
            tick.thread.store(thread, Ordering::Relaxed);
        }
        self.enter(shard, Phase::Waiting);
        self.tick(shard, now);
    }

    /// Called by a shard at the beginning of each tick.
    pub fn tick(&self, shard: ShardIndex, now: Instant) {
        if let Some(tick) = self.tick_of(shard) {
            tick.at.store(self.millis(now), Ordering::Relaxed);
            tick.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Called by a shard when it enters a phase.
    pub fn enter(&self, shard: ShardIndex, phase: Phase) {
        if let Some(tick) = self.tick_of(shard) {
            tick.phase.store(phase as u8, Ordering::Relaxed);
        }
    }

    /// Returns the time since the last tick of each shard; zero if its thread has ended.
    pub fn ages(&self, now: Instant) -> Vec<Duration> {
        let now = self.millis(now);
        let age = |tick: &Tick| match tick.phase() {
            Phase::Stopped => Duration::ZERO,
            _ => Duration::from_millis(now.saturating_sub(tick.at.load(Ordering::Relaxed))),
        };
        self.shards.iter().map(age).collect()
    }

    /// Returns the shard with the oldest last tick, if that is older than `limit`.
    pub fn stalled(&self, now: Instant, limit: Duration) -> Option<Stalled> {
        let ages = self.ages(now).into_iter().enumerate();
        let (index, age) = ages.max_by_key(|(_, age)| *age).filter(|(_, age)| *age > limit)?;
        let phase = self.shards.get(index)?.phase();
        let shard = ShardIndex(index as u16);
        Some(Stalled { shard, age, phase })
    }

    fn tick_of(&self, shard: ShardIndex) -> Option<&Tick> {
        self.shards.get(usize::from(shard.0))
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Tick {
    fn phase(&self) -> Phase {
        let value = usize::from(self.phase.load(Ordering::Relaxed));
        Phase::ALL.get(value).copied().unwrap_or(Phase::Stopped)
    }
}

/// Measures for how long shards have been stalled, in time during which the watching thread was running too: a suspended
/// process or machine does not count as stalled.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    last: Option<Instant>,
    /// Tick count and idle time of each shard.
    seen: Vec<(u64, Duration)>,
}

impl Watch {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: None,
            seen: Vec::new(),
        }
    }

    /// Observes the shards. Returns one that has been stalled for longer than the limit.
    fn observe(&mut self, now: Instant, ticks: &Ticks) -> Option<Stalled> {
        let passed = self
            .last
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let passed = passed.min(2 * INTERVAL);
        self.last = Some(now);
        self.seen.resize(ticks.shards.len(), (u64::MAX, Duration::ZERO));
        for (seen, tick) in self.seen.iter_mut().zip(&ticks.shards) {
            let count = tick.count.load(Ordering::Relaxed);
            let moved = count != seen.0 || tick.phase() == Phase::Stopped;
            *seen = (count, if moved { Duration::ZERO } else { seen.1 + passed });
        }
        let (index, (_, age)) = self.seen.iter().enumerate().max_by_key(|(_, (_, idle))| *idle)?;
        let phase = ticks.shards.get(index)?.phase();
        let shard = ShardIndex(index as u16);
        (*age >= self.limit).then_some(Stalled {
            shard,
            age: *age,
            phase,
        })
    }
}

/// The thread that watches the shards.
#[derive(Debug)]
pub struct Watchdog {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    /// Starts to watch the shards. When a shard has been stalled for `limit`, it is described in the log and `end` is called.
    ///
    /// # Errors
    ///
    /// The error of the operating system if the thread cannot be started.
    pub fn start(
        ticks: Arc<Ticks>,
        mailboxes: Vec<ShardMailbox>,
        limit: Duration,
        now: fn() -> Instant,
        end: fn(),
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let run = move || {
            let mut watch = Watch::new(limit);
            while stopped.recv_timeout(INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Some(stalled) = watch.observe(now(), &ticks) {
                    report(&stalled, &ticks, &mailboxes, now());
                    return end();
                }
            }
        };
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Stops the thread.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            error!("the watchdog panicked");
        }
    }
}

/// Logs the state of all shards, without waiting for any of them.
fn report(stalled: &Stalled, ticks: &Ticks, mailboxes: &[ShardMailbox], now: Instant) {
    for ((index, tick), age) in ticks.shards.iter().enumerate().zip(ticks.ages(now)) {
        let thread = tick.thread.load(Ordering::Relaxed);
        let phase = tick.phase().label();
        let queued = mailboxes.get(index).and_then(|mailbox| mailbox.try_waiting());
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
            "last phase of a stalled shard"
        );
    }
    let shard = stalled.shard.0;
    error!(
        shard,
        stalled_for = ?stalled.age,
        "a shard is stalled and its media has stopped: the process ends, to be restarted by its supervisor"
    );
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ticks(now: Instant) -> Ticks {
        let ticks = Ticks::new(now, 2);
        ticks.begin(ShardIndex(0), now, 1);
        ticks.begin(ShardIndex(1), now, 2);
        ticks
    }

    #[test]
    fn a_shard_without_a_tick_for_a_second_is_stalled_until_it_ticks() {
        let t = Instant::now();
        let ticks = ticks(t);
        ticks.tick(ShardIndex(0), t + SECOND);
        ticks.enter(ShardIndex(1), Phase::Messages);
        assert_eq!(ticks.stalled(t + SECOND, UNHEALTHY_AFTER), None);
        let stalled = ticks.stalled(t + 2 * SECOND, UNHEALTHY_AFTER).expect("shard 1 is late");
        assert_eq!((stalled.shard, stalled.phase), (ShardIndex(1), Phase::Messages));
        assert_eq!(
            stalled.to_string(),
            "shard 1 has not ticked for 2.0 s (phase: messages)"
        );
        ticks.tick(ShardIndex(1), t + 2 * SECOND);
        assert_eq!(ticks.stalled(t + 2 * SECOND, UNHEALTHY_AFTER), None);
    }

    #[test]
    fn a_shard_that_has_ended_is_not_stalled() {
        let t = Instant::now();
        let ticks = ticks(t);
        let mut watch = Watch::new(FATAL_AFTER);
        for shard in [0, 1] {
            ticks.enter(ShardIndex(shard), Phase::Stopped);
        }
        assert_eq!(ticks.stalled(t + 60 * SECOND, UNHEALTHY_AFTER), None);
        for step in 0..400 {
            assert_eq!(watch.observe(t + step * INTERVAL, &ticks), None);
        }
    }

    #[test]
    fn ten_seconds_of_standstill_are_fatal_and_nine_are_not() {
        let t = Instant::now();
        let ticks = ticks(t);
        let mut watch = Watch::new(FATAL_AFTER);
        for step in 0..41 {
            let now = t + step * INTERVAL;
            ticks.tick(ShardIndex(1), now);
            let stalled = watch.observe(now, &ticks);
            assert_eq!(
                stalled.map(|stalled| stalled.shard),
                (step == 40).then_some(ShardIndex(0)),
                "{step}"
            );
        }
        ticks.tick(ShardIndex(0), t + 11 * SECOND);
        assert_eq!(watch.observe(t + 11 * SECOND, &ticks), None, "it goes on");
    }

    #[test]
    fn a_process_that_was_suspended_goes_on() {
        let t = Instant::now();
        let ticks = ticks(t);
        let mut watch = Watch::new(FATAL_AFTER);
        assert_eq!(watch.observe(t, &ticks), None);
        // SIGSTOP for an hour: the watching thread happens to run before the shards do.
        for hour in 1..10 {
            let now = t + 3_600 * hour * SECOND;
            assert_eq!(watch.observe(now, &ticks), None);
            ticks.tick(ShardIndex(0), now);
            ticks.tick(ShardIndex(1), now);
        }
    }
}
