//! The thread of one shard: waits for datagrams, messages and timers, and passes them to [`ShardCore`].

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use rand::RngCore as _;
use tracing::{debug, error, info};

use super::clock::now;
use super::system_calls::process;
use super::system_calls::receiver::DatagramReceiver;
use super::system_calls::sender::DatagramSender;
use super::system_calls::socket::ShardSocket;
use super::system_calls::wait::{ShardWaker, wait_for_datagram_or_wake_up};
use super::tcp::{TcpConnections, UdpOrTcpSender};
use super::watchdog::{self, ShardPhase, ShardTicks};
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::stream::ShardIndex;
use millstream_core::session::outbox::Outbox;
use millstream_core::shard::message::ShardMessage;
use millstream_core::shard::{ShardCore, SharedState};

/// What the thread of one shard runs on.
pub(super) struct ShardRunner {
    pub(super) index: ShardIndex,
    pub(super) socket: Arc<ShardSocket>,
    pub(super) waker: ShardWaker,
    pub(super) shared: Arc<SharedState>,
    pub(super) shard_ticks: Arc<ShardTicks>,
}

/// Called by the watchdog when a shard has stopped ticking.
pub(super) fn exit_because_of_stall() {
    crate::telemetry::flush_and_stop_logging();
    std::process::exit(watchdog::STALL_EXIT_STATUS);
}

/// Maximum number of receive batches per tick, so that timers and messages are not delayed.
const MAX_RECEIVE_BATCHES_PER_TICK: usize = 4;

/// How much lower the nice value of a shard's thread is than that of the process.
const SHARD_NICE_REDUCTION: i32 = 10;

/// Gives the calling thread more weight when processors are short, as far as the system permits it (CAP_SYS_NICE or
/// RLIMIT_NICE). Without that shards run at the nice value of the process, which is below that of the control plane too.
fn raise_thread_priority() {
    // On Linux both calls are about the calling thread only.
    let Ok(nice) = rustix::process::getpriority_process(None) else {
        return;
    };
    if let Err(error) = rustix::process::setpriority_process(None, nice - SHARD_NICE_REDUCTION) {
        debug!(
            %error,
            "cannot raise the priority of a media thread (needs CAP_SYS_NICE or RLIMIT_NICE): it keeps that of the process"
        );
    }
}

impl ShardRunner {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The error of the operating system if it cannot start a thread.
    pub(super) fn spawn(self, tcp: Arc<TcpConnections>) -> io::Result<JoinHandle<()>> {
        let counters = &self.shared.counters.send_counters;
        let sink = UdpOrTcpSender {
            udp: DatagramSender::new(self.socket.clone(), counters.clone()),
            tcp,
            counters: counters.clone(),
        };
        let random = Box::new(|| rand::rng().next_u32());
        let core = ShardCore::new(self.index, self.shared.clone(), Outbox::new(Box::new(sink)), random);
        std::thread::Builder::new()
            .name(format!("shard-{}", self.index.0))
            .spawn(move || {
                raise_thread_priority();
                self.shard_ticks
                    .record_thread_start(self.index, now(), process::thread_id());
                self.run(core);
                self.shard_ticks.enter_phase(self.index, ShardPhase::Stopped);
            })
    }

    fn run(&self, mut core: ShardCore) {
        let mut receiver = DatagramReceiver::new();
        let mut messages = VecDeque::new();
        let Some(mailbox) = self.shared.mailbox(self.index) else {
            return;
        };
        info!(shard = self.index.0, "media thread (shard) started");
        while !core.is_done() {
            self.wait_for_work(&core);
            for _ in 0..MAX_RECEIVE_BATCHES_PER_TICK {
                self.enter_phase(ShardPhase::Receiving);
                let count = receiver.receive(&self.socket).unwrap_or_else(|error| {
                    // An ICMP error of an earlier send; the socket remains usable.
                    debug!(%error, "receiving from the UDP media port failed; the media thread (shard) keeps receiving");
                    0
                });
                // Messages are handled after receiving and before the datagrams: a session or a route that was announced
                // before its first datagram was sent is known when that datagram is handled.
                self.enter_phase(ShardPhase::HandlingMailbox);
                self.catch_and_log_panic("messages", &mut core, |core| {
                    handle_mailbox_messages(core, mailbox, &mut messages);
                });
                messages.clear();
                if count == 0 {
                    break;
                }
                self.handle_received_datagrams(&mut core, &mut receiver, count);
            }
            self.finish_tick(&mut core);
        }
        info!(shard = self.index.0, "media thread (shard) stopped for shutdown");
    }

