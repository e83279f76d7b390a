//! Guard in front of the DTLS stack: limits what a peer may send during and after the handshake, before anything is
//! parsed further.
//!
//! Every rule is a limit of ours, stated as a constant. The limits are far above what a well-behaved peer sends;
//! exceeding one ends the session. A record that is merely out of place is dropped and counted.

/// Filters the DTLS datagrams of one session.
#[derive(Debug, Default)]
pub struct Guard {
    established: bool,
    handshake_bytes: usize,
    handshake_records: usize,
    early_records: usize,
    /// Fragments by message sequence number; a regular handshake has seven or eight messages per side.
    fragments: [u8; MAX_MESSAGES],
    drops: Drops,
}

/// Number of dropped records and packets, by reason.
pub type Drops = [u32; DropReason::ALL.len()];

/// Why a record or packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its address was not authenticated by ICE, or not recently.
    UnknownAddress,
    /// It is neither a DTLS record nor a STUN message nor an RTP or RTCP packet.
    Malformed,
    /// A connectivity check that is not for us or not authentic.
    Check,
    /// A record in clear text after the handshake, or one that is never sent in clear text.
    PlainText,
    /// Media before the handshake is complete.
    Early,
    /// SRTP or SRTCP that is not authentic.
    Forged,
    /// SRTP or SRTCP that was received before.
    Replayed,
}

impl DropReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::UnknownAddress,
        Self::Malformed,
        Self::Check,
        Self::PlainText,
        Self::Early,
        Self::Forged,
        Self::Replayed,
    ];

    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownAddress => "unknown_address",
            Self::Malformed => "malformed",
            Self::Check => "check",
            Self::PlainText => "plain_text",
            Self::Early => "early",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
        }
    }
}

/// The peer exceeded a limit; the session must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitBroken {
    #[error("more than {MAX_HANDSHAKE_BYTES} bytes of handshake records")]
    Bytes,
    #[error("more than {MAX_HANDSHAKE_RECORDS} handshake records")]
    Records,
    #[error("a handshake message of more than {MAX_MESSAGE} bytes")]
    Message,
    #[error("a handshake message in more than {MAX_FRAGMENTS} fragments, or more than {MAX_MESSAGES} messages")]
    Fragments,
    #[error("a handshake fragment that does not match its header")]
    Fragment,
    #[error("more than {MAX_EARLY_RECORDS} records of the next epoch before the handshake was complete")]
    EarlyRecords,
}

/// Maximum bytes of handshake records in one session.
pub const MAX_HANDSHAKE_BYTES: usize = 64 << 10;
/// Maximum number of handshake records in one session, repeats included.
pub const MAX_HANDSHAKE_RECORDS: usize = 200;
/// Maximum length of one handshake message in bytes, certificates included.
pub const MAX_MESSAGE: usize = 16 << 10;
/// Maximum number of fragments of one handshake message, repeats included.
pub const MAX_FRAGMENTS: u8 = 32;
/// Maximum number of handshake messages of one peer.
pub const MAX_MESSAGES: usize = 32;
/// Maximum number of encrypted records before the keys exist (a Finished that overtakes the ChangeCipherSpec).
pub const MAX_EARLY_RECORDS: usize = 16;

/// Maximum length of an encrypted handshake record: a Finished of 24 bytes, with IV, MAC and padding of any cipher
/// suite.
pub const MAX_FINISHED_RECORD: usize = 128;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const RECORD_HEADER: usize = 13;
const MESSAGE_HEADER: usize = 12;

impl Guard {
    /// Marks the handshake as complete: from now on records in clear text are dropped.
    pub fn establish(&mut self) {
        self.established = true;
    }

    /// Counts a dropped record or packet.
    pub fn drop(&mut self, reason: DropReason) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Returns the number of drops so far, by reason.
    pub fn drops(&self) -> Drops {
        self.drops
    }

