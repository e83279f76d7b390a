//! The SCTP stack behind the guard: one association, opened by the peer (RFC 9260, RFC 8831 §6).

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sctp_proto::{
    Association, AssociationHandle, DatagramEvent, Endpoint, EndpointConfig, Event, Payload, PayloadProtocolIdentifier,
    ReliabilityType, ServerConfig, StreamEvent, TransportConfig,
};

use super::crc32c::crc32c;
use super::dcep::{ChannelReliability, DataChannelOpen};
use super::sctp_guard::MAX_STREAMS;
use crate::media::data_message::DataPayload;
use crate::sdp::negotiation_result::NegotiatedDataChannels;

/// One association.
pub(super) struct SctpAssociation {
    endpoint: Endpoint,
    association: Option<(AssociationHandle, Association)>,
    is_connected: bool,
    /// Ports and verification tag of the packets to the peer.
    sent_header: Option<[u8; 8]>,
    events: VecDeque<AssociationEvent>,
    packets: VecDeque<Bytes>,
}

/// What an association reports.
pub(super) enum AssociationEvent {
    Connected,
    Message(ReceivedMessage),
    /// The peer reset the stream, and the stack does the same (RFC 8831 §6.7).
    StreamClosed(u16),
    /// Both directions are reset: the id can be used again.
    StreamReset(u16),
}

/// A whole message.
pub(super) struct ReceivedMessage {
    pub(super) stream_id: u16,
    pub(super) kind: MessageKind,
    pub(super) bytes: Bytes,
    /// Chunks that it came in.
    pub(super) chunk_count: usize,
}

/// Kind of a message, by its payload protocol identifier (RFC 8831 §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    Dcep,
    Text,
    Binary,
    Unknown,
}

/// The stack tells peers apart by address; there is one.
const PLACEHOLDER_PEER_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);

/// Payload of the longest DATA chunk: packets have up to 1,188 bytes, and up to 1,225 within DTLS.
const MAX_CHUNK_PAYLOAD: u32 = 1_160;

/// Received bytes that may wait for the rest of their message, or for earlier messages.
const MAX_RECEIVE_BUFFER_BYTES: u32 = 64 << 10;

/// Waits before something is sent again, in milliseconds: as Chromium has them, since RFC 9260 §16 means the Internet of
/// 2000.
const INITIAL_RETRANSMIT_TIMEOUT_MS: u64 = 500;
const MIN_RETRANSMIT_TIMEOUT_MS: u64 = 400;
const MAX_RETRANSMIT_TIMEOUT_MS: u64 = 10_000;

/// A peer that acknowledges nothing of so many attempts has lost its association.
const MAX_RETRANSMITS: usize = 10;

/// Length of an ABORT without causes (RFC 9260 §3.3.7), and its chunk type.
const ABORT_CHUNK: [u8; 4] = [6, 0, 0, 4];

impl SctpAssociation {
    pub(super) fn new(negotiated: &NegotiatedDataChannels) -> Self {
        let transport = TransportConfig::default()
            .with_max_receive_buffer_size(MAX_RECEIVE_BUFFER_BYTES)
            .with_max_receive_message_size(negotiated.peer_role.max_received_message_size())
            .with_max_send_message_size(negotiated.max_sent_message_size)
            .with_max_num_inbound_streams(MAX_STREAMS)
            .with_max_num_outbound_streams(MAX_STREAMS)
            .with_max_data_retransmits(Some(MAX_RETRANSMITS))
            .with_rto_initial_ms(INITIAL_RETRANSMIT_TIMEOUT_MS)
            .with_rto_min_ms(MIN_RETRANSMIT_TIMEOUT_MS)
            .with_rto_max_ms(MAX_RETRANSMIT_TIMEOUT_MS);
        let mut server = ServerConfig::new();
        server.transport = Arc::new(transport);
        let mut config = EndpointConfig::new();
        config.max_payload_size(MAX_CHUNK_PAYLOAD);
        Self {
            endpoint: Endpoint::new(Arc::new(config), Some(Arc::new(server))),
            association: None,
            is_connected: false,
            sent_header: None,
            events: VecDeque::new(),
            packets: VecDeque::new(),
        }
    }

    pub(super) fn handle_packet(&mut self, now: Instant, packet: Bytes) {
        let Some((handle, event)) = self.endpoint.handle(now, PLACEHOLDER_PEER_ADDRESS, None, None, packet) else {
            return;
        };
        match (event, &mut self.association) {
            (DatagramEvent::NewAssociation(association), None) => {
                self.association = Some((handle, association));
                self.endpoint.reject_new_associations();
            }
            (DatagramEvent::AssociationEvent(event), Some((own, association))) if *own == handle => {
                association.handle_event(event);
            }
            (DatagramEvent::NewAssociation(_) | DatagramEvent::AssociationEvent(_), _) => {}
        }
        self.collect_events();
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some((_, association)) = &mut self.association {
            association.handle_timeout(now);
        }
        self.collect_events();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.association
            .as_ref()
            .and_then(|(_, association)| association.poll_timeout())
    }

    pub(super) fn poll_event(&mut self) -> Option<AssociationEvent> {
        self.events.pop_front()
    }

    pub(super) fn poll_packet(&mut self, now: Instant) -> Option<Bytes> {
        if self.packets.is_empty()
            && let Some((_, association)) = &mut self.association
        {
            while let Some(transmit) = association.poll_transmit(now) {
                if let Payload::RawEncode(packets) = transmit.payload {
                    self.packets.extend(packets);
                }
            }
        }
        let packet = self.packets.pop_front()?;
        self.sent_header = packet.first_chunk::<8>().copied();
        Some(packet)
    }

