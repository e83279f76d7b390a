//! Data channels of one session: SCTP over DTLS (RFC 8831), opened by DCEP (RFC 8832). Sans-IO like the session.
//!
//! SCTP packets go in by [`DataTransport::handle_packet`], behind a [guard](sctp_guard); packets to send, events and the
//! next deadline come out by `poll_*`. Peers open associations and the gateway answers: browsers, libdatachannel and
//! aiortc all do. If the peer breaks a limit of the guard, the association is aborted and the session goes on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::debug;

mod association;
mod channel;
mod crc32c;
mod dcep;
mod sctp_guard;
mod tsn_window;

use self::association::{AssociationEvent, MessageKind, ReceivedMessage, SctpAssociation};
use self::channel::{DataChannel, DataChannels};
use self::dcep::{DATA_CHANNEL_ACK, DataChannelOpen, DcepMessage};
pub use self::sctp_guard::SctpDropReason;
use self::sctp_guard::{SctpGuard, SctpRejection};
use crate::hub::rate_limit::TokenBucket;
use crate::media::data_message::{DataLabel, DataMessage, DataPayload};
use crate::sdp::negotiation_result::{DataPeerRole, DtlsRole, NegotiatedDataChannels};

/// The data channels of one session.
pub struct DataTransport {
    negotiated: NegotiatedDataChannels,
    /// Lowest bit of the ids of the streams that the gateway opens (RFC 8832 §6).
    own_stream_id_parity: u16,
    state: DataTransportState,
    packets: VecDeque<Bytes>,
    events: VecDeque<DataEvent>,
}

enum DataTransportState {
    /// Nothing has arrived from the peer.
    Idle,
    Open(Box<ActiveDataTransport>),
    Ended,
}

struct ActiveDataTransport {
    guard: SctpGuard,
    association: SctpAssociation,
    channels: DataChannels,
    readiness: SendReadiness,
    /// Messages of a viewer; `None` for a publisher, whom the guard limits.
    message_limit: Option<TokenBucket>,
}

/// Whether messages are sent to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendReadiness {
    NotConnected,
    /// The peer is about to open its channels. A message that is sent before would open a second one with the same label.
    AwaitingChannels {
        until: Instant,
    },
    Ready,
}

/// How long a peer that has connected may take to open its first channel.
const MAX_CHANNEL_OPEN_DELAY: Duration = Duration::from_millis(500);

/// Messages a second from a viewer: each may go to all others.
const MAX_MESSAGES_PER_SECOND_FROM_VIEWER: u32 = 20;

/// What a data transport tells the owner of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataEvent {
    /// Messages can be sent: the peer has opened its first channels, or had the time to.
    Ready,
    Message(DataMessage),
    /// A message was dropped.
    MessageIgnored(IgnoredMessageReason),
    /// An SCTP packet was dropped.
    PacketDropped(SctpDropReason),
}

/// Why a message of a peer was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgnoredMessageReason {
    /// It came on a channel without a valid label, or its text is not UTF-8.
    Invalid,
    /// A viewer sends too many messages.
    Rate,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataSendError {
    #[error("no SCTP association for data channels is open with the peer")]
    NotConnected,
    #[error("the message is longer than the peer accepts (`a=max-message-size` in its SDP)")]
    TooLong,
    #[error(
        "no further data channel can be opened to the peer: all SCTP stream ids that the gateway may use in this \
         session are in use"
    )]
    TooManyChannels,
    #[error("message not sent: the send buffer of the data channels of this peer is full")]
    TooSlow,
}

