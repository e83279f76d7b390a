//! A frame source while it feeds its stream.

use rand::RngCore as _;

use millstream_core::hub::stream::SessionId;
use millstream_core::sources::frame_source::{FrameSink, FrameSource};

/// Detaches the frame source from its stream when dropped, also when the task is cancelled.
pub struct AttachedSource<'a, P: FrameSink> {
    pub frame_source: FrameSource,
    pub media_plane: &'a P,
}

impl<P: FrameSink> Drop for AttachedSource<'_, P> {
    fn drop(&mut self) {
        self.frame_source.detach(self.media_plane.hub());
    }
}

/// Returns a unique, unguessable id of a source or a session (RFC 9725 §5).
pub fn random_session_id() -> SessionId {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    SessionId(id)
}
