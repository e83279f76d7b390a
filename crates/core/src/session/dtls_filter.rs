//! Guard in front of the DTLS stack: limits what a peer may send during and after the handshake, before anything is
//! parsed further.
//!
//! Every rule is a limit of ours, stated as a constant. The limits are far above what a well-behaved peer sends;
//! exceeding one ends the session. A record that is merely out of place is dropped and counted.

/// Filters the DTLS datagrams of one session.
#[derive(Debug, Default)]
pub struct DtlsRecordFilter {
    established: bool,
    handshake_byte_count: usize,
    handshake_record_count: usize,
    early_record_count: usize,
    /// Fragments by message sequence number; a regular handshake has seven or eight messages per side.
    fragments_per_message: [u8; MAX_HANDSHAKE_MESSAGES],
    drop_counts: PacketDropCounts,
}

/// Number of dropped records and packets, by reason.
pub(crate) type PacketDropCounts = [u32; PacketDropReason::ALL.len()];

/// Why a record or packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketDropReason {
    /// Its address was not authenticated by ICE, or not recently.
    UnknownAddress,
    /// It is neither a DTLS record nor a STUN message nor an RTP or RTCP packet.
    Malformed,
    /// A connectivity check that is not for us or not authentic.
    InvalidConnectivityCheck,
    /// A record in clear text after the handshake, or one that is never sent in clear text.
    PlaintextDtlsRecord,
    /// Media before the handshake is complete.
    MediaBeforeHandshake,
    /// SRTP or SRTCP that is not authentic.
    Forged,
    /// SRTP or SRTCP that was received before.
    Replayed,
}

impl PacketDropReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::UnknownAddress,
        Self::Malformed,
        Self::InvalidConnectivityCheck,
        Self::PlaintextDtlsRecord,
        Self::MediaBeforeHandshake,
        Self::Forged,
        Self::Replayed,
    ];

    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownAddress => "unknown_address",
            Self::Malformed => "malformed",
            Self::InvalidConnectivityCheck => "check",
            Self::PlaintextDtlsRecord => "plain_text",
            Self::MediaBeforeHandshake => "early",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
        }
    }
}

/// The peer exceeded a limit; the session must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DtlsLimitExceeded {
    #[error("the peer sent more than {MAX_HANDSHAKE_BYTES} bytes of DTLS handshake records")]
    HandshakeBytes,
    #[error("the peer sent more than {MAX_HANDSHAKE_RECORDS} DTLS handshake records")]
    HandshakeRecords,
    #[error("the peer sent a DTLS handshake message of more than {MAX_HANDSHAKE_MESSAGE_LEN} bytes")]
    MessageLength,
    #[error(
        "the peer exceeded a limit of the DTLS handshake: {MAX_FRAGMENTS_PER_HANDSHAKE_MESSAGE} fragments per message, \
         or {MAX_HANDSHAKE_MESSAGES} messages in total"
    )]
    FragmentCount,
    #[error("the peer sent a DTLS handshake fragment that does not match its header")]
    InvalidFragment,
    #[error(
        "the peer sent more than {MAX_ENCRYPTED_RECORDS_BEFORE_KEYS} encrypted DTLS records before the handshake was complete"
    )]
    EarlyRecords,
}

/// Maximum bytes of handshake records in one session.
pub(crate) const MAX_HANDSHAKE_BYTES: usize = 64 << 10;
/// Maximum number of handshake records in one session, repeats included.
pub const MAX_HANDSHAKE_RECORDS: usize = 200;
/// Maximum length of one handshake message in bytes, certificates included.
pub(crate) const MAX_HANDSHAKE_MESSAGE_LEN: usize = 16 << 10;
/// Maximum number of fragments of one handshake message, repeats included.
pub const MAX_FRAGMENTS_PER_HANDSHAKE_MESSAGE: u8 = 32;
/// Maximum number of handshake messages of one peer.
pub(crate) const MAX_HANDSHAKE_MESSAGES: usize = 32;
/// Maximum number of encrypted records before the keys exist (a Finished that overtakes the ChangeCipherSpec).
pub const MAX_ENCRYPTED_RECORDS_BEFORE_KEYS: usize = 16;

