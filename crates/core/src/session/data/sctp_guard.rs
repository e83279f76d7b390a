//! Guard in front of the SCTP stack: limits what a peer may send, before anything is parsed further (RFC 9260 §3).
//!
//! What no stack sends ends the data transport; what exceeds a rate or a window is dropped, as if it were lost, and the
//! congestion control of the peer adapts. The session goes on in both cases.

use std::time::Instant;

use thiserror::Error;

use super::tsn_window::TsnWindow;
use crate::hub::rate_limit::TokenBucket;
use crate::sdp::negotiation_result::DataPeerRole;

/// Filters the SCTP packets of one session.
#[derive(Debug)]
pub(super) struct SctpGuard {
    packets: TokenBucket,
    bytes: TokenBucket,
    acknowledgements: TokenBucket,
    /// Chunks that may wait for the rest of their message, or for earlier messages.
    max_undelivered_chunks: u32,
    undelivered_chunks: u32,
    /// The initiate tag of the first INIT.
    initiate_tag: Option<u32>,
    is_established: bool,
    received: TsnWindow,
}

/// Why a packet is not passed to the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SctpRejection {
    /// It is dropped.
    Drop(SctpDropReason),
    /// The data transport ends.
    End(SctpLimitExceeded),
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SctpDropReason {
    /// Its chunks do not fill it.
    Malformed,
    /// It comes before an INIT, opens a second association, or has a chunk that is not for the gateway.
    Unexpected,
    /// Its sequence number is too far ahead of what was received.
    SequenceAhead,
    /// The peer sends too much.
    Rate,
    /// It breaks a limit, and the data transport ends.
    Limit,
}

impl SctpDropReason {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 5] = [
        Self::Malformed,
        Self::Unexpected,
        Self::SequenceAhead,
        Self::Rate,
        Self::Limit,
    ];

    /// Label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unexpected => "unexpected",
            Self::SequenceAhead => "sequence_ahead",
            Self::Rate => "rate",
            Self::Limit => "limit",
        }
    }
}

/// The peer exceeded a limit; the data transport must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum SctpLimitExceeded {
    #[error("the peer sent an SCTP packet of more than {MAX_PACKET_LEN} bytes")]
    PacketLength,
    #[error("the peer sent an SCTP packet of more than {MAX_CHUNKS_PER_PACKET} chunks")]
    ChunkCount,
    #[error("the peer used an SCTP stream id above {}", MAX_STREAMS - 1)]
    StreamId,
    #[error(
        "the peer advanced its SCTP TSN by more than {} at once (FORWARD-TSN)",
        TsnWindow::MAX_TSNS_AHEAD
    )]
    SequenceJump,
    #[error("the peer reset more than {MAX_STREAMS} SCTP streams at once, or a stream id above {}", MAX_STREAMS - 1)]
    StreamReset,
    #[error("the peer sent too many fragments of SCTP messages that it never completed")]
    UndeliveredChunks,
}

/// Longest packet in bytes: what fits the path of a video packet. Chromium sends up to 1,191, Firefox and libdatachannel
/// up to 1,228.
pub(super) const MAX_PACKET_LEN: usize = 1_280;
/// As many chunks of the shortest DATA as fit a packet: browsers bundle the messages of a burst.
pub(super) const MAX_CHUNKS_PER_PACKET: usize = 64;
/// Streams, and so channels, of each association: half of them are the peer's (RFC 8832 §6).
pub(super) const MAX_STREAMS: u16 = 16;

/// Packets a second from a viewer that are more than acknowledgements.
const MAX_PACKETS_PER_SECOND_FROM_VIEWER: u32 = 200;
const MAX_PACKETS_PER_SECOND_FROM_PUBLISHER: u32 = 2_000;
const MAX_BYTES_PER_SECOND_FROM_VIEWER: u32 = 64 << 10;
const MAX_BYTES_PER_SECOND_FROM_PUBLISHER: u32 = 1 << 20;
/// Packets a second that only acknowledge: their number follows from what the gateway sends.
const MAX_ACKNOWLEDGEMENTS_PER_SECOND: u32 = 2_000;

/// More than can be out of order. A chunk that waits takes about 600 bytes of memory besides its payload.
const MAX_UNDELIVERED_CHUNKS_FROM_VIEWER: u32 = 1_536;
/// A publisher may give up large messages of unreliable channels, whose fragments stay counted.
const MAX_UNDELIVERED_CHUNKS_FROM_PUBLISHER: u32 = u32::MAX;

const COMMON_HEADER_LEN: usize = 12;

const DATA: u8 = 0;
const INIT: u8 = 1;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const SHUTDOWN_COMPLETE: u8 = 14;
const RE_CONFIG: u8 = 130;
const FORWARD_TSN: u8 = 192;

