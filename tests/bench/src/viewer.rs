//! A viewer after it has connected: counts by clear-text header, audits by decryption.
//!
//! A viewer decrypts until it has found, for each track, the constant between its own sequence numbers and the
//! publisher's; after that the header of a packet says which packet it is, when it was sent and whether it is missing.
//! Every [`AUDIT_STEP`]th packet is still decrypted and compared with what was sent, so that a constant that moved cannot
//! go unseen; an auditor does that with every packet.

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

use crate::{
    endpoint::{self, Endpoint},
    timeline::{Timeline, Track, digest},
};

/// Every so many packets of a track one is decrypted: often enough to keep the roll-over counter (2^15 packets), rare
/// enough to cost nothing.
const AUDIT_STEP: u32 = 256;

/// A packet that is older than this when it arrives was sent to catch up.
const MAX_LIVE_EDGE_AGE_NS: u64 = 100_000_000;

/// For this time newer ones have to come before a viewer counts as at the live edge. While it catches up, and be it by the
/// last frame, the gateway leaves out what a newer key frame makes needless: this is more than a key frame interval.
const LIVE_EDGE_DURATION_NS: u64 = 2_100_000_000;

/// Payloads from this length on are all different.
const UNIQUE_LEN: usize = 32;

/// What all viewers together saw in a window.
#[derive(Default)]
pub(crate) struct Tally {
    /// Packets that were due: what the publisher sent, once per viewer.
    pub expected: u64,
    /// Different packets of these that arrived.
    pub received: u64,
    /// Arrivals of a packet that had arrived before.
    pub duplicates: u64,
    /// From the publisher's send call to the viewer's socket, per packet.
    pub delays: Vec<Duration>,
    /// Packets that were decrypted and compared.
    pub audited: u64,
    /// Of these, the ones that were not what the publisher sent, or could not be decrypted.
    pub corrupt: u64,
    /// RTP that belongs to no track: retransmissions and padding.
    pub other: u64,
}

impl Tally {
    /// Packets that were due and never came.
    pub(crate) fn lost(&self) -> u64 {
        self.expected - self.received
    }

    /// Whether packets came, all that were due and none of them changed.
    pub(crate) fn is_whole(&self) -> bool {
        self.received > 0 && self.lost() == 0 && self.corrupt == 0
    }
}

/// One viewer, or a bare destination of the floor.
pub(crate) struct Viewer {
    receive: Receive,
    auditor: bool,
    lines: [Line; 2],
}

enum Receive {
    Peer(Box<Endpoint>),
    Bare(UdpSocket),
}

/// What a viewer knows of one track.
#[derive(Default)]
struct Line {
    /// Own sequence number minus the publisher's.
    offset: Option<u16>,
    since_audit: u32,
    /// When the first of the packets arrived that have all come at the live edge, and when the last did.
    at_live_edge: Option<(u64, u64)>,
    window: Option<Window>,
}

/// Which packets from `first` on have arrived.
struct Window {
    first: u64,
    seen: Vec<u64>,
}

impl Viewer {
    /// A viewer that has connected. An auditor decrypts and compares everything.
    pub(crate) fn new(endpoint: Endpoint, auditor: bool) -> Self {
        Self {
            receive: Receive::Peer(Box::new(endpoint)),
            auditor,
            lines: Default::default(),
        }
    }

    /// A destination that gets the publisher's sequence numbers unchanged and cannot decrypt.
    pub(crate) fn bare(socket: UdpSocket) -> Self {
        let line = || Line {
            offset: Some(0),
            ..Line::default()
        };
        Self {
            receive: Receive::Bare(socket),
            auditor: false,
            lines: [line(), line()],
        }
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        match &self.receive {
            Receive::Peer(endpoint) => endpoint.socket(),
            Receive::Bare(socket) => socket,
        }
    }

    /// Whether both tracks are at the live edge and their place in the publisher's stream is known.
    pub(crate) fn synchronised(&self) -> bool {
        self.lines.iter().all(Line::synchronised)
    }

    /// Begins to count at these positions of the publisher.
    pub(crate) fn open(&mut self, position: [u64; 2]) {
        for (line, first) in self.lines.iter_mut().zip(position) {
            line.window = Some(Window {
                first,
                seen: Vec::new(),
            });
        }
    }

