//! Replay protection of SRTP and SRTCP (RFC 3711 §3.3.2): which packets of which SSRC were received.
//!
//! A few SSRCs have a window each. Of those that are silent for a long time only the highest packet index is kept, so that
//! none of their packets is taken again; they may go on with newer ones.

use std::collections::{BTreeMap, HashMap};

use crate::media::Ssrc;
use crate::media::rtp::extend_seq;

/// What was received from one peer.
#[derive(Default)]
pub(super) struct ReplayProtection {
    windows: Vec<SsrcReplayWindow>,
    closed_windows: ClosedReplayWindows,
    /// Number of packets so far.
    accepted_packets: u64,
}

struct SsrcReplayWindow {
    ssrc: Ssrc,
    /// Number of the packet of this peer that was its last one.
    last_packet_number: u64,
    window: ReplayWindow,
}

/// Highest packet index of the SSRCs whose window was closed.
#[derive(Default)]
struct ClosedReplayWindows {
    highest: HashMap<Ssrc, (u64, u64)>,
    /// By the number of their last packet.
    by_last_packet: BTreeMap<u64, Ssrc>,
}

/// Maximum number of SSRCs of one peer with a window: three simulcast layers with their retransmissions, audio, and room
/// to spare. The window of the one that is silent for the longest time is closed then.
pub(super) const MAX_SSRC_WINDOWS: usize = 32;

/// Maximum number of SSRCs whose highest index is kept, in about 300 KiB. A publisher that changes its SSRC each second
/// reaches it after an hour.
const MAX_CLOSED_REPLAY_WINDOWS: usize = 1 << 12;

impl ReplayProtection {
    /// Returns the packet index that a sequence number stands for. The roll-over counter starts at zero (§3.3.1).
    pub(super) fn packet_index(&self, ssrc: Ssrc, seq: u16) -> u64 {
        match self.highest_index(ssrc) {
            Some(highest) => extend_seq(highest, seq),
            None => u64::from(seq),
        }
    }

    /// Whether a packet was not received before, as far as that is known.
    pub(super) fn is_new_packet(&self, ssrc: Ssrc, index: u64) -> bool {
        match self.find_replay_window(ssrc) {
            Some(known) => known.window.is_new(index),
            None => self
                .closed_windows
                .highest_index(ssrc)
                .is_none_or(|highest| index > highest),
        }
    }

    /// Records an authentic packet.
    pub(super) fn mark_received(&mut self, ssrc: Ssrc, index: u64) {
        self.accepted_packets += 1;
        let packets = self.accepted_packets;
        if let Some(known) = self.windows.iter_mut().find(|known| known.ssrc == ssrc) {
            known.window.mark_received(index);
            known.last_packet_number = packets;
            return;
        }
        if self.windows.len() >= MAX_SSRC_WINDOWS {
            let silent =
                (0..self.windows.len()).min_by_key(|at| self.windows.get(*at).map(|known| known.last_packet_number));
            if let Some(silent) = silent.map(|at| self.windows.swap_remove(at)) {
                self.closed_windows.add(&silent);
            }
        }
        let window = match self.closed_windows.take_highest_packet_index(ssrc) {
            // What is older was received, or is too old.
            Some(highest) => ReplayWindow::with_all_received_up_to(highest, index),
            None => ReplayWindow::starting_at_packet_index(index),
        };
        self.windows.push(SsrcReplayWindow {
            ssrc,
            last_packet_number: packets,
            window,
        });
    }

    fn find_replay_window(&self, ssrc: Ssrc) -> Option<&SsrcReplayWindow> {
        self.windows.iter().find(|known| known.ssrc == ssrc)
    }

    fn highest_index(&self, ssrc: Ssrc) -> Option<u64> {
        let open = self.find_replay_window(ssrc).map(|known| known.window.highest);
        open.or_else(|| self.closed_windows.highest_index(ssrc))
    }
}

impl ClosedReplayWindows {
    fn highest_index(&self, ssrc: Ssrc) -> Option<u64> {
        self.highest.get(&ssrc).map(|(highest, _)| *highest)
    }

    fn add(&mut self, closed: &SsrcReplayWindow) {
        if self.highest.len() >= MAX_CLOSED_REPLAY_WINDOWS
            && let Some((_, oldest)) = self.by_last_packet.pop_first()
        {
            self.highest.remove(&oldest);
        }
        self.highest
            .insert(closed.ssrc, (closed.window.highest, closed.last_packet_number));
        self.by_last_packet.insert(closed.last_packet_number, closed.ssrc);
    }

