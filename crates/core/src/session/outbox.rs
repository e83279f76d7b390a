//! Outgoing datagrams: one buffer for many, grouped into runs that the kernel can send in one call each.

use std::net::{IpAddr, SocketAddr};

use super::srtp::{RtpCipher, SrtpError};
use crate::media::{PayloadType, Ssrc};

/// Destination address of a datagram and our source address. The peer accepts datagrams only from the address that it
/// checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub to: SocketAddr,
    /// `None` lets the kernel choose.
    pub local_ip: Option<IpAddr>,
}

/// Consecutive datagrams to one destination. All have `segment_size` bytes, except the last, which may be shorter. One send
/// with UDP_SEGMENT takes such a run.
#[derive(Clone, Copy, Debug)]
pub struct GsoRun {
    pub destination: Destination,
    /// Offset of the first byte in the buffer.
    pub start: usize,
    /// Offset after the last byte.
    pub end: usize,
    /// Size of each datagram except the last.
    pub segment_size: usize,
}

/// Sends runs. Implemented by the socket and, in tests, by a network in virtual time.
pub trait DatagramSink {
    /// Sends what can be sent now. The rest is dropped and counted: the media path never waits (invariant 5).
    fn send_gso_runs(&mut self, buffer: &[u8], runs: &[GsoRun]);
}

/// Collects datagrams and passes them to the sink in batches that fit the processor's cache.
pub struct Outbox {
    buffer: Vec<u8>,
    gso_runs: Vec<GsoRun>,
    is_last_run_closed: bool,
    /// Batches that were passed to the sink, wrapping.
    batch: u32,
    sink: Box<dyn DatagramSink + Send>,
}

/// Fields of the RTP header of an outgoing packet (RFC 3550 §5.1).
#[derive(Clone, Copy, Debug)]
pub struct RtpHeader {
    pub pt: PayloadType,
    pub marker: bool,
    /// Extended sequence number, from which the roll-over counter follows.
    pub ext_seq: u64,
    pub timestamp: u32,
    pub ssrc: Ssrc,
    /// Padding after the payload in bytes.
    pub padding_len: u8,
    pub transport_sequence_number: Option<TransportSequenceNumber>,
    pub playout_delay: Option<PlayoutDelay>,
}

/// Number of a packet among all of its session, and the id of the header extension that carries it
/// (draft-holmer-rmcat-transport-wide-cc-extensions-01 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportSequenceNumber {
    /// 1 to 14.
    pub extension_id: u8,
    pub number: u16,
}

/// How long the receiver should hold frames before it shows them, and the id of the header extension that says so
/// (`http://www.webrtc.org/experiments/rtp-hdrext/playout-delay`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlayoutDelay {
    /// 1 to 14.
    pub extension_id: u8,
    /// The least delay, in units of 10 ms, 12 bits.
    pub min_delay: u16,
}

/// Batch size in bytes: large enough for a call with many runs, small enough for the cache.
const MAX_BATCH_BYTES: usize = 192 << 10;

/// UDP_MAX_SEGMENTS of the kernel before Linux 6.9.
const MAX_GSO_SEGMENTS: usize = 64;

/// The kernel handles a run as one datagram until it is segmented: its length with headers must fit 16 bits.
const MAX_GSO_RUN_BYTES: usize = 65_000;

/// Length of the RTP header without extension, in bytes.
pub(crate) const RTP_HEADER_LEN: usize = 12;

/// Length of the header extension with a transport-wide number, in bytes: its header, one element and padding
/// (RFC 8285 §4.2).
pub(crate) const TRANSPORT_SEQUENCE_NUMBER_EXTENSION_LEN: usize = 8;

/// The same with a playout delay besides the number, or with that alone, rounded up.
pub const MAX_EXTENSION_LEN: usize = 12;

/// The longest delay that receivers are allowed, in units of 10 ms: the 10 s that libwebrtc assumes without the extension. One
/// of at most 500 ms would make it show frames without smoothing.
const MAX_PLAYOUT_DELAY_IN_10MS: u16 = 1_000;

impl Outbox {
    /// Creates an empty outbox in front of a sink.
    pub fn new(sink: Box<dyn DatagramSink + Send>) -> Self {
        Self {
            buffer: Vec::with_capacity(MAX_BATCH_BYTES + (64 << 10)),
            gso_runs: Vec::with_capacity(256),
            is_last_run_closed: false,
            batch: 0,
            sink,
        }
    }

