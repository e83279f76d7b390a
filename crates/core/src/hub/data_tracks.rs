//! Data tracks of a stream: messages by label, with the last ones for viewers who join.

use std::collections::VecDeque;
use std::time::Instant;

use thiserror::Error;

use super::rate_limit::TokenBucket;
use crate::media::data_message::{DataLabel, DataMessage};

/// The data tracks of one stream.
#[derive(Debug, Default)]
pub struct DataTracks {
    tracks: Vec<DataTrack>,
    /// Limit of the messages that come by the API.
    api_limit: Option<TokenBucket>,
}

/// One data track.
#[derive(Debug)]
pub struct DataTrack {
    pub label: DataLabel,
    /// Messages so far, and their bytes.
    pub message_count: u64,
    pub byte_count: u64,
    /// The last messages, the oldest first.
    retained: VecDeque<DataMessage>,
    retained_bytes: usize,
}

/// Why a message is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DataPublishError {
    #[error("the stream already has the maximum of {MAX_DATA_TRACKS} data channel labels: use one of them")]
    TooManyTracks,
    #[error("more than {MAX_API_MESSAGES_PER_SECOND} messages a second were posted for the stream")]
    TooManyMessages,
}

/// As many as channels that the gateway can open to a viewer.
const MAX_DATA_TRACKS: usize = 8;

/// Bytes that are retained for one label.
const MAX_RETAINED_BYTES: usize = 64 << 10;

/// Messages a second that the API takes for one stream: each goes to all viewers.
pub const MAX_API_MESSAGES_PER_SECOND: u32 = 100;

impl DataTracks {
    /// Takes a message of the API from its budget.
    ///
    /// # Errors
    ///
    /// [`DataPublishError::TooManyMessages`].
    pub fn admit_api_message(&mut self, now: Instant) -> Result<(), DataPublishError> {
        let limit = self
            .api_limit
            .get_or_insert_with(|| TokenBucket::new(MAX_API_MESSAGES_PER_SECOND));
        match limit.try_take_tokens(now, 1) {
            true => Ok(()),
            false => Err(DataPublishError::TooManyMessages),
        }
    }

    /// Counts a message, and retains it among the last `retained_count` of its label.
    ///
    /// # Errors
    ///
    /// [`DataPublishError::TooManyTracks`].
    pub fn record_message(&mut self, message: &DataMessage, retained_count: usize) -> Result<(), DataPublishError> {
        let known = self.tracks.iter().position(|track| track.label == message.label);
        if known.is_none() && self.tracks.len() == MAX_DATA_TRACKS {
            return Err(DataPublishError::TooManyTracks);
        }
        let index = known.unwrap_or(self.tracks.len());
        if known.is_none() {
            self.tracks.push(DataTrack::new(message.label.clone()));
        }
        if let Some(track) = self.tracks.get_mut(index) {
            track.record_message(message, retained_count);
        }
        Ok(())
    }

    /// The tracks, in the order of their first messages.
    pub fn tracks(&self) -> &[DataTrack] {
        &self.tracks
    }

    /// Returns the retained messages, label by label, the oldest of each first.
    pub fn retained_messages(&self) -> Vec<DataMessage> {
        let messages = self.tracks.iter().flat_map(|track| &track.retained);
        messages.cloned().collect()
    }
}

impl DataTrack {
    fn new(label: DataLabel) -> Self {
        Self {
            label,
            message_count: 0,
            byte_count: 0,
            retained: VecDeque::new(),
            retained_bytes: 0,
        }
    }

    fn record_message(&mut self, message: &DataMessage, retained_count: usize) {
        let length = message.payload.len();
        self.message_count += 1;
        self.byte_count += length as u64;
        if retained_count == 0 || length > MAX_RETAINED_BYTES {
            return;
        }
        self.retained.push_back(message.clone());
        self.retained_bytes += length;
        while self.retained.len() > retained_count || self.retained_bytes > MAX_RETAINED_BYTES {
            let Some(oldest) = self.retained.pop_front() else {
                return;
            };
            self.retained_bytes -= oldest.payload.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::data_message::DataPayload;

    fn message(label: &str, text: &str) -> DataMessage {
        DataMessage {
            label: DataLabel::parse(label).expect("valid"),
            payload: DataPayload::Text(text.into()),
        }
    }

    fn retained(tracks: &DataTracks) -> Vec<(String, usize)> {
        let messages = tracks.retained_messages().into_iter();
        messages
            .map(|message| (message.label.to_string(), message.payload.len()))
            .collect()
    }

    #[test]
    fn the_last_messages_of_each_label_are_retained() {
        let mut tracks = DataTracks::default();
        for text in ["1", "22", "333"] {
            assert_eq!(tracks.record_message(&message("a", text), 2), Ok(()));
        }
        assert_eq!(tracks.record_message(&message("b", "4444"), 2), Ok(()));
        let expected = [("a", 2), ("a", 3), ("b", 4)].map(|(label, length)| (label.to_owned(), length));
        assert_eq!(retained(&tracks), expected);
        let counts = tracks
            .tracks()
            .iter()
            .map(|track| (track.message_count, track.byte_count));
        assert_eq!(counts.collect::<Vec<_>>(), [(3, 6), (1, 4)]);
    }

    #[test]
    fn no_label_retains_more_than_its_bytes() {
        let mut tracks = DataTracks::default();
        let long = "x".repeat(40 << 10);
        for _ in 0..5 {
            assert_eq!(tracks.record_message(&message("a", &long), 100), Ok(()));
        }
        assert_eq!(retained(&tracks).len(), 1);
        assert_eq!(tracks.record_message(&message("a", "y"), 100), Ok(()));
        assert_eq!(retained(&tracks).len(), 2);
        assert_eq!(tracks.record_message(&message("a", &"z".repeat(65 << 10)), 100), Ok(()));
        assert_eq!(retained(&tracks).len(), 2, "too long to be retained");
        assert_eq!(tracks.record_message(&message("b", "y"), 0), Ok(()));
        assert_eq!(retained(&tracks).len(), 2, "nothing is retained if so configured");
    }

    #[test]
    fn a_stream_has_few_labels() {
        let mut tracks = DataTracks::default();
        for n in 0..MAX_DATA_TRACKS {
            assert_eq!(tracks.record_message(&message(&n.to_string(), ""), 1), Ok(()));
        }
        assert_eq!(
            tracks.record_message(&message("more", ""), 1),
            Err(DataPublishError::TooManyTracks)
        );
        assert_eq!(tracks.record_message(&message("0", ""), 1), Ok(()));
    }

    #[test]
    fn the_api_has_a_budget() {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let mut tracks = DataTracks::default();
        let taken = (0..1_000).filter(|_| tracks.admit_api_message(now).is_ok());
        assert_eq!(taken.count(), MAX_API_MESSAGES_PER_SECOND as usize);
    }
}