    fn take_highest_packet_index(&mut self, ssrc: Ssrc) -> Option<u64> {
        let (highest, last_packet_number) = self.highest.remove(&ssrc)?;
        self.by_last_packet.remove(&last_packet_number);
        Some(highest)
    }
}

/// Records which of the last [`REPLAY_WINDOW_SIZE`] packet indices were received.
struct ReplayWindow {
    highest: u64,
    /// Bit `i % REPLAY_WINDOW_SIZE` represents index `i`.
    bits: [u64; REPLAY_WINDOW_SIZE as usize / 64],
}

/// OBS retransmits on the original SSRC and sequence number, up to seconds later. RFC 3711 requires at least 64.
const REPLAY_WINDOW_SIZE: u64 = 2_048;

impl ReplayWindow {
    fn starting_at_packet_index(index: u64) -> Self {
        let mut window = Self {
            highest: index,
            bits: [0; REPLAY_WINDOW_SIZE as usize / 64],
        };
        window.set_bit_to(index, true);
        window
    }

    /// A window in which everything up to `highest` counts as received, and `index` too.
    fn with_all_received_up_to(highest: u64, index: u64) -> Self {
        let mut window = Self {
            highest,
            bits: [u64::MAX; REPLAY_WINDOW_SIZE as usize / 64],
        };
        window.mark_received(index);
        window
    }

    fn is_new(&self, index: u64) -> bool {
        index > self.highest || (index + REPLAY_WINDOW_SIZE > self.highest && !self.is_bit_set(index))
    }

    fn mark_received(&mut self, index: u64) {
        if index > self.highest {
            let cleared = (index - self.highest).min(REPLAY_WINDOW_SIZE);
            for ahead in 1..=cleared {
                self.set_bit_to(index - cleared + ahead, false);
            }
            self.highest = index;
        }
        self.set_bit_to(index, true);
    }

    fn word_index_and_mask(index: u64) -> (usize, u64) {
        let bit = index % REPLAY_WINDOW_SIZE;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn is_bit_set(&self, index: u64) -> bool {
        let (word, mask) = Self::word_index_and_mask(index);
        self.bits.get(word).is_some_and(|bits| bits & mask != 0)
    }

    fn set_bit_to(&mut self, index: u64, value: bool) {
        let (word, mask) = Self::word_index_and_mask(index);
        if let Some(bits) = self.bits.get_mut(word) {
            if value { *bits |= mask } else { *bits &= !mask }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_an_ssrc_whose_window_was_closed_are_not_taken_again() {
        let mut protection = ReplayProtection::default();
        let first = 70_000;
        for index in [first, first + 3] {
            protection.mark_received(Ssrc(7), index);
        }
        // More than can have a window, one after another.
        for ssrc in 1_000..1_100 {
            assert!(protection.is_new_packet(Ssrc(ssrc), 5));
            protection.mark_received(Ssrc(ssrc), 5);
        }
        assert_eq!(protection.windows.len(), MAX_SSRC_WINDOWS);
        assert!((1_000..1_100).all(|ssrc| !protection.is_new_packet(Ssrc(ssrc), 5)));
        for old in [first, first + 1, first + 3] {
            assert!(!protection.is_new_packet(Ssrc(7), old), "{old}");
        }
        // It goes on, with its roll-over counter.
        let index = protection.packet_index(Ssrc(7), (first + 4) as u16);
        assert_eq!(index, first + 4);
        assert!(protection.is_new_packet(Ssrc(7), index));
        protection.mark_received(Ssrc(7), first + 6);
        for (index, is_new) in [
            (first + 3, false),
            (first + 5, true),
            (first + 6, false),
            (first + 7, true),
        ] {
            assert_eq!(protection.is_new_packet(Ssrc(7), index), is_new, "{index}");
        }
    }

    #[test]
    fn what_is_kept_of_a_peer_is_bounded() {
        let mut protection = ReplayProtection::default();
        let count = (MAX_CLOSED_REPLAY_WINDOWS + MAX_SSRC_WINDOWS) as u32;
        for ssrc in 0..count + 10 {
            protection.mark_received(Ssrc(ssrc), 1);
        }
        assert_eq!(protection.closed_windows.highest.len(), MAX_CLOSED_REPLAY_WINDOWS);
        assert_eq!(
            protection.closed_windows.by_last_packet.len(),
            MAX_CLOSED_REPLAY_WINDOWS
        );
        assert!(!protection.is_new_packet(Ssrc(10), 1), "the oldest one that is kept");
        assert!(protection.is_new_packet(Ssrc(9), 1));
    }
}