    /// Returns the records of a datagram that may be passed to the stack; empty if there are none.
    ///
    /// # Errors
    ///
    /// [`LimitBroken`]: the session must be closed.
    pub fn admit(&mut self, datagram: &[u8]) -> Result<Vec<u8>, LimitBroken> {
        let mut admitted = Vec::with_capacity(datagram.len());
        let mut rest = datagram;
        while !rest.is_empty() {
            // RFC 6347 §4.1: type, version, epoch, 48-bit sequence number, length.
            let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER>() else {
                self.drop(DropReason::Malformed);
                break;
            };
            let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
            let Some((body, next)) = after.split_at_checked(length) else {
                self.drop(DropReason::Malformed);
                break;
            };
            let epoch = u16::from_be_bytes([header[3], header[4]]);
            if self.admits_record(header[0], epoch, body)? {
                admitted.extend_from_slice(header);
                admitted.extend_from_slice(body);
            }
            rest = next;
        }
        Ok(admitted)
    }

    fn admits_record(&mut self, content: u8, epoch: u16, body: &[u8]) -> Result<bool, LimitBroken> {
        match (epoch, content) {
            // A peer that repeats its last flight also repeats its encrypted Finished, to which the stack answers.
            // Records in clear text could come from anyone.
            (0, _) if self.established => {
                self.drop(DropReason::PlainText);
                Ok(false)
            }
            (0, HANDSHAKE) => {
                self.count_handshake(body)?;
                Ok(true)
            }
            (0, CHANGE_CIPHER_SPEC) => {
                self.handshake_records += 1;
                within(self.handshake_records, MAX_HANDSHAKE_RECORDS, LimitBroken::Records)?;
                Ok(true)
            }
            (0, ALERT) => Ok(true),
            (0, _) => {
                self.drop(DropReason::PlainText);
                Ok(false)
            }
            (1, HANDSHAKE) => self.admits_finished(body),
            // WebRTC has no renegotiation, so there is no further epoch.
            (1, CHANGE_CIPHER_SPEC) | (2.., _) => {
                self.drop(DropReason::Malformed);
                Ok(false)
            }
            (1, _) if self.established => Ok(true),
            (1, _) => self.admits_early(),
        }
    }

    /// Finished is the only encrypted handshake message. Its fragments cannot be read here, so the length limit bounds
    /// how many the stack may find in it.
    fn admits_finished(&mut self, body: &[u8]) -> Result<bool, LimitBroken> {
        if body.len() > MAX_FINISHED_RECORD {
            self.drop(DropReason::Malformed);
            return Ok(false);
        }
        self.handshake_records += 1;
        let admitted = self.handshake_records <= MAX_HANDSHAKE_RECORDS;
        if !admitted {
            // The record is not authenticated, so it must not end the session.
            self.drop(DropReason::Malformed);
        }
        Ok(admitted && (self.established || self.admits_early()?))
    }

    fn admits_early(&mut self) -> Result<bool, LimitBroken> {
        self.early_records += 1;
        within(self.early_records, MAX_EARLY_RECORDS, LimitBroken::EarlyRecords)?;
        Ok(true)
    }

    fn count_handshake(&mut self, body: &[u8]) -> Result<(), LimitBroken> {
        self.handshake_records += 1;
        self.handshake_bytes += body.len();
        within(self.handshake_records, MAX_HANDSHAKE_RECORDS, LimitBroken::Records)?;
        within(self.handshake_bytes, MAX_HANDSHAKE_BYTES, LimitBroken::Bytes)?;
        let mut rest = body;
        while !rest.is_empty() {
            let fragment = Fragment::read(rest).ok_or(LimitBroken::Fragment)?;
            within(fragment.total, MAX_MESSAGE, LimitBroken::Message)?;
            let end = fragment.offset + fragment.body.len();
            let empty = fragment.body.is_empty() && fragment.total > 0;
            if end > fragment.total || empty {
                return Err(LimitBroken::Fragment);
            }
            let count = self
                .fragments
                .get_mut(usize::from(fragment.message))
                .ok_or(LimitBroken::Fragments)?;
            *count += 1;
            within(usize::from(*count), usize::from(MAX_FRAGMENTS), LimitBroken::Fragments)?;
            rest = fragment.rest;
        }
        Ok(())
    }
}

