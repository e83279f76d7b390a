//! Outgoing datagrams: one buffer for many, grouped into runs that the kernel can send in one call each.

use std::net::{IpAddr, SocketAddr};

use super::srtp::{RtpCipher, SealError};
use crate::media::{Pt, Ssrc};

/// Destination address of a datagram and our source address. The peer accepts datagrams only from the address that it
/// checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub to: SocketAddr,
    /// `None` lets the kernel choose.
    pub from: Option<IpAddr>,
}

/// Consecutive datagrams to one destination. All have `segment` bytes, except the last, which may be shorter. One send
/// with UDP_SEGMENT takes such a run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub destination: Destination,
    /// Offset of the first byte in the buffer.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
    /// Size of each datagram except the last.
    pub segment: usize,
}

/// Sends runs. Implemented by the socket and, in tests, by a network in virtual time.
pub trait Sink {
    /// Sends what can be sent now. The rest is dropped and counted: the media path never waits (invariant 5).
    fn send(&mut self, buffer: &[u8], runs: &[Run]);
}

/// Collects datagrams and passes them to the sink in batches that fit the processor's cache.
pub struct Outbox {
    buffer: Vec<u8>,
    runs: Vec<Run>,
    closed: bool,
    sink: Box<dyn Sink + Send>,
}

/// Fields of the RTP header of an outgoing packet (RFC 3550 §5.1).
#[derive(Clone, Copy, Debug)]
pub struct RtpHeader {
    pub pt: Pt,
    pub marker: bool,
    /// Extended sequence number, from which the roll-over counter follows.
    pub seq: u64,
    pub time: u32,
    pub ssrc: Ssrc,
    /// Padding after the payload in bytes.
    pub padding: u8,
}

/// Batch size in bytes: large enough for a call with many runs, small enough for the cache.
const BATCH: usize = 192 << 10;

/// UDP_MAX_SEGMENTS of the kernel before Linux 6.9.
const MAX_SEGMENTS: usize = 64;

/// The kernel handles a run as one datagram until it is segmented: its length with headers must fit 16 bits.
const MAX_RUN: usize = 65_000;

const HEADER_LEN: usize = 12;

impl Outbox {
    /// Creates an empty outbox in front of a sink.
    pub fn new(sink: Box<dyn Sink + Send>) -> Self {
        Self {
            buffer: Vec::with_capacity(BATCH + (64 << 10)),
            runs: Vec::with_capacity(256),
            closed: false,
            sink,
        }
    }

    /// Appends a datagram unchanged.
    pub fn datagram(&mut self, destination: Destination, bytes: &[u8]) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        self.record(destination, start);
    }

    /// Appends a packet with this header, sealed.
    ///
    /// # Errors
    ///
    /// [`SealError`] from the crypto library; nothing is sent.
    pub fn rtp(
        &mut self,
        destination: Destination,
        sealer: &mut RtpCipher,
        header: RtpHeader,
        payload: &[u8],
    ) -> Result<(), SealError> {
        self.sealed(destination, sealer, header, &[], payload)
    }

    /// Appends a retransmission (RFC 4588 §4): the original sequence number precedes the payload.
    ///
    /// # Errors
    ///
    /// As [`Self::rtp`].
    pub fn rtx(
        &mut self,
        destination: Destination,
        sealer: &mut RtpCipher,
        header: RtpHeader,
        original: u16,
        payload: &[u8],
    ) -> Result<(), SealError> {
        self.sealed(destination, sealer, header, &original.to_be_bytes(), payload)
    }

    fn sealed(
        &mut self,
        destination: Destination,
        sealer: &mut RtpCipher,
        header: RtpHeader,
        prefix: &[u8],
        payload: &[u8],
    ) -> Result<(), SealError> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&header.bytes());
        self.buffer.extend_from_slice(prefix);
        self.buffer.extend_from_slice(payload);
        if header.padding > 0 {
            // RFC 3550 §5.1: the last octet of the padding is its length.
            let end = self.buffer.len() + usize::from(header.padding);
            self.buffer.resize(end - 1, 0);
            self.buffer.push(header.padding);
        }
        self.buffer.resize(self.buffer.len() + sealer.tag_len(), 0);
        let sealed = self.buffer.get_mut(start..).unwrap_or_default();
        if let Err(error) = sealer.seal(sealed, HEADER_LEN, header.ssrc, header.seq) {
            self.buffer.truncate(start);
            return Err(error);
        }
        self.record(destination, start);
        Ok(())
    }

    fn record(&mut self, destination: Destination, start: usize) {
        let end = self.buffer.len();
        let len = end - start;
        let fits = |run: &Run| {
            run.destination == destination
                && len <= run.segment
                && end - run.start <= MAX_RUN
                && start - run.start < MAX_SEGMENTS * run.segment
        };
        match self.runs.last_mut() {
            Some(run) if !self.closed && fits(run) => {
                self.closed = len < run.segment;
                run.end = end;
            }
            _ => {
                if end > BATCH {
                    self.send_until(start);
                }
                let end = self.buffer.len();
                self.runs.push(Run {
                    destination,
                    start: end - len,
                    end,
                    segment: len,
                });
                self.closed = false;
            }
        }
    }

    /// Sends everything before `until` and moves the rest to the front.
    fn send_until(&mut self, until: usize) {
        if !self.runs.is_empty() {
            self.sink.send(&self.buffer, &self.runs);
            self.runs.clear();
        }
        self.buffer.drain(..until);
    }

    /// Sends everything; called at the end of a tick.
    pub fn flush(&mut self) {
        self.send_until(self.buffer.len());
    }
}

