//! The thread of one shard: waits for datagrams, messages and timers, and passes them to [`Core`].

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use rand::RngCore as _;
use tracing::{debug, error, info};

use super::clock::now;
use super::socket::{self, Receiver, Sender, UdpPort, Waker};
use super::tcp::{PeerSink, TcpConnections};
use super::watchdog::{self, Phase, Ticks};
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::stream::ShardIndex;
use millstream_core::session::outbox::Outbox;
use millstream_core::shard::message::Message;
use millstream_core::shard::{Core, Shared};

/// What the thread of one shard runs on.
pub(super) struct Runner {
    pub(super) index: ShardIndex,
    pub(super) port: Arc<UdpPort>,
    pub(super) waker: Waker,
    pub(super) shared: Arc<Shared>,
    pub(super) ticks: Arc<Ticks>,
}

/// Called by the watchdog when a shard has stopped ticking.
pub(super) fn end_process() {
    crate::telemetry::flush();
    std::process::exit(watchdog::EXIT_STATUS);
}

/// Maximum number of receive batches per tick, so that timers and messages are not delayed.
const BATCHES_PER_TICK: usize = 4;

impl Runner {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The error of the operating system if it cannot start a thread.
    pub(super) fn spawn(self, tcp: Arc<TcpConnections>) -> io::Result<JoinHandle<()>> {
        let counters = &self.shared.counters.sent;
        let sink = PeerSink {
            udp: Sender::new(self.port.clone(), counters.clone()),
            tcp,
            counters: counters.clone(),
        };
        let random = Box::new(|| rand::rng().next_u32());
        let core = Core::new(self.index, self.shared.clone(), Outbox::new(Box::new(sink)), random);
        std::thread::Builder::new()
            .name(format!("shard-{}", self.index.0))
            .spawn(move || {
                self.ticks.begin(self.index, now(), socket::thread_id());
                self.run(core);
                self.ticks.enter(self.index, Phase::Stopped);
            })
    }

    fn run(&self, mut core: Core) {
        let mut receiver = Receiver::new();
        let mut messages = VecDeque::new();
        let Some(mailbox) = self.shared.mailbox(self.index) else {
            return;
        };
        info!(shard = self.index.0, "shard started");
        while !core.is_done() {
            self.wait(&core);
            for _ in 0..BATCHES_PER_TICK {
                self.enter(Phase::Receiving);
                let count = receiver.receive(&self.port).unwrap_or_else(|error| {
                    // An ICMP error of an earlier send; the socket remains usable.
                    debug!(%error, "receive failed");
                    0
                });
                // Messages are handled after receiving and before the datagrams: a session or a route that was announced
                // before its first datagram was sent is known when that datagram is handled.
                self.enter(Phase::Messages);
                self.contain("messages", &mut core, |core| {
                    handle_messages(core, mailbox, &mut messages);
                });
                messages.clear();
                if count == 0 {
                    break;
                }
                self.handle_datagrams(&mut core, &mut receiver, count);
            }
            self.finish_tick(&mut core);
        }
        info!(shard = self.index.0, "shard stopped");
    }

    /// Waits for a datagram, a message or the next timer.
    fn wait(&self, core: &Core) {
        let due = core.poll_timeout().map(|at| at.saturating_duration_since(now()));
        let timeout = due.map_or(watchdog::MAX_WAIT, |due| due.min(watchdog::MAX_WAIT));
        self.enter(Phase::Waiting);
        socket::wait(&self.port, &self.waker, Some(timeout));
        self.ticks.tick(self.index, now());
    }

    fn handle_datagrams(&self, core: &mut Core, receiver: &mut Receiver, count: usize) {
        let (now, counters) = (now(), &self.shared.counters);
        counters.received_datagrams.fetch_add(count as u64, Ordering::Relaxed);
        self.enter(Phase::Datagrams);
        for datagram in receiver.datagrams() {
            let length = datagram.bytes.len() as u64;
            counters.received_bytes.fetch_add(length, Ordering::Relaxed);
            let from = datagram.from;
            let is_handled = self.contain("datagram", core, |core| {
                core.handle_datagram(now, from, datagram.to, datagram.bytes);
            });
            if !is_handled {
                self.contain("removal of a peer", core, |core| core.abandon(now, from));
            }
        }
    }

    fn finish_tick(&self, core: &mut Core) {
        let now = now();
        self.enter(Phase::Timers);
        self.contain("timers", core, |core| core.handle_timeout(now));
        self.enter(Phase::Sending);
        self.contain("end of tick", core, |core| core.finish_tick(now));
        if let Some(arrival) = core.take_oldest_arrival() {
            let took = super::clock::now().saturating_duration_since(arrival);
            self.shared.counters.forwarding.record(took);
        }
    }

    fn enter(&self, phase: Phase) {
        self.ticks.enter(self.index, phase);
    }

    /// Runs `work` on the shard and catches a panic, which is a bug in the gateway or a library. It must not end the
    /// sessions of all other peers of the shard. Returns whether `work` completed.
    fn contain<T>(&self, what: &str, subject: &mut T, work: impl FnOnce(&mut T)) -> bool {
        contain(self.index, what, subject, work)
    }
}

fn contain<T>(shard: ShardIndex, what: &str, subject: &mut T, work: impl FnOnce(&mut T)) -> bool {
    let completed = catch_unwind(AssertUnwindSafe(|| work(subject))).is_ok();
    if !completed {
        error!(shard = shard.0, what, "panic caught: the media thread continues");
    }
    completed
}

fn handle_messages(core: &mut Core, mailbox: &Mailbox<Message>, messages: &mut VecDeque<Message>) {
    let now = now();
    mailbox.take(messages);
    for message in messages.drain(..) {
        core.handle_message(now, message);
    }
    if mailbox.has_overflowed() {
        core.handle_overflow(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_and_reported() {
        let mut value = 1;
        assert!(contain(ShardIndex(0), "good work", &mut value, |value| *value += 1));
        assert!(!contain(ShardIndex(0), "bad work", &mut value, |_| panic!(
            "on purpose"
        )));
        assert_eq!(value, 2);
    }
}