/// Outgoing SSN reset request (RFC 6525 §4.1), and the length of its fixed part.
const OUTGOING_SSN_RESET_REQUEST: u16 = 13;
const OUTGOING_SSN_RESET_REQUEST_LEN: usize = 16;
const PARAMETER_HEADER_LEN: usize = 4;

impl SctpGuard {
    pub(super) fn new(role: DataPeerRole) -> Self {
        let (packets, bytes, undelivered) = match role {
            DataPeerRole::Viewer => (
                MAX_PACKETS_PER_SECOND_FROM_VIEWER,
                MAX_BYTES_PER_SECOND_FROM_VIEWER,
                MAX_UNDELIVERED_CHUNKS_FROM_VIEWER,
            ),
            DataPeerRole::Publisher => (
                MAX_PACKETS_PER_SECOND_FROM_PUBLISHER,
                MAX_BYTES_PER_SECOND_FROM_PUBLISHER,
                MAX_UNDELIVERED_CHUNKS_FROM_PUBLISHER,
            ),
        };
        Self {
            packets: TokenBucket::new(packets),
            bytes: TokenBucket::new(bytes),
            acknowledgements: TokenBucket::new(MAX_ACKNOWLEDGEMENTS_PER_SECOND),
            max_undelivered_chunks: undelivered,
            undelivered_chunks: 0,
            initiate_tag: None,
            is_established: false,
            received: TsnWindow::default(),
        }
    }

    /// The association is established: an INIT is not for it.
    pub(super) fn mark_established(&mut self) {
        self.is_established = true;
    }

    /// The stack returned a message of so many chunks.
    pub(super) fn on_message_delivered(&mut self, chunk_count: usize) {
        let count = u32::try_from(chunk_count).unwrap_or(u32::MAX);
        self.undelivered_chunks = self.undelivered_chunks.saturating_sub(count);
    }

    /// Reads from a packet of the gateway up to where the stack has received everything.
    pub(super) fn record_sent_sacks(&mut self, packet: &[u8]) {
        for chunk in Chunks::of_packet(packet).flatten() {
            if let (SACK, Some(cumulative)) = (chunk.kind, read_u32(chunk.value, 0)) {
                self.received.advance_to(cumulative);
            }
        }
    }

    /// Decides whether a packet may be passed to the stack.
    ///
    /// # Errors
    ///
    /// A [`SctpRejection`].
    pub(super) fn admit_packet(&mut self, now: Instant, packet: &[u8]) -> Result<(), SctpRejection> {
        if packet.len() > MAX_PACKET_LEN {
            return Err(SctpRejection::End(SctpLimitExceeded::PacketLength));
        }
        let mut only_acknowledges = true;
        let mut count = 0;
        for chunk in Chunks::of_packet(packet) {
            let chunk = chunk.ok_or(SctpRejection::Drop(SctpDropReason::Malformed))?;
            count += 1;
            if count > MAX_CHUNKS_PER_PACKET {
                return Err(SctpRejection::End(SctpLimitExceeded::ChunkCount));
            }
            only_acknowledges &= chunk.kind == SACK;
            self.validate_chunk(&chunk)?;
        }
        if count == 0 {
            return Err(SctpRejection::Drop(SctpDropReason::Malformed));
        }
        self.consume_rate_limits(now, packet.len(), only_acknowledges)?;
        self.count_new_data_chunks(packet)
    }

    fn validate_chunk(&mut self, chunk: &Chunk<'_>) -> Result<(), SctpRejection> {
        const UNEXPECTED_CHUNK_DROP: SctpRejection = SctpRejection::Drop(SctpDropReason::Unexpected);
        const MALFORMED_CHUNK_DROP: SctpRejection = SctpRejection::Drop(SctpDropReason::Malformed);
        match chunk.kind {
            INIT => self.accept_init_chunk(chunk.value),
            _ if self.initiate_tag.is_none() => Err(UNEXPECTED_CHUNK_DROP),
            DATA => self.validate_data_chunk(chunk.value),
            FORWARD_TSN => {
                let cumulative = read_u32(chunk.value, 0).ok_or(MALFORMED_CHUNK_DROP)?;
                match self.received.is_old_or_in_window(cumulative) {
                    true => Ok(()),
                    false => Err(SctpRejection::End(SctpLimitExceeded::SequenceJump)),
                }
            }
            RE_CONFIG => validate_stream_reset(chunk.value),
            SACK | HEARTBEAT | ABORT | SHUTDOWN | SHUTDOWN_ACK | COOKIE_ECHO | SHUTDOWN_COMPLETE => Ok(()),
            // The gateway neither opens associations nor sends heartbeats, and errors of the peer need no answer.
            _ => Err(UNEXPECTED_CHUNK_DROP),
        }
    }