    /// Adds what arrived from the start of the window up to these positions.
    pub(crate) fn close(&mut self, position: [u64; 2], tally: &mut Tally) {
        for (line, end) in self.lines.iter_mut().zip(position) {
            if let Some(window) = line.window.take() {
                let due = end.saturating_sub(window.first);
                tally.expected += due;
                tally.received += window.count(due);
            }
        }
    }

    /// Does what is due by `now`: connectivity checks, receiver reports.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> io::Result<()> {
        match &mut self.receive {
            Receive::Peer(endpoint) => endpoint.handle_timeout(now),
            Receive::Bare(_) => Ok(()),
        }
    }

    /// Takes a datagram that reached the socket at `arrived_ns` of the real-time clock.
    ///
    /// # Errors
    ///
    /// Those of the socket, on which an answer may be due.
    pub(crate) fn handle_datagram(
        &mut self,
        datagram: &[u8],
        arrived_ns: u64,
        timeline: &Timeline,
        tally: &mut Tally,
    ) -> io::Result<()> {
        let Some(header) = endpoint::Header::read(datagram) else {
            return match &mut self.receive {
                Receive::Peer(endpoint) => endpoint.handle_control(datagram, Instant::now()),
                Receive::Bare(_) => Ok(()),
            };
        };
        let Some(track) = header.track else {
            tally.other += 1;
            return Ok(());
        };
        let line = &mut self.lines[track.index()];
        line.since_audit += 1;
        if line.offset.is_none() || line.window.is_none() || self.auditor || line.since_audit >= AUDIT_STEP {
            line.since_audit = 0;
            if let Receive::Peer(endpoint) = &mut self.receive {
                endpoint.record(&header);
                line.audit(track, header.seq, endpoint.decrypt(datagram), timeline, tally);
            }
        } else if let Receive::Peer(endpoint) = &mut self.receive {
            endpoint.record(&header);
        }
        line.count(track, header.seq, arrived_ns, timeline, tally);
        Ok(())
    }
}

impl Line {
    /// Compares a decrypted packet with what was sent; the first one gives the offset.
    fn audit(&mut self, track: Track, seq: u16, payload: Option<bytes::Bytes>, timeline: &Timeline, tally: &mut Tally) {
        // Parameter sets are the only payloads that repeat: they are compared, but say nothing about the place.
        let unique = payload.as_ref().is_some_and(|payload| payload.len() >= UNIQUE_LEN);
        let found = payload.map(|payload| digest(&payload));
        tally.audited += 1;
        match (self.offset, found) {
            (Some(offset), Some(found)) if timeline.entry(track, seq.wrapping_sub(offset)).1 == found => {}
            (None, Some(_)) if !unique => {}
            // While a viewer catches up the gateway may leave out what a newer key frame makes needless; its numbers go
            // on, so the constant is another one from there on. In a window it has to hold.
            // What was never sent is damaged, and says nothing about the place.
            (Some(_), Some(found)) if self.window.is_none() => {
                let origin = timeline.find(track, found);
                if !unique || origin.is_some() {
                    self.offset = origin.filter(|_| unique).map(|origin| seq.wrapping_sub(origin));
                    self.at_live_edge = None;
                }
            }
            (None, Some(found)) => match timeline.find(track, found) {
                Some(origin) => self.offset = Some(seq.wrapping_sub(origin)),
                None => tally.corrupt += 1,
            },
            _ => tally.corrupt += 1,
        }
    }

    fn synchronised(&self) -> bool {
        let is_live = |(first, last): (u64, u64)| last.saturating_sub(first) >= LIVE_EDGE_DURATION_NS;
        self.offset.is_some() && self.at_live_edge.is_some_and(is_live)
    }

    fn count(&mut self, track: Track, seq: u16, arrived_ns: u64, timeline: &Timeline, tally: &mut Tally) {
        let Some(offset) = self.offset else {
            self.at_live_edge = None;
            return;
        };
        let origin = seq.wrapping_sub(offset);
        let Some(window) = &mut self.window else {
            let is_new = arrived_ns.saturating_sub(timeline.entry(track, origin).0) < MAX_LIVE_EDGE_AGE_NS;
            let first = self.at_live_edge.map_or(arrived_ns, |(first, _)| first);
            self.at_live_edge = is_new.then_some((first, arrived_ns));
            return;
        };
        let Some(index) = window.index(origin) else { return };
        if !window.insert(index) {
            tally.duplicates += 1;
            return;
        }
        let delay = arrived_ns.saturating_sub(timeline.entry(track, origin).0);
        tally.delays.push(Duration::from_nanos(delay));
    }
}