/// Maximum length of an encrypted handshake record: a Finished of 24 bytes, with IV, MAC and padding of any cipher
/// suite.
pub(crate) const MAX_FINISHED_RECORD_LEN: usize = 128;

const CONTENT_TYPE_CHANGE_CIPHER_SPEC: u8 = 20;
const CONTENT_TYPE_ALERT: u8 = 21;
const CONTENT_TYPE_HANDSHAKE: u8 = 22;
const DTLS_RECORD_HEADER_LEN: usize = 13;
const DTLS_HANDSHAKE_HEADER_LEN: usize = 12;

impl DtlsRecordFilter {
    /// Marks the handshake as complete: from now on records in clear text are dropped.
    pub(crate) fn mark_established(&mut self) {
        self.established = true;
    }

    /// Counts a dropped record or packet.
    pub(crate) fn count_drop(&mut self, reason: PacketDropReason) {
        if let Some(count) = self.drop_counts.get_mut(reason as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Returns the number of drops so far, by reason.
    pub fn drop_counts(&self) -> PacketDropCounts {
        self.drop_counts
    }

    /// Returns the records of a datagram that may be passed to the stack; empty if there are none.
    ///
    /// # Errors
    ///
    /// [`DtlsLimitExceeded`]: the session must be closed.
    pub fn filter_datagram(&mut self, datagram: &[u8]) -> Result<Vec<u8>, DtlsLimitExceeded> {
        let mut admitted = Vec::with_capacity(datagram.len());
        let mut rest = datagram;
        while !rest.is_empty() {
            // RFC 6347 §4.1: type, version, epoch, 48-bit sequence number, length.
            let Some((header, after)) = rest.split_first_chunk::<DTLS_RECORD_HEADER_LEN>() else {
                self.count_drop(PacketDropReason::Malformed);
                break;
            };
            let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
            let Some((body, next)) = after.split_at_checked(length) else {
                self.count_drop(PacketDropReason::Malformed);
                break;
            };
            let epoch = u16::from_be_bytes([header[3], header[4]]);
            if self.admit_record_within_limits(header[0], epoch, body)? {
                admitted.extend_from_slice(header);
                admitted.extend_from_slice(body);
            }
            rest = next;
        }
        Ok(admitted)
    }

    fn admit_record_within_limits(&mut self, content: u8, epoch: u16, body: &[u8]) -> Result<bool, DtlsLimitExceeded> {
        match (epoch, content) {
            // A peer that repeats its last flight also repeats its encrypted Finished, to which the stack answers.
            // Records in clear text could come from anyone.
            (0, _) if self.established => {
                self.count_drop(PacketDropReason::PlaintextDtlsRecord);
                Ok(false)
            }
            (0, CONTENT_TYPE_HANDSHAKE) => {
                self.count_fragments_within_limits(body)?;
                Ok(true)
            }
            (0, CONTENT_TYPE_CHANGE_CIPHER_SPEC) => {
                self.handshake_record_count += 1;
                ensure_within_limit(
                    self.handshake_record_count,
                    MAX_HANDSHAKE_RECORDS,
                    DtlsLimitExceeded::HandshakeRecords,
                )?;
                Ok(true)
            }
            (0, CONTENT_TYPE_ALERT) => Ok(true),
            (0, _) => {
                self.count_drop(PacketDropReason::PlaintextDtlsRecord);
                Ok(false)
            }
            (1, CONTENT_TYPE_HANDSHAKE) => self.admit_finished_record(body),
            // WebRTC has no renegotiation, so there is no further epoch.
            (1, CONTENT_TYPE_CHANGE_CIPHER_SPEC) | (2.., _) => {
                self.count_drop(PacketDropReason::Malformed);
                Ok(false)
            }
            (1, _) if self.established => Ok(true),
            (1, _) => self.admit_record_before_keys(),
        }
    }

    /// Finished is the only encrypted handshake message. Its fragments cannot be read here, so the length limit bounds
    /// how many the stack may find in it.
    fn admit_finished_record(&mut self, body: &[u8]) -> Result<bool, DtlsLimitExceeded> {
        if body.len() > MAX_FINISHED_RECORD_LEN {
            self.count_drop(PacketDropReason::Malformed);
            return Ok(false);
        }
        self.handshake_record_count += 1;
        let admitted = self.handshake_record_count <= MAX_HANDSHAKE_RECORDS;
        if !admitted {
            // The record is not authenticated, so it must not end the session.
            self.count_drop(PacketDropReason::Malformed);
        }
        Ok(admitted && (self.established || self.admit_record_before_keys()?))
    }

    fn admit_record_before_keys(&mut self) -> Result<bool, DtlsLimitExceeded> {
        self.early_record_count += 1;
        ensure_within_limit(
            self.early_record_count,
            MAX_ENCRYPTED_RECORDS_BEFORE_KEYS,
            DtlsLimitExceeded::EarlyRecords,
        )?;
        Ok(true)
    }

    fn count_fragments_within_limits(&mut self, body: &[u8]) -> Result<(), DtlsLimitExceeded> {
        self.handshake_record_count += 1;
        self.handshake_byte_count += body.len();
        ensure_within_limit(
            self.handshake_record_count,
            MAX_HANDSHAKE_RECORDS,
            DtlsLimitExceeded::HandshakeRecords,
        )?;
        ensure_within_limit(
            self.handshake_byte_count,
            MAX_HANDSHAKE_BYTES,
            DtlsLimitExceeded::HandshakeBytes,
        )?;
        let mut rest = body;
        while !rest.is_empty() {
            let fragment = HandshakeFragment::read(rest).ok_or(DtlsLimitExceeded::InvalidFragment)?;
            ensure_within_limit(
                fragment.message_len,
                MAX_HANDSHAKE_MESSAGE_LEN,
                DtlsLimitExceeded::MessageLength,
            )?;
            let end = fragment.offset + fragment.body.len();
            let empty = fragment.body.is_empty() && fragment.message_len > 0;
            if end > fragment.message_len || empty {
                return Err(DtlsLimitExceeded::InvalidFragment);
            }
            let count = self
                .fragments_per_message
                .get_mut(usize::from(fragment.message_seq))
                .ok_or(DtlsLimitExceeded::FragmentCount)?;
            *count += 1;
            ensure_within_limit(
                usize::from(*count),
                usize::from(MAX_FRAGMENTS_PER_HANDSHAKE_MESSAGE),
                DtlsLimitExceeded::FragmentCount,
            )?;
            rest = fragment.rest;
        }
        Ok(())
    }
}

fn ensure_within_limit(value: usize, limit: usize, otherwise: DtlsLimitExceeded) -> Result<(), DtlsLimitExceeded> {
    if value <= limit { Ok(()) } else { Err(otherwise) }
}

/// One handshake fragment (RFC 6347 §4.2.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct HandshakeFragment<'a> {
    /// Handshake type; 1 is a ClientHello.
    pub kind: u8,
    /// Length of the whole message.
    pub message_len: usize,
    /// Sequence number of the message.
    pub message_seq: u16,
    /// Offset of the fragment in the message.
    pub offset: usize,
    pub body: &'a [u8],
    /// Bytes after the fragment in the record.
    pub rest: &'a [u8],
}

impl<'a> HandshakeFragment<'a> {
    /// Reads a fragment; `None` if it is truncated.
    pub(crate) fn read(record: &'a [u8]) -> Option<Self> {
        let (header, after) = record.split_first_chunk::<DTLS_HANDSHAKE_HEADER_LEN>()?;
        let triple = |at: usize| {
            Some(u32::from_be_bytes([0, *header.get(at)?, *header.get(at + 1)?, *header.get(at + 2)?]) as usize)
        };
        let (body, rest) = after.split_at_checked(triple(9)?)?;
        let message = u16::from_be_bytes([header[4], header[5]]);
        Some(Self {
            kind: header[0],
            message_len: triple(1)?,
            message_seq: message,
            offset: triple(6)?,
            body,
            rest,
        })
    }
}

/// Returns whether a datagram holds only handshake records in clear text.
pub(crate) fn has_only_plain_handshake_records(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Some((header, after)) = rest.split_first_chunk::<DTLS_RECORD_HEADER_LEN>() {
        let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
        if header[0] != CONTENT_TYPE_HANDSHAKE || header[3..5] != [0, 0] {
            return false;
        }
        rest = after.get(length..).unwrap_or_default();
    }
    true
}

/// Returns the records of a datagram without those of handshakes, encrypted or not.
pub(crate) fn remove_handshake_records(datagram: &[u8]) -> Vec<u8> {
    let (mut kept, mut rest) = (Vec::with_capacity(datagram.len()), datagram);
    while let Some((header, _)) = rest.split_first_chunk::<DTLS_RECORD_HEADER_LEN>() {
        let length = DTLS_RECORD_HEADER_LEN + usize::from(u16::from_be_bytes([header[11], header[12]]));
        let (record, after) = rest.split_at(length.min(rest.len()));
        if header[0] != CONTENT_TYPE_HANDSHAKE {
            kept.extend_from_slice(record);
        }
        rest = after;
    }
    kept
}

/// Returns the content type and the epoch of each record of a datagram (RFC 6347 §4.1).
pub fn dtls_record_types_and_epochs(datagram: &[u8]) -> Vec<(u8, u16)> {
    let mut kinds = Vec::new();
    let mut rest = datagram;
    while let Some((header, after)) = rest.split_first_chunk::<DTLS_RECORD_HEADER_LEN>() {
        kinds.push((header[0], u16::from_be_bytes([header[3], header[4]])));
        let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
        rest = after.get(length..).unwrap_or_default();
    }
    kinds
}

/// Returns the fragments of the clear-text handshake records of a datagram.
pub(crate) fn handshake_fragments(datagram: &[u8]) -> Vec<HandshakeFragment<'_>> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some((header, after)) = rest.split_first_chunk::<DTLS_RECORD_HEADER_LEN>() {
        let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
        let Some((mut body, next)) = after.split_at_checked(length) else {
            break;
        };
        let plain_handshake = header[0] == CONTENT_TYPE_HANDSHAKE && header[3..5] == [0, 0];
        while plain_handshake && let Some(fragment) = HandshakeFragment::read(body) {
            found.push(fragment);
            body = fragment.rest;
        }
        rest = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content: u8, epoch: u16, body: &[u8]) -> Vec<u8> {
        let mut record = vec![content, 0xfe, 0xfd];
        record.extend_from_slice(&epoch.to_be_bytes());
        record.extend_from_slice(&[0; 6]);
        record.extend_from_slice(&(body.len() as u16).to_be_bytes());
        record.extend_from_slice(body);
        record
    }

    fn fragment(message: u16, total: u32, offset: u32, claimed: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&total.to_be_bytes()[1..]);
        bytes.extend_from_slice(&message.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes()[1..]);
        bytes.extend_from_slice(&claimed.to_be_bytes()[1..]);
        bytes.extend_from_slice(body);
        bytes
    }

    fn admit_fragment(guard: &mut DtlsRecordFilter, fragment: &[u8]) -> Result<usize, DtlsLimitExceeded> {
        guard
            .filter_datagram(&record(CONTENT_TYPE_HANDSHAKE, 0, fragment))
            .map(|records| records.len())
    }

    #[test]
    fn a_regular_flight_passes_unchanged() {
        let mut datagram = record(CONTENT_TYPE_HANDSHAKE, 0, &fragment(0, 4, 0, 4, b"abcd"));
        datagram.extend(record(CONTENT_TYPE_CHANGE_CIPHER_SPEC, 0, &[1]));
        datagram.extend(record(CONTENT_TYPE_HANDSHAKE, 1, &[0; 40]));
        assert_eq!(DtlsRecordFilter::default().filter_datagram(&datagram), Ok(datagram));
    }

    #[test]
    fn a_fragment_must_match_its_header() {
        for lie in [
            fragment(0, 100, 0, 50, b"short"),
            fragment(0, 10, 8, 5, b"12345"),
            fragment(0, 10, 0, 0, b""),
            b"short".to_vec(),
        ] {
            assert_eq!(
                admit_fragment(&mut DtlsRecordFilter::default(), &lie),
                Err(DtlsLimitExceeded::InvalidFragment)
            );
        }
        assert!(
            admit_fragment(&mut DtlsRecordFilter::default(), &fragment(3, 0, 0, 0, b"")).is_ok(),
            "ServerHelloDone"
        );
        let long = fragment(0, MAX_HANDSHAKE_MESSAGE_LEN as u32 + 1, 0, 1, b"x");
        assert_eq!(
            admit_fragment(&mut DtlsRecordFilter::default(), &long),
            Err(DtlsLimitExceeded::MessageLength)
        );
    }

    #[test]
    fn a_message_comes_in_a_bounded_number_of_fragments() {
        let mut guard = DtlsRecordFilter::default();
        let mut broken = None;
        // Last offset first: the most expensive order to reassemble.
        for offset in (0..28_000u32).rev() {
            if let Err(limit) = admit_fragment(&mut guard, &fragment(0, 16_000, offset % 16_000, 1, b"x")) {
                broken = Some((28_000 - offset, limit));
                break;
            }
        }
        assert_eq!(
            broken,
            Some((
                u32::from(MAX_FRAGMENTS_PER_HANDSHAKE_MESSAGE) + 1,
                DtlsLimitExceeded::FragmentCount
            ))
        );
        assert_eq!(
            admit_fragment(&mut guard, &fragment(32, 1, 0, 1, b"x")),
            Err(DtlsLimitExceeded::FragmentCount)
        );
    }

    #[test]
    fn records_and_bytes_of_a_handshake_are_bounded() {
        let mut guard = DtlsRecordFilter::default();
        let results: Vec<_> = (0..8u16)
            .map(|m| admit_fragment(&mut guard, &fragment(m, 16_000, 0, 16_000, &[0; 16_000])))
            .collect();
        assert!(results.contains(&Err(DtlsLimitExceeded::HandshakeBytes)), "{results:?}");
        let mut guard = DtlsRecordFilter::default();
        let spec = record(CONTENT_TYPE_CHANGE_CIPHER_SPEC, 0, &[1]);
        let passed = (0..1_000).take_while(|_| guard.filter_datagram(&spec).is_ok()).count();
        assert_eq!(passed, MAX_HANDSHAKE_RECORDS);
    }

    #[test]
    fn early_records_of_the_next_epoch_are_bounded() {
        let mut guard = DtlsRecordFilter::default();
        let early = record(23, 1, &[0; 1_000]);
        let passed = (0..1_000).take_while(|_| guard.filter_datagram(&early).is_ok()).count();
        assert_eq!(passed, MAX_ENCRYPTED_RECORDS_BEFORE_KEYS);
    }

    #[test]
    fn clear_text_records_are_dropped_after_the_handshake() {
        let mut guard = DtlsRecordFilter::default();
        guard.mark_established();
        for content in [
            CONTENT_TYPE_CHANGE_CIPHER_SPEC,
            CONTENT_TYPE_ALERT,
            CONTENT_TYPE_HANDSHAKE,
            23,
            99,
        ] {
            for _ in 0..1_000 {
                assert_eq!(guard.filter_datagram(&record(content, 0, &[2, 40])), Ok(vec![]));
            }
        }
        assert_eq!(
            guard.drop_counts()[PacketDropReason::PlaintextDtlsRecord as usize],
            5_000
        );
        let application_data = record(23, 1, &[0; 30]);
        for _ in 0..1_000 {
            assert_eq!(guard.filter_datagram(&application_data).as_ref(), Ok(&application_data));
        }
    }

    #[test]
    fn unexpected_encrypted_records_are_dropped() {
        for established in [false, true] {
            let mut guard = DtlsRecordFilter {
                established,
                ..DtlsRecordFilter::default()
            };
            let finished = record(CONTENT_TYPE_HANDSHAKE, 1, &[0; 48]);
            assert_eq!(guard.filter_datagram(&finished).as_ref(), Ok(&finished));
            for dropped in [
                record(CONTENT_TYPE_HANDSHAKE, 1, &[0; MAX_FINISHED_RECORD_LEN + 1]),
                record(CONTENT_TYPE_CHANGE_CIPHER_SPEC, 1, &[1]),
                record(23, 2, &[0; 30]),
            ] {
                assert_eq!(guard.filter_datagram(&dropped), Ok(vec![]), "{established}");
            }
        }
        let mut guard = DtlsRecordFilter::default();
        guard.mark_established();
        let finished = record(CONTENT_TYPE_HANDSHAKE, 1, &[0; 48]);
        let passed = (0..1_000)
            .filter(|_| guard.filter_datagram(&finished) == Ok(finished.clone()))
            .count();
        assert_eq!(passed, MAX_HANDSHAKE_RECORDS);
    }
}