    /// Appends a datagram unchanged.
    pub(crate) fn push_datagram(&mut self, destination: Destination, bytes: &[u8]) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        self.add_to_gso_run_and_flush_full_batch(destination, start);
    }

    /// Appends a packet with this header, sealed.
    ///
    /// # Errors
    ///
    /// [`SrtpError`] from the crypto library; nothing is sent.
    pub(crate) fn encrypt_and_push_rtp(
        &mut self,
        destination: Destination,
        cipher: &mut RtpCipher,
        header: RtpHeader,
        payload: &[u8],
    ) -> Result<(), SrtpError> {
        self.encrypt_and_push_packet(destination, cipher, header, &[], payload)
    }

    /// Appends a retransmission (RFC 4588 §4): the original sequence number precedes the payload.
    ///
    /// # Errors
    ///
    /// As [`Self::encrypt_and_push_rtp`].
    pub(crate) fn encrypt_and_push_rtx(
        &mut self,
        destination: Destination,
        cipher: &mut RtpCipher,
        header: RtpHeader,
        original: u16,
        payload: &[u8],
    ) -> Result<(), SrtpError> {
        self.encrypt_and_push_packet(destination, cipher, header, &original.to_be_bytes(), payload)
    }

    fn encrypt_and_push_packet(
        &mut self,
        destination: Destination,
        cipher: &mut RtpCipher,
        header: RtpHeader,
        prefix: &[u8],
        payload: &[u8],
    ) -> Result<(), SrtpError> {
        let start = self.buffer.len();
        header.append_to(&mut self.buffer);
        let header_len = self.buffer.len() - start;
        self.buffer.extend_from_slice(prefix);
        self.buffer.extend_from_slice(payload);
        if header.padding_len > 0 {
            // RFC 3550 §5.1: the last octet of the padding is its length.
            let end = self.buffer.len() + usize::from(header.padding_len);
            self.buffer.resize(end - 1, 0);
            self.buffer.push(header.padding_len);
        }
        self.buffer.resize(self.buffer.len() + cipher.tag_len(), 0);
        let sealed = self.buffer.get_mut(start..).unwrap_or_default();
        if let Err(error) = cipher.encrypt(sealed, header_len, header.ssrc, header.ext_seq) {
            self.buffer.truncate(start);
            return Err(error);
        }
        self.add_to_gso_run_and_flush_full_batch(destination, start);
        Ok(())
    }

    fn add_to_gso_run_and_flush_full_batch(&mut self, destination: Destination, start: usize) {
        let end = self.buffer.len();
        let len = end - start;
        let fits = |run: &GsoRun| {
            run.destination == destination
                && len <= run.segment_size
                && end - run.start <= MAX_GSO_RUN_BYTES
                && start - run.start < MAX_GSO_SEGMENTS * run.segment_size
        };
        match self.gso_runs.last_mut() {
            Some(run) if !self.is_last_run_closed && fits(run) => {
                self.is_last_run_closed = len < run.segment_size;
                run.end = end;
            }
            _ => {
                if end > MAX_BATCH_BYTES {
                    self.send_buffer_prefix(start);
                }
                let end = self.buffer.len();
                self.gso_runs.push(GsoRun {
                    destination,
                    start: end - len,
                    end,
                    segment_size: len,
                });
                self.is_last_run_closed = false;
            }
        }
    }

    /// Sends everything before `until` and moves the rest to the front.
    fn send_buffer_prefix(&mut self, until: usize) {
        if !self.gso_runs.is_empty() {
            self.sink.send_gso_runs(&self.buffer, &self.gso_runs);
            self.gso_runs.clear();
            self.batch = self.batch.wrapping_add(1);
        }
        self.buffer.drain(..until);
    }

    /// Returns the batch that the last datagram belongs to: batches are numbered in the order in which they are passed to
    /// the sink.
    pub(crate) fn current_batch_number(&self) -> u32 {
        self.batch
    }

    /// Sends everything; called at the end of a tick.
    pub fn flush(&mut self) {
        self.send_buffer_prefix(self.buffer.len());
    }
}