impl Window {
    /// Place of a sequence number of the publisher in the window; `None` before its start. A window is shorter than
    /// half the space of sequence numbers.
    fn index(&self, seq: u16) -> Option<usize> {
        let distance = seq.wrapping_sub(self.first as u16);
        (distance < 0x8000).then_some(usize::from(distance))
    }

    /// Marks a packet as seen; false when it was already.
    fn insert(&mut self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }

    /// How many of the first `due` packets have been seen.
    fn count(&self, due: u64) -> u64 {
        let whole = (due / 64) as usize;
        let full: u32 = self.seen.iter().take(whole).map(|word| word.count_ones()).sum();
        let rest = self
            .seen
            .get(whole)
            .map_or(0, |word| (word & ((1 << (due % 64)) - 1)).count_ones());
        u64::from(full) + u64::from(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_each_packet_once_and_only_what_was_due() {
        let mut window = Window {
            first: 65_530,
            seen: Vec::new(),
        };
        for seq in (0..200u64).filter(|seq| seq % 50 != 3) {
            let index = window.index((65_530 + seq) as u16).unwrap();
            assert!(window.insert(index));
            assert!(!window.insert(index));
        }
        assert_eq!(window.index(65_529), None);
        assert_eq!(window.count(200), 196);
        assert_eq!(window.count(4), 3);
        assert_eq!(window.count(64), 62);
        assert_eq!(window.count(1000), 196);
    }

    #[test]
    fn a_line_is_synchronised_after_a_while_at_the_live_edge() {
        const MS: u64 = 1_000_000;
        let timeline = Timeline::new();
        for n in 0..300u64 {
            timeline.record(Track::Video, digest(&n.to_be_bytes().repeat(4)), 10 * MS * n);
        }
        let (mut line, mut tally) = (Line::default(), Tally::default());
        let mut arrives = |line: &mut Line, n: u64, delay: u64| {
            line.count(Track::Video, n as u16, 10 * MS * n + delay, &timeline, &mut tally);
            line.synchronised()
        };
        assert!(!arrives(&mut line, 0, MS), "of unknown place");
        line.offset = Some(0);
        assert!((1..50).all(|n| !arrives(&mut line, n, 500 * MS)), "behind");
        assert!((50..260).all(|n| !arrives(&mut line, n, MS)), "not for long enough");
        assert!(arrives(&mut line, 260, MS));
        assert!(!arrives(&mut line, 261, 500 * MS), "behind again");
    }

    #[test]
    fn a_silent_line_has_lost_everything() {
        let mut viewer = Viewer::bare(UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut tally = Tally::default();
        viewer.open([10, 20]);
        viewer.close([110, 70], &mut tally);
        assert_eq!((tally.expected, tally.lost()), (150, 150));
    }

    #[test]
    fn the_first_match_gives_the_offset_and_a_later_mismatch_is_corruption() {
        let timeline = Timeline::new();
        for n in 0..100u64 {
            timeline.record(Track::Video, digest(&n.to_be_bytes().repeat(4)), 1000 * n);
        }
        let bytes = |n: u64| n.to_be_bytes().repeat(4);
        let payload = |n: u64| Some(bytes::Bytes::from(bytes(n)));
        let (mut line, mut tally) = (Line::default(), Tally::default());
        line.window = Some(Window {
            first: 50,
            seen: Vec::new(),
        });
        line.audit(Track::Video, 7, payload(60), &timeline, &mut tally);
        assert_eq!((line.offset, tally.corrupt), (Some(7u16.wrapping_sub(60)), 0));
        line.audit(Track::Video, 8, payload(61), &timeline, &mut tally);
        assert_eq!(tally.corrupt, 0);
        line.audit(Track::Video, 8, payload(62), &timeline, &mut tally);
        line.audit(Track::Video, 9, None, &timeline, &mut tally);
        assert_eq!((tally.audited, tally.corrupt), (4, 2));
        line.count(Track::Video, 9, 62_500, &timeline, &mut tally);
        assert_eq!(tally.delays, [Duration::from_nanos(500)]);
    }
}
