//! The channels of an association, and how much waits to be sent on them.

use std::collections::VecDeque;

use super::sctp_guard::MAX_STREAMS;
use crate::media::data_message::DataLabel;

/// One channel.
pub(super) struct DataChannel {
    pub(super) stream_id: u16,
    /// `None` if it is being closed, or the peer opened it with a label that no data track can have.
    pub(super) label: Option<DataLabel>,
    is_opened_by_peer: bool,
    /// Lengths of the messages that were written and not all acknowledged.
    unacknowledged: VecDeque<u32>,
    unacknowledged_bytes: usize,
}

/// All channels of an association.
pub(super) struct DataChannels {
    channels: Vec<DataChannel>,
    own_stream_id_parity: u16,
}

/// Bytes that may wait to be sent to a peer, or to be acknowledged by it.
const MAX_UNACKNOWLEDGED_BYTES: usize = 256 << 10;

/// Messages that may: each takes some memory besides its payload.
const MAX_UNACKNOWLEDGED_MESSAGES: usize = 2_048;

impl DataChannel {
    /// A channel that the gateway opens.
    pub(super) fn new(stream_id: u16, label: Option<DataLabel>) -> Self {
        Self {
            stream_id,
            label,
            is_opened_by_peer: false,
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
        }
    }

    pub(super) fn opened_by_peer(stream_id: u16, label: Option<DataLabel>) -> Self {
        Self {
            is_opened_by_peer: true,
            ..Self::new(stream_id, label)
        }
    }

    pub(super) fn on_message_written(&mut self, length: usize) {
        // An empty message is sent as one byte (RFC 8831 §6.6).
        let length = u32::try_from(length.max(1)).unwrap_or(u32::MAX);
        self.unacknowledged.push_back(length);
        self.unacknowledged_bytes += length as usize;
    }

    /// Messages of one channel are acknowledged in their order, but for losses.
    fn forget_acknowledged_messages(&mut self, buffered_amount: usize) {
        while let Some(length) = self.unacknowledged.front().map(|length| *length as usize)
            && self.unacknowledged_bytes - length >= buffered_amount
        {
            self.unacknowledged_bytes -= length;
            self.unacknowledged.pop_front();
        }
    }
}

