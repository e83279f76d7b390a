//! A frame source while it feeds its stream.

use rand::RngCore as _;

use millstream_core::hub::stream::SessionId;
use millstream_core::sources::frame_source::{FanOut, FrameSource};

/// Detaches the frame source from its stream when dropped, also when the task is cancelled.
pub struct Attached<'a, P: FanOut> {
    pub feed: FrameSource,
    pub plane: &'a P,
}

impl<P: FanOut> Drop for Attached<'_, P> {
    fn drop(&mut self) {
        self.feed.ended(self.plane.hub());
    }
}

/// Returns a unique, unguessable id of a source or a session (RFC 9725 §5).
pub fn random_id() -> SessionId {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    SessionId(id)
}