impl RtpHeader {
    fn to_fixed_header_bytes(self) -> [u8; RTP_HEADER_LEN] {
        let mut bytes = [0; RTP_HEADER_LEN];
        let has_extension = self.transport_sequence_number.is_some() || self.playout_delay.is_some();
        bytes[0] = 0x80 | u8::from(self.padding_len > 0) << 5 | u8::from(has_extension) << 4;
        bytes[1] = u8::from(self.marker) << 7 | self.pt.0 & 0x7f;
        bytes[2..4].copy_from_slice(&(self.ext_seq as u16).to_be_bytes());
        bytes[4..8].copy_from_slice(&self.timestamp.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.ssrc.0.to_be_bytes());
        bytes
    }

    /// Appends the header, with elements in the one-byte format if it has an extension (RFC 8285 §4.2).
    fn append_to(self, out: &mut Vec<u8>) {
        let fixed = self.to_fixed_header_bytes();
        if let (Some(number), None) = (self.transport_sequence_number, self.playout_delay) {
            // The header of nearly all numbered packets: appended at once.
            let mut bytes = [0; RTP_HEADER_LEN + TRANSPORT_SEQUENCE_NUMBER_EXTENSION_LEN];
            let (first, extension) = bytes.split_at_mut(RTP_HEADER_LEN);
            first.copy_from_slice(&fixed);
            extension.copy_from_slice(&number.header_extension());
            out.extend_from_slice(&bytes);
            return;
        }
        let number = self
            .transport_sequence_number
            .map(TransportSequenceNumber::header_extension_element);
        let delay = self.playout_delay.map(PlayoutDelay::header_extension_element);
        out.extend_from_slice(&fixed);
        let Some(delay) = delay else { return };
        match number {
            Some(number) => {
                out.extend_from_slice(&[0xbe, 0xde, 0, 2]);
                out.extend_from_slice(&number);
                out.extend_from_slice(&delay);
                out.push(0);
            }
            None => {
                out.extend_from_slice(&[0xbe, 0xde, 0, 1]);
                out.extend_from_slice(&delay);
            }
        }
    }
}

impl TransportSequenceNumber {
    /// The whole extension with this element alone.
    fn header_extension(self) -> [u8; TRANSPORT_SEQUENCE_NUMBER_EXTENSION_LEN] {
        let element = u64::from(self.extension_id << 4 | 1) << 24 | u64::from(self.number) << 8;
        (0xbede_0001 << 32 | element).to_be_bytes()
    }

    fn header_extension_element(self) -> [u8; 3] {
        let [high, low] = self.number.to_be_bytes();
        [self.extension_id << 4 | 1, high, low]
    }
}