    /// Waits for a datagram, a message or the next timer.
    fn wait_for_work(&self, core: &ShardCore) {
        let due = core.poll_timeout().map(|at| at.saturating_duration_since(now()));
        let timeout = due.map_or(watchdog::IDLE_TICK_INTERVAL, |due| {
            due.min(watchdog::IDLE_TICK_INTERVAL)
        });
        self.enter_phase(ShardPhase::Waiting);
        wait_for_datagram_or_wake_up(&self.socket, &self.waker, Some(timeout));
        self.shard_ticks.record_tick(self.index, now());
    }

    fn handle_received_datagrams(&self, core: &mut ShardCore, receiver: &mut DatagramReceiver, count: usize) {
        let (now, counters) = (now(), &self.shared.counters);
        counters.received_datagrams.fetch_add(count as u64, Ordering::Relaxed);
        self.enter_phase(ShardPhase::HandlingDatagrams);
        for datagram in receiver.datagrams() {
            let length = datagram.bytes.len() as u64;
            counters.received_bytes.fetch_add(length, Ordering::Relaxed);
            let from = datagram.peer_address;
            let is_handled = self.catch_and_log_panic("datagram", core, |core| {
                core.handle_datagram(now, from, datagram.local_ip, datagram.bytes);
            });
            if !is_handled {
                self.catch_and_log_panic("removal of a peer", core, |core| {
                    core.remove_peer_after_panic(now, from)
                });
            }
        }
    }

    fn finish_tick(&self, core: &mut ShardCore) {
        let now = now();
        self.enter_phase(ShardPhase::HandlingTimers);
        self.catch_and_log_panic("timers", core, |core| core.handle_timeout(now));
        self.enter_phase(ShardPhase::Sending);
        self.catch_and_log_panic("end of tick", core, |core| {
            core.publish_pending_packets(now);
            core.send_datagrams(super::clock::now());
        });
        if let Some(took) = core.record_sending_of_tick(now, super::clock::now()) {
            self.shared.counters.forwarding_delay.record(took);
        }
    }

    fn enter_phase(&self, phase: ShardPhase) {
        self.shard_ticks.enter_phase(self.index, phase);
    }

    /// Runs `work` on the shard and catches a panic, which is a bug in the gateway or a library. It must not end the
    /// sessions of all other peers of the shard. Returns whether `work` completed.
    fn catch_and_log_panic<T>(&self, what: &str, subject: &mut T, work: impl FnOnce(&mut T)) -> bool {
        catch_and_log_panic(self.index, what, subject, work)
    }
}

fn catch_and_log_panic<T>(shard: ShardIndex, what: &str, subject: &mut T, work: impl FnOnce(&mut T)) -> bool {
    let completed = catch_unwind(AssertUnwindSafe(|| work(subject))).is_ok();
    if !completed {
        error!(
            shard = shard.0,
            what, "panic caught in a media thread (shard), which is a bug in the gateway: the thread continues"
        );
    }
    completed
}

fn handle_mailbox_messages(
    core: &mut ShardCore,
    mailbox: &Mailbox<ShardMessage>,
    messages: &mut VecDeque<ShardMessage>,
) {
    let now = now();
    mailbox.take_all_messages(messages);
    for message in messages.drain(..) {
        core.handle_message(now, message);
    }
    if mailbox.take_overflow_flag() {
        core.catch_up_viewers_after_mailbox_overflow(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_and_reported() {
        let mut value = 1;
        assert!(catch_and_log_panic(ShardIndex(0), "good work", &mut value, |value| {
            *value += 1
        }));
        assert!(!catch_and_log_panic(ShardIndex(0), "bad work", &mut value, |_| panic!(
            "on purpose"
        )));
        assert_eq!(value, 2);
    }
}