impl RtpHeader {
    fn bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = 0x80 | u8::from(self.padding > 0) << 5;
        bytes[1] = u8::from(self.marker) << 7 | self.pt.0 & 0x7f;
        bytes[2..4].copy_from_slice(&(self.seq as u16).to_be_bytes());
        bytes[4..8].copy_from_slice(&self.time.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.ssrc.0.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Sent = Arc<Mutex<Vec<(u16, Vec<usize>)>>>;

    struct Recorder(Sent);

    impl Sink for Recorder {
        fn send(&mut self, buffer: &[u8], runs: &[Run]) {
            let mut sent = self.0.lock().expect("not poisoned");
            for run in runs {
                let lengths = buffer[run.start..run.end]
                    .chunks(run.segment)
                    .map(<[u8]>::len)
                    .collect();
                sent.push((run.destination.to.port(), lengths));
            }
        }
    }

    fn destination(port: u16) -> Destination {
        Destination {
            to: SocketAddr::from(([127, 0, 0, 1], port)),
            from: None,
        }
    }

    #[test]
    fn equal_datagrams_to_one_destination_make_one_run_and_a_shorter_one_ends_it() {
        let sent = Sent::default();
        let mut outbox = Outbox::new(Box::new(Recorder(sent.clone())));
        for (port, len) in [(1, 100), (1, 100), (1, 40), (1, 40), (2, 40), (2, 100)] {
            outbox.datagram(destination(port), &vec![0; len]);
        }
        outbox.flush();
        let expected = [(1, vec![100, 100, 40]), (1, vec![40]), (2, vec![40]), (2, vec![100])];
        assert_eq!(*sent.lock().expect("not poisoned"), expected);
    }

    #[test]
    fn long_bursts_are_cut_where_the_kernel_would_refuse_them() {
        let sent = Sent::default();
        let mut outbox = Outbox::new(Box::new(Recorder(sent.clone())));
        for index in 0..1000u32 {
            let mut datagram = vec![0; if index < 500 { 1200 } else { 100 }];
            datagram[..4].copy_from_slice(&index.to_be_bytes());
            outbox.datagram(destination(1), &datagram);
        }
        outbox.flush();
        let sent = sent.lock().expect("not poisoned");
        assert_eq!(sent.iter().map(|(_, lengths)| lengths.len()).sum::<usize>(), 1000);
        for (_, lengths) in sent.iter() {
            assert!(lengths.len() <= MAX_SEGMENTS && lengths.iter().sum::<usize>() <= MAX_RUN);
        }
    }
}