fn within(value: usize, limit: usize, otherwise: LimitBroken) -> Result<(), LimitBroken> {
    if value <= limit { Ok(()) } else { Err(otherwise) }
}

/// One handshake fragment (RFC 6347 §4.2.2).
#[derive(Clone, Copy, Debug)]
pub struct Fragment<'a> {
    /// Handshake type; 1 is a ClientHello.
    pub kind: u8,
    /// Length of the whole message.
    pub total: usize,
    /// Sequence number of the message.
    pub message: u16,
    /// Offset of the fragment in the message.
    pub offset: usize,
    pub body: &'a [u8],
    /// Bytes after the fragment in the record.
    pub rest: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Reads a fragment; `None` if it is truncated.
    pub fn read(record: &'a [u8]) -> Option<Self> {
        let (header, after) = record.split_first_chunk::<MESSAGE_HEADER>()?;
        let triple = |at: usize| {
            Some(u32::from_be_bytes([0, *header.get(at)?, *header.get(at + 1)?, *header.get(at + 2)?]) as usize)
        };
        let (body, rest) = after.split_at_checked(triple(9)?)?;
        let message = u16::from_be_bytes([header[4], header[5]]);
        Some(Self {
            kind: header[0],
            total: triple(1)?,
            message,
            offset: triple(6)?,
            body,
            rest,
        })
    }
}

/// Returns whether a datagram holds only handshake records in clear text.
pub fn is_plain_handshake(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER>() {
        let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
        if header[0] != HANDSHAKE || header[3..5] != [0, 0] {
            return false;
        }
        rest = after.get(length..).unwrap_or_default();
    }
    true
}

/// Returns the content type and the epoch of each record of a datagram (RFC 6347 §4.1).
pub fn kinds(datagram: &[u8]) -> Vec<(u8, u16)> {
    let mut kinds = Vec::new();
    let mut rest = datagram;
    while let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER>() {
        kinds.push((header[0], u16::from_be_bytes([header[3], header[4]])));
        let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
        rest = after.get(length..).unwrap_or_default();
    }
    kinds
}