impl DataTransport {
    pub fn new(negotiated: NegotiatedDataChannels, gateway_dtls_role: DtlsRole) -> Self {
        Self {
            negotiated,
            own_stream_id_parity: match gateway_dtls_role {
                DtlsRole::Client => 0,
                DtlsRole::Server => 1,
            },
            state: DataTransportState::Idle,
            packets: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes an SCTP packet.
    pub fn handle_packet(&mut self, now: Instant, packet: Bytes) {
        if let DataTransportState::Idle = self.state {
            let open = ActiveDataTransport::new(&self.negotiated, self.own_stream_id_parity);
            self.state = DataTransportState::Open(Box::new(open));
        }
        let DataTransportState::Open(open) = &mut self.state else {
            return;
        };
        match open.guard.admit_packet(now, &packet) {
            Ok(()) => {}
            Err(SctpRejection::Drop(reason)) => return self.events.push_back(DataEvent::PacketDropped(reason)),
            Err(SctpRejection::End(limit)) => {
                debug!(
                    %limit,
                    "all data channels of a session are being closed, because the peer exceeded a limit (see `limit`); \
                     the session continues"
                );
                self.events.push_back(DataEvent::PacketDropped(SctpDropReason::Limit));
                return self.end();
            }
        }
        open.association.handle_packet(now, packet);
        self.drain_association_outputs(now);
    }

    /// Does what is due by time.
    pub fn handle_timeout(&mut self, now: Instant) {
        let DataTransportState::Open(open) = &mut self.state else {
            return;
        };
        if open.association.poll_timeout().is_some_and(|at| at <= now) {
            open.association.handle_timeout(now);
        }
        if matches!(open.readiness, SendReadiness::AwaitingChannels { until } if until <= now) {
            open.readiness = SendReadiness::Ready;
            self.events.push_back(DataEvent::Ready);
        }
        self.drain_association_outputs(now);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            DataTransportState::Open(open) => {
                let readiness = match open.readiness {
                    SendReadiness::AwaitingChannels { until } => Some(until),
                    SendReadiness::NotConnected | SendReadiness::Ready => None,
                };
                open.association.poll_timeout().into_iter().chain(readiness).min()
            }
            DataTransportState::Idle | DataTransportState::Ended => None,
        }
    }

    /// The next SCTP packet to be sent.
    pub fn poll_packet(&mut self) -> Option<Bytes> {
        self.packets.pop_front()
    }

    /// The next thing that the owner has to know.
    pub fn poll_event(&mut self) -> Option<DataEvent> {
        self.events.pop_front()
    }

    /// Sends a message on the channel with its label, which is opened if the peer has not.
    ///
    /// # Errors
    ///
    /// A [`DataSendError`]; nothing is sent.
    pub fn send(&mut self, now: Instant, message: &DataMessage) -> Result<(), DataSendError> {
        let DataTransportState::Open(open) = &mut self.state else {
            return Err(DataSendError::NotConnected);
        };
        open.send(&self.negotiated, message)?;
        self.drain_association_outputs(now);
        Ok(())
    }

    /// Aborts the association, and takes nothing any more.
    pub(super) fn end(&mut self) {
        if let DataTransportState::Open(open) = &self.state {
            self.packets.extend(open.association.build_abort_packet());
        }
        self.state = DataTransportState::Ended;
    }

    fn drain_association_outputs(&mut self, now: Instant) {
        let DataTransportState::Open(open) = &mut self.state else {
            return;
        };
        while let Some(event) = open.association.poll_event() {
            match event {
                AssociationEvent::Connected => {
                    open.guard.mark_established();
                    open.readiness = SendReadiness::AwaitingChannels {
                        until: now + MAX_CHANNEL_OPEN_DELAY,
                    };
                }
                AssociationEvent::Message(message) => {
                    open.guard.on_message_delivered(message.chunk_count);
                    self.events.extend(open.receive_sctp_message(now, &message));
                }
                AssociationEvent::StreamClosed(id) => open.channels.close_channel(id),
                AssociationEvent::StreamReset(id) => open.channels.remove(id),
            }
        }
        if matches!(open.readiness, SendReadiness::AwaitingChannels { .. }) && !open.channels.is_empty() {
            open.readiness = SendReadiness::Ready;
            self.events.push_back(DataEvent::Ready);
        }
        while let Some(packet) = open.association.poll_packet(now) {
            open.guard.record_sent_sacks(&packet);
            self.packets.push_back(packet);
        }
        if open.association.is_closed() {
            debug!("the SCTP association of a session has ended");
            self.end();
        }
    }
}

impl ActiveDataTransport {
    fn new(negotiated: &NegotiatedDataChannels, own_stream_id_parity: u16) -> Self {
        Self {
            guard: SctpGuard::new(negotiated.peer_role),
            association: SctpAssociation::new(negotiated),
            channels: DataChannels::new(own_stream_id_parity),
            readiness: SendReadiness::NotConnected,
            message_limit: match negotiated.peer_role {
                DataPeerRole::Viewer => Some(TokenBucket::new(MAX_MESSAGES_PER_SECOND_FROM_VIEWER)),
                DataPeerRole::Publisher => None,
            },
        }
    }