    /// Whether the association has ended.
    pub(super) fn is_closed(&self) -> bool {
        let association = self.association.as_ref();
        association.is_some_and(|(_, association)| self.is_connected && association.is_closed())
    }

    /// Returns the packet that tells the peer that the association has ended; `None` if the peer knows of none.
    pub(super) fn build_abort_packet(&self) -> Option<Bytes> {
        let header = self.sent_header?;
        let mut packet = [header.as_slice(), &[0; 4], &ABORT_CHUNK].concat();
        // RFC 9260 §6.8: computed with zeros in its place, and written with its lowest byte first.
        let checksum = crc32c(&packet).to_le_bytes();
        packet.get_mut(8..12)?.copy_from_slice(&checksum);
        Some(packet.into())
    }

    /// Opens a stream. Returns whether that was possible.
    pub(super) fn open_stream(&mut self, stream_id: u16) -> bool {
        let association = self.association.as_mut();
        association.is_some_and(|(_, association)| {
            let opened = association.open_stream(stream_id, PayloadProtocolIdentifier::Binary);
            opened.is_ok()
        })
    }

    /// Applies to what is sent what the peer chose for its channel (RFC 8832 §5.1).
    pub(super) fn set_reliability(&mut self, stream_id: u16, open: &DataChannelOpen) {
        let (kind, value) = match open.reliability {
            ChannelReliability::Reliable => (ReliabilityType::Reliable, 0),
            ChannelReliability::MaxRetransmits(count) => (ReliabilityType::Rexmit, count),
            ChannelReliability::MaxLifetimeMilliseconds(milliseconds) => (ReliabilityType::Timed, milliseconds),
        };
        if let Some((_, association)) = &mut self.association
            && let Ok(mut stream) = association.stream(stream_id)
        {
            let _ = stream.set_reliability_params(open.is_unordered, kind, value);
        }
    }

    /// Writes a message of DCEP. Returns whether it was taken.
    pub(super) fn write_dcep(&mut self, stream_id: u16, message: &[u8]) -> bool {
        self.write_with_ppid(stream_id, message, PayloadProtocolIdentifier::Dcep)
    }

    /// Writes a message. Returns whether it was taken.
    pub(super) fn write(&mut self, stream_id: u16, payload: &DataPayload) -> bool {
        // RFC 8831 §6.6: SCTP has no empty messages, so one byte stands for them.
        let (ppid, bytes) = match payload {
            DataPayload::Text(text) if text.is_empty() => (PayloadProtocolIdentifier::StringEmpty, [0].as_slice()),
            DataPayload::Text(text) => (PayloadProtocolIdentifier::String, text.as_bytes()),
            DataPayload::Binary(bytes) if bytes.is_empty() => (PayloadProtocolIdentifier::BinaryEmpty, [0].as_slice()),
            DataPayload::Binary(bytes) => (PayloadProtocolIdentifier::Binary, bytes.as_ref()),
        };
        self.write_with_ppid(stream_id, bytes, ppid)
    }

    fn write_with_ppid(&mut self, stream_id: u16, bytes: &[u8], ppid: PayloadProtocolIdentifier) -> bool {
        let association = self.association.as_mut();
        association
            .and_then(|(_, association)| association.stream(stream_id).ok()?.write_with_ppi(bytes, ppid).ok())
            .is_some()
    }

    /// Returns the bytes of a stream that the peer has not acknowledged.
    pub(super) fn buffered_amount(&mut self, stream_id: u16) -> usize {
        let association = self.association.as_mut();
        association
            .and_then(|(_, association)| association.stream(stream_id).ok()?.buffered_amount().ok())
            .unwrap_or(0)
    }

    fn collect_events(&mut self) {
        while let Some(event) = self
            .association
            .as_mut()
            .and_then(|(_, association)| association.poll())
        {
            match event {
                Event::Connected => {
                    self.is_connected = true;
                    self.events.push_back(AssociationEvent::Connected);
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read_stream_messages(id),
                Event::Stream(StreamEvent::Finished { id }) => {
                    self.events.push_back(AssociationEvent::StreamClosed(id));
                }
                Event::Stream(StreamEvent::ResetComplete { id } | StreamEvent::ResetFailed { id, .. }) => {
                    self.events.push_back(AssociationEvent::StreamReset(id));
                }
                _ => {}
            }
        }
    }

    /// Reads all messages of a stream: the stack reports each time that it becomes readable, and not each message.
    fn read_stream_messages(&mut self, stream_id: u16) {
        let Some((_, association)) = &mut self.association else {
            return;
        };
        let Ok(mut stream) = association.stream(stream_id) else {
            return;
        };
        while let Ok(Some(message)) = stream.read_sctp() {
            let mut bytes = vec![0; message.len()];
            if message.read(&mut bytes).is_err() {
                continue;
            }
            let kind = match message.ppi {
                PayloadProtocolIdentifier::Dcep => MessageKind::Dcep,
                PayloadProtocolIdentifier::String => MessageKind::Text,
                PayloadProtocolIdentifier::Binary => MessageKind::Binary,
                PayloadProtocolIdentifier::StringEmpty => {
                    bytes.clear();
                    MessageKind::Text
                }
                PayloadProtocolIdentifier::BinaryEmpty => {
                    bytes.clear();
                    MessageKind::Binary
                }
                PayloadProtocolIdentifier::Unknown => MessageKind::Unknown,
            };
            self.events.push_back(AssociationEvent::Message(ReceivedMessage {
                stream_id,
                kind,
                bytes: bytes.into(),
                chunk_count: message.chunks.len(),
            }));
        }
    }
}
