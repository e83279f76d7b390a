//! The parts of the gateway that the LL-HLS packager uses.

use std::pin::Pin;

use crate::outputs::hls::live::Plane;
use crate::shard::MediaPlane;
use crate::sources::fetch::directory::{Directory, StartOutcome};
use millstream_core::hub::Hub;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::SourceRef;
use millstream_core::sources::frame_source::FanOut;

/// The streams and their configured sources, which can be started on demand.
pub struct PackagedStreams {
    pub media: MediaPlane,
    pub sources: Directory,
}

impl Plane for PackagedStreams {
    fn hub(&self) -> &Hub {
        self.media.hub()
    }

    fn ask_for_key_frame(&self, source: SourceRef) {
        FanOut::ask_for_key_frame(&self.media, source);
    }

    fn ensure_started<'a>(&'a self, stream: &'a StreamName) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async { self.sources.ensure_started(stream, self.media.hub()).await == StartOutcome::Live })
    }
}