impl DataChannels {
    pub(super) fn new(own_stream_id_parity: u16) -> Self {
        Self {
            channels: Vec::new(),
            own_stream_id_parity,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    pub(super) fn find_by_stream_id(&self, stream_id: u16) -> Option<&DataChannel> {
        self.channels.iter().find(|channel| channel.stream_id == stream_id)
    }

    /// Returns the stream of the oldest channel with this label.
    pub(super) fn stream_id_by_label(&self, label: &DataLabel) -> Option<u16> {
        let mut channels = self.channels.iter();
        let found = channels.find(|channel| channel.label.as_ref() == Some(label));
        found.map(|channel| channel.stream_id)
    }

    /// Whether the peer may open one more channel.
    pub(super) fn can_peer_open_channel(&self) -> bool {
        let channels = self.channels.iter();
        channels.filter(|channel| channel.is_opened_by_peer).count() < usize::from(MAX_STREAMS / 2)
    }

    /// Returns the id that the gateway opens its next stream with. It counts down: peers count up from the lowest, some use the
    /// ids of the gateway, and both would open the same one otherwise. Some peers have ten streams by default.
    pub(super) fn unused_gateway_stream_id(&self) -> Option<u16> {
        const DEFAULT_STREAM_COUNT: u16 = 10;
        let is_gateways = |id: u16| id % 2 == self.own_stream_id_parity;
        let mut ids = (0..DEFAULT_STREAM_COUNT)
            .rev()
            .chain((DEFAULT_STREAM_COUNT..MAX_STREAMS).rev());
        ids.find(|&id| is_gateways(id) && self.find_by_stream_id(id).is_none())
    }

    pub(super) fn insert(&mut self, channel: DataChannel) {
        self.channels.push(channel);
    }

    /// Sends and takes nothing on a channel any more. Its id stays in use until it is removed.
    pub(super) fn close_channel(&mut self, stream_id: u16) {
        let mut channels = self.channels.iter_mut();
        if let Some(channel) = channels.find(|channel| channel.stream_id == stream_id) {
            *channel = DataChannel {
                is_opened_by_peer: channel.is_opened_by_peer,
                ..DataChannel::new(stream_id, None)
            };
        }
    }

    pub(super) fn remove(&mut self, stream_id: u16) {
        self.channels.retain(|channel| channel.stream_id != stream_id);
    }

    /// Forgets what the peer has acknowledged. `buffered_amount` returns the bytes of a stream that it has not.
    pub(super) fn forget_acknowledged_messages(&mut self, mut buffered_amount: impl FnMut(u16) -> usize) {
        for channel in &mut self.channels {
            channel.forget_acknowledged_messages(buffered_amount(channel.stream_id));
        }
    }

    /// Whether a message of this length may be written.
    pub(super) fn can_queue_message(&self, length: usize) -> bool {
        let bytes: usize = self.channels.iter().map(|channel| channel.unacknowledged_bytes).sum();
        let messages: usize = self.channels.iter().map(|channel| channel.unacknowledged.len()).sum();
        bytes + length <= MAX_UNACKNOWLEDGED_BYTES && messages < MAX_UNACKNOWLEDGED_MESSAGES
    }

    pub(super) fn on_message_written(&mut self, stream_id: u16, length: usize) {
        let mut channels = self.channels.iter_mut();
        if let Some(channel) = channels.find(|channel| channel.stream_id == stream_id) {
            channel.on_message_written(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Option<DataLabel> {
        DataLabel::parse(text).ok()
    }

    #[test]
    fn room_is_freed_by_acknowledgement() {
        let mut channels = DataChannels::new(1);
        channels.insert(DataChannel::new(1, label("a")));
        channels.insert(DataChannel::new(3, label("b")));
        for id in [1, 3] {
            channels.on_message_written(id, 100 << 10);
        }
        assert!(channels.can_queue_message(56 << 10) && !channels.can_queue_message((56 << 10) + 1));
        // The first message of one channel is acknowledged, the other is on its way.
        channels.forget_acknowledged_messages(|id| if id == 1 { 0 } else { 60 << 10 });
        assert!(channels.can_queue_message(156 << 10) && !channels.can_queue_message((156 << 10) + 1));
    }

    #[test]
    fn many_small_messages_are_too_many() {
        let mut channels = DataChannels::new(1);
        channels.insert(DataChannel::new(1, label("a")));
        while channels.can_queue_message(0) {
            channels.on_message_written(1, 0);
        }
        assert_eq!(channels.channels[0].unacknowledged.len(), MAX_UNACKNOWLEDGED_MESSAGES);
        channels.forget_acknowledged_messages(|_| 10);
        assert_eq!(channels.channels[0].unacknowledged.len(), 10);
    }

    #[test]
    fn a_peer_has_half_of_the_channels_whatever_their_ids() {
        let mut channels = DataChannels::new(1);
        channels.insert(DataChannel::new(9, label("own")));
        for id in 0..MAX_STREAMS / 2 {
            assert!(channels.can_peer_open_channel(), "{id}");
            channels.insert(DataChannel::opened_by_peer(id, label("a")));
        }
        assert!(!channels.can_peer_open_channel());
        // One that is being closed keeps its place until both directions are reset.
        channels.close_channel(0);
        assert!(!channels.can_peer_open_channel());
        channels.remove(0);
        assert!(channels.can_peer_open_channel());
    }

    #[test]
    fn ids_are_those_of_the_role_and_free() {
        let mut channels = DataChannels::new(0);
        channels.insert(DataChannel::new(0, label("a")));
        channels.insert(DataChannel::new(1, None));
        assert_eq!(channels.unused_gateway_stream_id(), Some(8));
        channels.insert(DataChannel::new(8, label("b")));
        assert_eq!(channels.unused_gateway_stream_id(), Some(6));
        channels.remove(8);
        assert_eq!(channels.unused_gateway_stream_id(), Some(8));
        for id in (0..MAX_STREAMS).step_by(2) {
            channels.insert(DataChannel::new(id, None));
        }
        assert_eq!(channels.unused_gateway_stream_id(), None);
    }
}
