//! The data channels of a peer: it opens the SCTP association and channels, as browsers do, and may send anything.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sctp_proto::{
    Association, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, EndpointConfig, Event, Payload,
    PayloadProtocolIdentifier, StreamEvent,
};

/// A message that arrived on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedData {
    pub label: String,
    pub bytes: Vec<u8>,
    pub is_text: bool,
}

/// The SCTP side of a peer.
pub(super) struct DataChannels {
    endpoint: Endpoint,
    association: Option<(AssociationHandle, Association)>,
    /// Labels of the channels that are opened as soon as the association is there.
    pending: Vec<String>,
    next_stream_id: u16,
    labels: HashMap<u16, String>,
    received: VecDeque<ReceivedData>,
    is_established: bool,
    /// Packets from the gateway are not looked at: the peer acknowledges nothing.
    pub(super) is_deaf: bool,
    is_aborted: bool,
}

const GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5);
const CHUNK_TYPE_ABORT: u8 = 6;

impl DataChannels {
    /// `first_stream_id` is 0 for the DTLS client and 1 for the server (RFC 8832 §6).
    pub(super) fn new(labels: &[&str], first_stream_id: u16) -> Self {
        Self {
            endpoint: Endpoint::new(Arc::new(EndpointConfig::new()), None),
            association: None,
            pending: labels.iter().map(|label| (*label).to_owned()).collect(),
            next_stream_id: first_stream_id,
            labels: HashMap::new(),
            received: VecDeque::new(),
            is_established: false,
            is_deaf: false,
            is_aborted: false,
        }
    }

    pub(super) fn connect(&mut self) {
        let connected = self.endpoint.connect(ClientConfig::new(), GATEWAY);
        self.association = Some(connected.expect("a first association"));
    }

    pub(super) fn handle_packet(&mut self, now: Instant, packet: Bytes) {
        if self.is_deaf {
            return;
        }
        self.is_aborted |= packet.get(12) == Some(&CHUNK_TYPE_ABORT);
        let event = self.endpoint.handle(now, GATEWAY, None, None, packet);
        if let (Some((_, DatagramEvent::AssociationEvent(event))), Some((_, association))) =
            (event, &mut self.association)
        {
            association.handle_event(event);
        }
        self.collect();
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some((_, association)) = &mut self.association {
            association.handle_timeout(now);
        }
        self.collect();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.association.as_ref()?.1.poll_timeout()
    }

    /// The SCTP packets that are to be sent now.
    pub(super) fn packets(&mut self, now: Instant) -> Vec<Bytes> {
        let Some((_, association)) = &mut self.association else {
            return Vec::new();
        };
        let transmits = std::iter::from_fn(|| association.poll_transmit(now));
        let packets = transmits.filter_map(|transmit| match transmit.payload {
            Payload::RawEncode(packets) => Some(packets),
            Payload::PartialDecode(_) => None,
        });
        packets.flatten().collect()
    }

    pub(super) fn poll_received(&mut self) -> Option<ReceivedData> {
        self.received.pop_front()
    }

    pub(super) fn is_established(&self) -> bool {
        self.is_established
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.is_aborted
    }

    /// Labels of the channels that are open, whoever opened them, by stream id.
    pub(super) fn labels(&self) -> Vec<(u16, String)> {
        let mut labels: Vec<_> = self.labels.iter().map(|(id, label)| (*id, label.clone())).collect();
        labels.sort();
        labels
    }

    /// Opens a channel. Returns its stream id.
    pub(super) fn open(&mut self, label: &str) -> u16 {
        let id = self.next_stream_id;
        self.next_stream_id += 2;
        self.labels.insert(id, label.to_owned());
        let mut message = vec![3, 0, 1, 0, 0, 0, 0, 0];
        message.extend((label.len() as u16).to_be_bytes());
        message.extend([0, 0]);
        message.extend(label.as_bytes());
        let (_, association) = self.association.as_mut().expect("connected");
        association
            .open_stream(id, PayloadProtocolIdentifier::Binary)
            .and_then(|mut stream| stream.write_with_ppi(&message, PayloadProtocolIdentifier::Dcep))
            .expect("a free stream");
        id
    }

    /// Resets a channel.
    pub(super) fn close(&mut self, stream_id: u16) {
        self.labels.remove(&stream_id);
        let (_, association) = self.association.as_mut().expect("connected");
        let stream = association.stream(stream_id);
        stream.and_then(|mut stream| stream.close()).expect("an open stream");
    }

    /// Sends a message on a stream.
    pub(super) fn send(&mut self, stream_id: u16, bytes: &[u8], is_text: bool) -> bool {
        let kind = match is_text {
            true => PayloadProtocolIdentifier::String,
            false => PayloadProtocolIdentifier::Binary,
        };
        let Some((_, association)) = &mut self.association else {
            return false;
        };
        let stream = association.stream(stream_id);
        stream.is_ok_and(|mut stream| stream.write_with_ppi(bytes, kind).is_ok())
    }

    fn collect(&mut self) {
        while let Some(event) = self
            .association
            .as_mut()
            .and_then(|(_, association)| association.poll())
        {
            match event {
                Event::Connected => {
                    self.is_established = true;
                    for label in std::mem::take(&mut self.pending) {
                        self.open(&label);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read(id),
                Event::Stream(StreamEvent::Finished { id }) => {
                    self.labels.remove(&id);
                }
                _ => {}
            }
        }
    }

    fn read(&mut self, stream_id: u16) {
        let Some((_, association)) = &mut self.association else {
            return;
        };
        let Ok(mut stream) = association.stream(stream_id) else {
            return;
        };
        while let Ok(Some(message)) = stream.read_sctp() {
            let mut bytes = vec![0; message.len()];
            message.read(&mut bytes).expect("a buffer of its length");
            match message.ppi {
                PayloadProtocolIdentifier::Dcep => {
                    if bytes.first() == Some(&3) {
                        let label = String::from_utf8_lossy(&bytes[12..]).into_owned();
                        self.labels.insert(stream_id, label);
                        stream
                            .write_with_ppi(&[2], PayloadProtocolIdentifier::Dcep)
                            .expect("an open stream");
                    }
                }
                kind => self.received.push_back(ReceivedData {
                    label: self.labels.get(&stream_id).cloned().unwrap_or_default(),
                    is_text: kind == PayloadProtocolIdentifier::String,
                    bytes,
                }),
            }
        }
    }
}