    /// One association for each session (RFC 8841 §5): the first INIT decides, and it may be repeated until it is answered.
    fn accept_init_chunk(&mut self, value: &[u8]) -> Result<(), SctpRejection> {
        let fields = (read_u32(value, 0), read_u32(value, 12));
        let (Some(tag), Some(initial_tsn)) = fields else {
            return Err(SctpRejection::Drop(SctpDropReason::Malformed));
        };
        if self.is_established || self.initiate_tag.is_some_and(|first| first != tag) {
            return Err(SctpRejection::Drop(SctpDropReason::Unexpected));
        }
        if self.initiate_tag.is_none() {
            self.initiate_tag = Some(tag);
            self.received.reset_to_initial_tsn(initial_tsn);
        }
        Ok(())
    }

    fn validate_data_chunk(&self, value: &[u8]) -> Result<(), SctpRejection> {
        let fields = (read_u32(value, 0), read_u16(value, 4));
        let (Some(tsn), Some(stream)) = fields else {
            return Err(SctpRejection::Drop(SctpDropReason::Malformed));
        };
        if stream >= MAX_STREAMS {
            return Err(SctpRejection::End(SctpLimitExceeded::StreamId));
        }
        match self.received.is_old_or_in_window(tsn) {
            true => Ok(()),
            false => Err(SctpRejection::Drop(SctpDropReason::SequenceAhead)),
        }
    }

    fn consume_rate_limits(
        &mut self,
        now: Instant,
        length: usize,
        only_acknowledges: bool,
    ) -> Result<(), SctpRejection> {
        let is_allowed = match only_acknowledges {
            true => self.acknowledgements.try_take_tokens(now, 1),
            false => self.packets.try_take_tokens(now, 1) && self.bytes.try_take_tokens(now, length as u64),
        };
        match is_allowed {
            true => Ok(()),
            false => Err(SctpRejection::Drop(SctpDropReason::Rate)),
        }
    }

    /// Counts the DATA chunks of an accepted packet that were not received before.
    fn count_new_data_chunks(&mut self, packet: &[u8]) -> Result<(), SctpRejection> {
        for chunk in Chunks::of_packet(packet).flatten() {
            if let (DATA, Some(tsn)) = (chunk.kind, read_u32(chunk.value, 0)) {
                self.undelivered_chunks += u32::from(self.received.insert(tsn));
            }
        }
        match self.undelivered_chunks > self.max_undelivered_chunks {
            true => Err(SctpRejection::End(SctpLimitExceeded::UndeliveredChunks)),
            false => Ok(()),
        }
    }
}

/// RFC 6525 §4: one or two parameters. Browsers reset one stream at a time.
fn validate_stream_reset(mut parameters: &[u8]) -> Result<(), SctpRejection> {
    const TOO_MANY_STREAM_RESETS: SctpRejection = SctpRejection::End(SctpLimitExceeded::StreamReset);
    while !parameters.is_empty() {
        let fields = (read_u16(parameters, 0), read_u16(parameters, 2));
        let (Some(kind), Some(length)) = fields else {
            return Err(SctpRejection::Drop(SctpDropReason::Malformed));
        };
        let length = usize::from(length);
        let Some(parameter) = parameters.get(..length).filter(|_| length >= PARAMETER_HEADER_LEN) else {
            return Err(SctpRejection::Drop(SctpDropReason::Malformed));
        };
        if kind == OUTGOING_SSN_RESET_REQUEST {
            let ids = parameter.get(OUTGOING_SSN_RESET_REQUEST_LEN..).unwrap_or_default();
            let ids = ids.chunks_exact(2).map(|id| u16::from_be_bytes([id[0], id[1]]));
            if ids.clone().count() > usize::from(MAX_STREAMS) || ids.clone().any(|id| id >= MAX_STREAMS) {
                return Err(TOO_MANY_STREAM_RESETS);
            }
        }
        parameters = parameters.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// A chunk of a packet (RFC 9260 §3.2).
struct Chunk<'a> {
    kind: u8,
    value: &'a [u8],
}

/// The chunks of a packet; `None` for one that does not fit, which is the last.
struct Chunks<'a> {
    rest: &'a [u8],
}

impl<'a> Chunks<'a> {
    fn of_packet(packet: &'a [u8]) -> Self {
        Self {
            rest: packet.get(COMMON_HEADER_LEN..).unwrap_or_default(),
        }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Option<Chunk<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        let Some(([kind, _, high, low], _)) = rest.split_first_chunk::<4>() else {
            return Some(None);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(value) = rest.get(4..length) else {
            return Some(None);
        };
        self.rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Some(Chunk { kind: *kind, value }))
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_be_bytes(*chunk))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests;
