//! The Data Channel Establishment Protocol (RFC 8832 §5): the two messages that open a channel.

/// A DATA_CHANNEL_OPEN message (RFC 8832 §5.1).
//
//  0                   1                   2                   3
//  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
// |  Message Type |  Channel Type |            Priority           |
// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
// |                    Reliability Parameter                      |
// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
// |         Label Length          |       Protocol Length         |
// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
// |                             Label                             |
// |                            Protocol                           |
// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataChannelOpen {
    pub is_unordered: bool,
    pub reliability: ChannelReliability,
    pub label: String,
}

/// How often a message is sent before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChannelReliability {
    Reliable,
    MaxRetransmits(u32),
    MaxLifetimeMilliseconds(u32),
}

/// A message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DcepMessage {
    Open(DataChannelOpen),
    Ack,
}

/// DATA_CHANNEL_ACK (RFC 8832 §5.2).
pub(super) const DATA_CHANNEL_ACK: [u8; 1] = [MESSAGE_TYPE_ACK];

const MESSAGE_TYPE_ACK: u8 = 2;
const MESSAGE_TYPE_OPEN: u8 = 3;
const DATA_CHANNEL_OPEN_HEADER_LEN: usize = 12;
/// The bit of the channel type that stands for unordered delivery.
const UNORDERED_CHANNEL_TYPE_BIT: u8 = 0x80;
/// Priority "normal" (RFC 8831 §6.4).
const NORMAL_PRIORITY: u16 = 256;

impl DcepMessage {
    /// Parses a message; `None` if it is malformed.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        match *bytes.first()? {
            MESSAGE_TYPE_ACK => Some(Self::Ack),
            MESSAGE_TYPE_OPEN => DataChannelOpen::parse(bytes).map(Self::Open),
            _ => None,
        }
    }
}

impl DataChannelOpen {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<DATA_CHANNEL_OPEN_HEADER_LEN>()?;
        let [_, kind, _, _, r0, r1, r2, r3, l0, l1, p0, p1] = *header;
        let parameter = u32::from_be_bytes([r0, r1, r2, r3]);
        let label_length = usize::from(u16::from_be_bytes([l0, l1]));
        let protocol_length = usize::from(u16::from_be_bytes([p0, p1]));
        let (label, protocol) = rest.split_at_checked(label_length)?;
        protocol.get(..protocol_length)?;
        let reliability = match kind & !UNORDERED_CHANNEL_TYPE_BIT {
            0 => ChannelReliability::Reliable,
            1 => ChannelReliability::MaxRetransmits(parameter),
            2 => ChannelReliability::MaxLifetimeMilliseconds(parameter),
            _ => return None,
        };
        Some(Self {
            is_unordered: kind & UNORDERED_CHANNEL_TYPE_BIT != 0,
            reliability,
            label: std::str::from_utf8(label).ok()?.to_owned(),
        })
    }

    /// Writes the message that opens a reliable ordered channel.
    pub(super) fn encode_reliable_ordered(label: &str) -> Vec<u8> {
        let mut message = vec![MESSAGE_TYPE_OPEN, 0];
        message.extend(NORMAL_PRIORITY.to_be_bytes());
        message.extend(0_u32.to_be_bytes());
        message.extend((label.len() as u16).to_be_bytes());
        message.extend(0_u16.to_be_bytes());
        message.extend(label.as_bytes());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let expected = DataChannelOpen {
            is_unordered: false,
            reliability: ChannelReliability::Reliable,
            label: "chat".to_owned(),
        };
        let written = DataChannelOpen::encode_reliable_ordered("chat");
        assert_eq!(DcepMessage::parse(&written), Some(DcepMessage::Open(expected)));
        assert_eq!(DcepMessage::parse(&DATA_CHANNEL_ACK), Some(DcepMessage::Ack));
    }

    /// The message of Chromium 156 for `createDataChannel("k", {ordered: false, maxRetransmits: 3, protocol: "p"})`.
    #[test]
    fn a_partially_reliable_channel_with_a_protocol_is_read() {
        let message = [3, 0x81, 1, 0, 0, 0, 0, 3, 0, 1, 0, 1, b'k', b'p'];
        let expected = DataChannelOpen {
            is_unordered: true,
            reliability: ChannelReliability::MaxRetransmits(3),
            label: "k".to_owned(),
        };
        assert_eq!(DcepMessage::parse(&message), Some(DcepMessage::Open(expected)));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let good = DataChannelOpen::encode_reliable_ordered("chat");
        for length in 0..good.len() {
            assert_eq!(DcepMessage::parse(&good[..length]), None, "cut at {length}");
        }
        let mut with = good.clone();
        with[1] = 3;
        assert_eq!(DcepMessage::parse(&with), None, "an unknown channel type");
        with = good.clone();
        with[12] = 0xff;
        assert_eq!(DcepMessage::parse(&with), None, "a label that is not UTF-8");
        with = good;
        with[11] = 1;
        assert_eq!(DcepMessage::parse(&with), None, "a protocol longer than the message");
        assert_eq!(DcepMessage::parse(&[9]), None);
    }
}