impl PlayoutDelay {
    /// Two numbers of 12 bits: the least and the longest delay.
    fn header_extension_element(self) -> [u8; 4] {
        let [_, first, second, third] =
            (u32::from(self.min_delay & 0xfff) << 12 | u32::from(MAX_PLAYOUT_DELAY_IN_10MS)).to_be_bytes();
        [self.extension_id << 4 | 2, first, second, third]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Sent = Arc<Mutex<Vec<(u16, Vec<usize>)>>>;

    struct Recorder(Sent);

    impl DatagramSink for Recorder {
        fn send_gso_runs(&mut self, buffer: &[u8], runs: &[GsoRun]) {
            let mut sent = self.0.lock().expect("not poisoned");
            for run in runs {
                let lengths = buffer[run.start..run.end]
                    .chunks(run.segment_size)
                    .map(<[u8]>::len)
                    .collect();
                sent.push((run.destination.to.port(), lengths));
            }
        }
    }

    fn destination(port: u16) -> Destination {
        Destination {
            to: SocketAddr::from(([127, 0, 0, 1], port)),
            local_ip: None,
        }
    }

    #[test]
    fn equal_datagrams_to_one_destination_make_one_run_and_a_shorter_one_ends_it() {
        let sent = Sent::default();
        let mut outbox = Outbox::new(Box::new(Recorder(sent.clone())));
        for (port, len) in [(1, 100), (1, 100), (1, 40), (1, 40), (2, 40), (2, 100)] {
            outbox.push_datagram(destination(port), &vec![0; len]);
        }
        outbox.flush();
        let expected = [(1, vec![100, 100, 40]), (1, vec![40]), (2, vec![40]), (2, vec![100])];
        assert_eq!(*sent.lock().expect("not poisoned"), expected);
    }

    /// Another SRTP stack finds the end of the header, with a transport-wide number and without.
    #[test]
    fn packets_with_header_extensions_are_opened_by_an_independent_stack() {
        use crate::media::rtp::ParsedRtpHeader;
        use crate::session::srtp::SrtpProfile;
        use rtc_crypto::RTCCryptoProvider as _;

        let provider = rtc_crypto::providers::AwsLcRsProvider::new();
        let (key, salt) = ([3; 16], [5; 12]);
        let mut cipher =
            RtpCipher::new(SrtpProfile::AeadAes128Gcm, &key, &salt, provider.crypto()).expect("lengths fit");
        let profile = rtc_srtp::protection_profile::ProtectionProfile::AeadAes128Gcm;
        let mut theirs =
            rtc_srtp::context::Context::new(&key, &salt, profile, None, None, provider.crypto()).expect("lengths fit");
        let mut outbox = Outbox::new(Box::new(Recorder(Sent::default())));
        for (ext_seq, number, min_delay, extension_len) in [
            (1, None, None, 0),
            (2, Some(0x1234), None, 8),
            (3, Some(0xffff), Some(25), 12),
            (4, None, Some(0), 8),
        ] {
            let header = RtpHeader {
                pt: PayloadType(96),
                marker: true,
                ext_seq,
                timestamp: 9,
                ssrc: Ssrc(7),
                padding_len: 3,
                transport_sequence_number: number.map(|number| TransportSequenceNumber {
                    extension_id: 14,
                    number,
                }),
                playout_delay: min_delay.map(|min_delay| PlayoutDelay {
                    extension_id: 5,
                    min_delay,
                }),
            };
            let start = outbox.buffer.len();
            outbox
                .encrypt_and_push_rtp(destination(1), &mut cipher, header, b"payload")
                .expect("sealed");
            let opened = theirs.decrypt_rtp(&outbox.buffer[start..]).expect("authentic");
            let read = ParsedRtpHeader::parse(&opened).expect("valid RTP");
            assert_eq!(&opened[read.payload_range()], b"payload");
            assert_eq!(
                (u64::from(read.seq), read.extensions().count()),
                (
                    ext_seq,
                    usize::from(number.is_some()) + usize::from(min_delay.is_some())
                )
            );
            let delay = read.extension(5).map(|bytes| {
                let both = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
                (both >> 12, both & 0xfff)
            });
            assert_eq!(delay, min_delay.map(|min_delay| (u32::from(min_delay), 1_000)));
            assert_eq!(
                read.extension(14),
                number.map(u16::to_be_bytes).as_ref().map(<[u8; 2]>::as_slice)
            );
            assert_eq!(outbox.buffer.len() - start, 12 + extension_len + 7 + 3 + 16);
        }
    }

    #[test]
    fn batches_are_counted_as_they_leave() {
        let mut outbox = Outbox::new(Box::new(Recorder(Sent::default())));
        assert_eq!(outbox.current_batch_number(), 0);
        outbox.flush();
        assert_eq!(outbox.current_batch_number(), 0, "nothing left");
        outbox.push_datagram(destination(1), &[0; 100]);
        outbox.flush();
        assert_eq!(outbox.current_batch_number(), 1);
        // More than a batch holds: the first part leaves before the end of the tick.
        (0..300).for_each(|_| outbox.push_datagram(destination(1), &[0; 1_200]));
        assert_eq!(outbox.current_batch_number(), 2);
        outbox.flush();
        assert_eq!(outbox.current_batch_number(), 3);
    }

    #[test]
    fn long_bursts_are_cut_where_the_kernel_would_refuse_them() {
        let sent = Sent::default();
        let mut outbox = Outbox::new(Box::new(Recorder(sent.clone())));
        for index in 0..1000u32 {
            let mut datagram = vec![0; if index < 500 { 1200 } else { 100 }];
            datagram[..4].copy_from_slice(&index.to_be_bytes());
            outbox.push_datagram(destination(1), &datagram);
        }
        outbox.flush();
        let sent = sent.lock().expect("not poisoned");
        assert_eq!(sent.iter().map(|(_, lengths)| lengths.len()).sum::<usize>(), 1000);
        for (_, lengths) in sent.iter() {
            assert!(lengths.len() <= MAX_GSO_SEGMENTS && lengths.iter().sum::<usize>() <= MAX_GSO_RUN_BYTES);
        }
    }
}