    fn receive_sctp_message(&mut self, now: Instant, message: &ReceivedMessage) -> Option<DataEvent> {
        const INVALID_MESSAGE_IGNORED: DataEvent = DataEvent::MessageIgnored(IgnoredMessageReason::Invalid);
        let payload = match message.kind {
            MessageKind::Dcep => {
                self.accept_opened_channel(message.stream_id, &message.bytes);
                return None;
            }
            MessageKind::Text => match std::str::from_utf8(&message.bytes) {
                Ok(text) => DataPayload::Text(text.into()),
                Err(_) => return Some(INVALID_MESSAGE_IGNORED),
            },
            MessageKind::Binary => DataPayload::Binary(message.bytes.clone()),
            MessageKind::Unknown => return Some(INVALID_MESSAGE_IGNORED),
        };
        let channel = self.channels.find_by_stream_id(message.stream_id);
        let Some(label) = channel.and_then(|channel| channel.label.clone()) else {
            return Some(INVALID_MESSAGE_IGNORED);
        };
        if self
            .message_limit
            .as_mut()
            .is_some_and(|limit| !limit.try_take_tokens(now, 1))
        {
            return Some(DataEvent::MessageIgnored(IgnoredMessageReason::Rate));
        }
        Some(DataEvent::Message(DataMessage { label, payload }))
    }

    fn accept_opened_channel(&mut self, stream_id: u16, bytes: &[u8]) {
        match DcepMessage::parse(bytes) {
            Some(DcepMessage::Open(open)) => {
                // RFC 8832 §6 gives each side its ids by its DTLS role. Chromium guesses that role for a channel that a page
                // creates after its offer and before the answer, and then uses an id of the gateway.
                if self.channels.find_by_stream_id(stream_id).is_some() || !self.channels.can_peer_open_channel() {
                    return;
                }
                // A channel without a valid label is opened as well: some clients have one only for the m-section.
                let label = DataLabel::parse(&open.label).ok();
                self.association.set_reliability(stream_id, &open);
                self.association.write_dcep(stream_id, &DATA_CHANNEL_ACK);
                self.channels.insert(DataChannel::opened_by_peer(stream_id, label));
            }
            Some(DcepMessage::Ack) | None => {}
        }
    }

    fn send(&mut self, negotiated: &NegotiatedDataChannels, message: &DataMessage) -> Result<(), DataSendError> {
        if self.readiness != SendReadiness::Ready || self.association.is_closed() {
            return Err(DataSendError::NotConnected);
        }
        if message.payload.len() > negotiated.max_sent_message_size as usize {
            return Err(DataSendError::TooLong);
        }
        let association = &mut self.association;
        self.channels
            .forget_acknowledged_messages(|stream_id| association.buffered_amount(stream_id));
        if !self.channels.can_queue_message(message.payload.len()) {
            return Err(DataSendError::TooSlow);
        }
        let stream_id = match self.channels.stream_id_by_label(&message.label) {
            Some(id) => id,
            None => self.open_channel(&message.label)?,
        };
        if !self.association.write(stream_id, &message.payload) {
            return Err(DataSendError::TooSlow);
        }
        self.channels.on_message_written(stream_id, message.payload.len());
        Ok(())
    }

    /// Opens a reliable ordered channel. Messages may follow at once (RFC 8832 §6).
    fn open_channel(&mut self, label: &DataLabel) -> Result<u16, DataSendError> {
        let id = self
            .channels
            .unused_gateway_stream_id()
            .ok_or(DataSendError::TooManyChannels)?;
        let open = DataChannelOpen::encode_reliable_ordered(label.as_str());
        if !self.association.open_stream(id) || !self.association.write_dcep(id, &open) {
            return Err(DataSendError::TooManyChannels);
        }
        let mut channel = DataChannel::new(id, Some(label.clone()));
        channel.on_message_written(open.len());
        self.channels.insert(channel);
        Ok(id)
    }
}