/// Returns the fragments of the clear-text handshake records of a datagram.
pub fn fragments(datagram: &[u8]) -> Vec<Fragment<'_>> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER>() {
        let length = usize::from(u16::from_be_bytes([header[11], header[12]]));
        let Some((mut body, next)) = after.split_at_checked(length) else {
            break;
        };
        let plain_handshake = header[0] == HANDSHAKE && header[3..5] == [0, 0];
        while plain_handshake && let Some(fragment) = Fragment::read(body) {
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

    fn admit_fragment(guard: &mut Guard, fragment: &[u8]) -> Result<usize, LimitBroken> {
        guard
            .admit(&record(HANDSHAKE, 0, fragment))
            .map(|records| records.len())
    }

    #[test]
    fn a_regular_flight_passes_unchanged() {
        let mut datagram = record(HANDSHAKE, 0, &fragment(0, 4, 0, 4, b"abcd"));
        datagram.extend(record(CHANGE_CIPHER_SPEC, 0, &[1]));
        datagram.extend(record(HANDSHAKE, 1, &[0; 40]));
        assert_eq!(Guard::default().admit(&datagram), Ok(datagram));
    }

    #[test]
    fn a_fragment_must_match_its_header() {
        for lie in [
            fragment(0, 100, 0, 50, b"short"),
            fragment(0, 10, 8, 5, b"12345"),
            fragment(0, 10, 0, 0, b""),
            b"short".to_vec(),
        ] {
            assert_eq!(admit_fragment(&mut Guard::default(), &lie), Err(LimitBroken::Fragment));
        }
        assert!(
            admit_fragment(&mut Guard::default(), &fragment(3, 0, 0, 0, b"")).is_ok(),
            "ServerHelloDone"
        );
        let long = fragment(0, MAX_MESSAGE as u32 + 1, 0, 1, b"x");
        assert_eq!(admit_fragment(&mut Guard::default(), &long), Err(LimitBroken::Message));
    }

    #[test]
    fn a_message_comes_in_a_bounded_number_of_fragments() {
        let mut guard = Guard::default();
        let mut broken = None;
        // Last offset first: the most expensive order to reassemble.
        for offset in (0..28_000u32).rev() {
            if let Err(limit) = admit_fragment(&mut guard, &fragment(0, 16_000, offset % 16_000, 1, b"x")) {
                broken = Some((28_000 - offset, limit));
                break;
            }
        }
        assert_eq!(broken, Some((u32::from(MAX_FRAGMENTS) + 1, LimitBroken::Fragments)));
        assert_eq!(
            admit_fragment(&mut guard, &fragment(32, 1, 0, 1, b"x")),
            Err(LimitBroken::Fragments)
        );
    }

    #[test]
    fn records_and_bytes_of_a_handshake_are_bounded() {
        let mut guard = Guard::default();
        let results: Vec<_> = (0..8u16)
            .map(|m| admit_fragment(&mut guard, &fragment(m, 16_000, 0, 16_000, &[0; 16_000])))
            .collect();
        assert!(results.contains(&Err(LimitBroken::Bytes)), "{results:?}");
        let mut guard = Guard::default();
        let spec = record(CHANGE_CIPHER_SPEC, 0, &[1]);
        let passed = (0..1_000).take_while(|_| guard.admit(&spec).is_ok()).count();
        assert_eq!(passed, MAX_HANDSHAKE_RECORDS);
    }

    #[test]
    fn early_records_of_the_next_epoch_are_bounded() {
        let mut guard = Guard::default();
        let early = record(23, 1, &[0; 1_000]);
        let passed = (0..1_000).take_while(|_| guard.admit(&early).is_ok()).count();
        assert_eq!(passed, MAX_EARLY_RECORDS);
    }

    #[test]
    fn clear_text_records_are_dropped_after_the_handshake() {
        let mut guard = Guard::default();
        guard.establish();
        for content in [CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, 23, 99] {
            for _ in 0..1_000 {
                assert_eq!(guard.admit(&record(content, 0, &[2, 40])), Ok(vec![]));
            }
        }
        assert_eq!(guard.drops()[DropReason::PlainText as usize], 5_000);
        let application_data = record(23, 1, &[0; 30]);
        for _ in 0..1_000 {
            assert_eq!(guard.admit(&application_data).as_ref(), Ok(&application_data));
        }
    }

    #[test]
    fn unexpected_encrypted_records_are_dropped() {
        for established in [false, true] {
            let mut guard = Guard {
                established,
                ..Guard::default()
            };
            let finished = record(HANDSHAKE, 1, &[0; 48]);
            assert_eq!(guard.admit(&finished).as_ref(), Ok(&finished));
            for dropped in [
                record(HANDSHAKE, 1, &[0; MAX_FINISHED_RECORD + 1]),
                record(CHANGE_CIPHER_SPEC, 1, &[1]),
                record(23, 2, &[0; 30]),
            ] {
                assert_eq!(guard.admit(&dropped), Ok(vec![]), "{established}");
            }
        }
        let mut guard = Guard::default();
        guard.establish();
        let finished = record(HANDSHAKE, 1, &[0; 48]);
        let passed = (0..1_000)
            .filter(|_| guard.admit(&finished) == Ok(finished.clone()))
            .count();
        assert_eq!(passed, MAX_HANDSHAKE_RECORDS);
    }
}
