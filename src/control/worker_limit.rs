//! For whom workers transcode a stream, and whether a further one may run.

use super::ControlPlane;
use super::sessions::SessionTable;
use crate::pipeline::worker_slots::{WorkerOwner, WorkerSlotLimitReached};
use millstream_core::hub::Hub;
use millstream_core::hub::name::StreamName;
use millstream_core::media::track_delivery::TranscodeTarget;

/// Returns for whom a stream is transcoded: for its publisher, or for the configuration if it has none.
pub fn find_transcode_worker_owner(sessions: &SessionTable, hub: &Hub, stream: &StreamName) -> WorkerOwner {
    let source = hub
        .find_stream(stream)
        .and_then(|stream| stream.with_state(|state| state.source()));
    let publisher = source.and_then(|source| sessions.running_session_record(source.session_id));
    match publisher.map(|publisher| publisher.requester()) {
        Some(publisher) if !publisher.has_token => WorkerOwner::WithoutToken(publisher.address),
        _ => WorkerOwner::TokenHolder,
    }
}

impl ControlPlane {
    /// Checks whether a stream can be transcoded now: a worker does it already, or a further one may run.
    ///
    /// # Errors
    ///
    /// Which limit of workers is reached.
    pub fn check_transcode_slot_and_count_refusal(
        &self,
        stream: &StreamName,
        target: TranscodeTarget,
    ) -> Result<(), WorkerSlotLimitReached> {
        // The transcoded stream itself says nothing: it exists as long as somebody waits for it.
        if self
            .worker_slots
            .holds_slot_for_transcode(&stream.transcode_key(target))
        {
            return Ok(());
        }
        self.worker_slots
            .require_free_slot_or_count_refusal(self.transcode_worker_owner(stream))
    }

    /// Returns whether a stream can be transcoded now, like [`Self::check_transcode_slot_and_count_refusal`]; a refusal is not counted.
    pub fn has_transcode_slot(&self, stream: &StreamName, target: TranscodeTarget) -> bool {
        self.worker_slots
            .holds_slot_for_transcode(&stream.transcode_key(target))
            || self.worker_slots.is_free(self.transcode_worker_owner(stream))
    }

    fn transcode_worker_owner(&self, stream: &StreamName) -> WorkerOwner {
        find_transcode_worker_owner(&self.sessions, self.media_plane.hub(), stream)
    }
}
