//! Data channels in the media plane: messages that come by the API.

use super::MediaPlane;
use super::clock::now;
use millstream_core::hub::data_tracks::DataPublishError;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::ShardIndex;
use millstream_core::media::data_message::DataMessage;
use millstream_core::shard::data_counters::DataOrigin;

/// Why a message was not sent to the viewers of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataMessageRefusal {
    #[error("no such stream: it is neither published nor watched")]
    UnknownStream,
    #[error(transparent)]
    NotPublished(#[from] DataPublishError),
}

impl MediaPlane {
    /// Whether answers accept data channels.
    pub fn accepts_data_channels(&self) -> bool {
        self.inner.shared.data_settings.is_enabled
    }

    /// Sends a message to the viewers of a stream, as its publisher does.
    ///
    /// # Errors
    ///
    /// A [`DataMessageRefusal`]; nobody gets the message.
    pub fn send_data_message(&self, stream: &StreamName, message: &DataMessage) -> Result<(), DataMessageRefusal> {
        let shared = &self.inner.shared;
        let stream = shared.hub.find_stream(stream);
        let stream = stream.ok_or(DataMessageRefusal::UnknownStream)?;
        let at = now();
        stream.with_state(move |state| state.data_tracks.admit_api_message(at))?;
        shared.counters.data.count_received(DataOrigin::Api);
        shared.publish_data_message(ShardIndex::NO_SHARD, &stream, message)?;
        Ok(())
    }
}
