//! The parts of the gateway that the LL-HLS packager uses.

use std::pin::Pin;

use crate::outputs::hls::packaged_stream::StreamProvider;
use crate::shard::MediaPlane;
use crate::sources::fetch::registry::{SourceRegistry, StartOutcome};
use millstream_core::hub::Hub;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::SourceRef;
use millstream_core::sources::frame_source::FrameSink;

/// The streams and their configured sources, which can be started on demand.
pub struct GatewayStreamProvider {
    pub media_plane: MediaPlane,
    pub source_registry: SourceRegistry,
}

impl StreamProvider for GatewayStreamProvider {
    fn all_streams_hub(&self) -> &Hub {
        self.media_plane.hub()
    }

    fn request_key_frame_from_source(&self, source: SourceRef) {
        FrameSink::request_key_frame_from_source(&self.media_plane, source);
    }

    fn ensure_source_started<'a>(&'a self, stream: &'a StreamName) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async {
            self.source_registry
                .start_and_wait_until_live(stream, self.media_plane.hub())
                .await
                == StartOutcome::Live
        })
    }
}
