//! Sources that cannot be built from their configuration at present: a file, device or pipeline that they name is missing
//! on this host. Their stream is marked as failed, and they are tried again.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::registry::RegisteredSource;
use super::{SourceConfig, run_source};
use millstream_core::sources::frame_source::FrameSink;

/// A source that could not be built.
#[derive(Clone)]
pub struct UnbuildableSource {
    /// Why, for people.
    pub problem: String,
    pub build: SourceBuilder,
}

/// Builds a source from its configuration, or tells why that is not possible.
pub type SourceBuilder = Arc<dyn Fn() -> Result<SourceConfig, String> + Send + Sync>;

/// Minimum interval between attempts: viewers request further ones.
const MIN_SOURCE_BUILD_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Interval between attempts while nobody requests the stream. An attempt looks at files, no more.
const SOURCE_BUILD_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Tries to build a source until that succeeds, and then runs it until the task is cancelled.
pub(super) async fn retry_build_and_run_source<P: FrameSink>(
    entry: Arc<RegisteredSource>,
    source: UnbuildableSource,
    plane: P,
) {
    loop {
        sleep(MIN_SOURCE_BUILD_RETRY_INTERVAL).await;
        let requested = entry.wait_until_watched_or_requested(plane.hub());
        let _ = timeout(SOURCE_BUILD_RETRY_INTERVAL - MIN_SOURCE_BUILD_RETRY_INTERVAL, requested).await;
        let build = source.build.clone();
        // Files may be on a slow file system.
        match spawn_blocking(move || build()).await {
            Ok(Ok(config)) => return run_source(entry, config, plane).await,
            Ok(Err(problem)) => entry.mark_failed(&problem),
            Err(error) => entry.mark_failed(&error.to_string()),
        }
    }
}
