//! The timers of a shard's peers.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use tracing::warn;

use super::ShardCore;
use super::peers::{PeerRole, PeerSlotIndex};
use super::viewers;
use crate::session::egress::Egress;

/// Minimum time until the next timer of a peer, so that each tick ends.
const MIN_TIMER_DELAY: Duration = Duration::from_micros(200);

impl ShardCore {
    /// Handles the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(Reverse((at, key))) = self.peer_timers.peek().copied() {
            if at > now {
                break;
            }
            self.peer_timers.pop();
            match self.peers.get(key) {
                Some(peer) if peer.next_timer_at == Some(at) => peer.next_timer_at = None,
                _ => continue,
            }
            self.run_peer_timer(now, key);
        }
    }

    pub(super) fn run_peer_timer(&mut self, now: Instant, key: PeerSlotIndex) {
        let ntp = self.shared.ntp_timestamp(now);
        let Some(peer) = self.peers.get(key) else { return };
        peer.session.handle_timeout(now);
        if peer.destination.is_some() {
            let mut egress = Egress::new(&mut peer.session, peer.destination, &mut self.outbox);
            match &mut peer.role {
                PeerRole::Publisher(publisher) => {
                    if publisher.take_no_media_warning(now) {
                        let why =
                            "the publisher is connected but sends no packet of a negotiated format: check its encoder";
                        warn!(session = ?peer.session_id, stream = %publisher.stream_key(), why, "publisher is connected, but no usable media packet has arrived from it");
                    }
                    for feedback in publisher.handle_timeout(now) {
                        egress.send_rtcp(&feedback);
                    }
                    if publisher.has_packets_to_publish() && !std::mem::replace(&mut peer.has_unpublished_packets, true)
                    {
                        self.publishers_with_pending_packets.push(key);
                    }
                }
                PeerRole::Viewer(viewer) => {
                    viewers::report_tcp_delay_to_viewer(now, viewer, peer.destination, &*self.shared.tcp_connections);
                    viewer.handle_timeout(now, ntp, &mut egress);
                }
            }
        }
        self.drain_peer_outputs_and_reschedule(now, key, None);
    }

    /// Returns when [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peer_timers.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn reschedule_timer(&mut self, now: Instant, key: PeerSlotIndex) {
        let Some(peer) = self.peers.get(key) else { return };
        let role = match &peer.role {
            _ if peer.connected_at.is_none() => None,
            PeerRole::Publisher(publisher) => publisher.poll_timeout(now),
            PeerRole::Viewer(viewer) => viewer.poll_timeout(),
        };
        let due = [peer.session.poll_timeout(), role].into_iter().flatten().min();
        if let Some(due) = due.map(|due| due.max(now + MIN_TIMER_DELAY))
            && peer.next_timer_at.is_none_or(|scheduled| due < scheduled)
        {
            peer.next_timer_at = Some(due);
            self.peer_timers.push(Reverse((due, key)));
        }
    }
}
