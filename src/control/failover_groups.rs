//! Streams with several sources: keeps their failover groups as they are configured, and tells which source a publisher feeds.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::ControlPlane;
use crate::access::AccessAction;
use crate::config::{FailoverConfig, FailoverGroupKind, FailoverSourceKind, StandbyMode};
use crate::shard::MediaPlane;
use crate::sources::fetch::registry::ConfiguredFailoverGroup;
use millstream_core::hub::name::{SourceName, StreamKey, StreamName};
use millstream_core::hub::stream::ShardIndex;
use millstream_core::session::CloseReason;
use millstream_core::sources::failover_group::settings::{FailoverSourceSettings, FailoverTimes, SourceLayerSettings};

/// Why a publisher cannot feed the source that it names.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublisherSourceError {
    #[error(
        "the stream has only one source: leave out the query parameter `source`, or add `sources` to the stream in the \
         configuration"
    )]
    SingleSource,
    #[error("the stream has no source of this name for publishers: it has {known}")]
    UnknownSource { known: String },
    #[error(
        "publishing rejected: no entry of `sources` of this stream is for a publisher. To accept one, add `{{ whip = \"NAME\" }}`, with a name of your choice"
    )]
    NoPublishers,
    #[error("the gateway pulls the layers of this stream from a camera: publish to another stream")]
    CameraLayers,
}

/// How often the sources of the failover groups are looked at beside their packets: all of them may be silent.
const FAILOVER_TIMEOUT_INTERVAL: Duration = Duration::from_millis(50);

impl ControlPlane {
    /// Makes, changes and removes failover groups so that exactly these exist. Those whose sources are unchanged go on.
    pub fn reconcile_failover_groups(&self, configured: &[FailoverConfig]) {
        let (media, registry) = (&self.media_plane, &self.source_registry);
        for old in registry.all_failover_groups() {
            let new = configured.iter().find(|new| new.stream == old.config.stream);
            match new.filter(|new| (&new.sources, new.kind) == (&old.config.sources, old.config.kind)) {
                Some(new) => {
                    old.failover_group.set_failover_times(failover_times_from_config(new));
                    registry.insert_failover_group(ConfiguredFailoverGroup {
                        config: new.clone(),
                        failover_group: old.failover_group,
                    });
                }
                None => {
                    registry.remove_failover_group(&old.config.stream);
                    remove_failover_group_and_end_its_publishers(media, &old.config.stream);
                }
            }
        }
        for config in configured {
            if registry.failover_group(&config.stream).is_none() {
                let name = config.stream.clone();
                let (sources, times) = (failover_source_settings(config), failover_times_from_config(config));
                let (failover_groups, hub) = (media.failover_groups(), media.hub());
                let failover_group = match config.kind {
                    FailoverGroupKind::Alternatives => failover_groups.add(hub, name, sources, times),
                    FailoverGroupKind::CameraLayers { on_demand } => {
                        failover_groups.add_with_layers(hub, name, (sources, SourceLayerSettings { on_demand }), times)
                    }
                };
                let config = config.clone();
                registry.insert_failover_group(ConfiguredFailoverGroup { config, failover_group });
            }
        }
        self.end_publishers_without_source();
        self.failover_groups_changed.notify_one();
    }

    /// Ends publishers that were accepted for a source that their stream does not have any more, connected or not: they
    /// would take the stream from its failover group, or feed a source that nobody sees.
    fn end_publishers_without_source(&self) {
        for (session, record) in self.sessions.open_and_recently_ended_sessions() {
            let is_publisher = record.action == AccessAction::Publish;
            if is_publisher && !self.is_source_for_publishers(&record.stream, record.failover_source.as_ref()) {
                self.media_plane.end_session(session, CloseReason::SourceRemoved);
            }
        }
    }

    /// Returns the source that a publisher feeds: the one that it names, or the first one for publishers. `None` if the
    /// stream does not have several, or has no such source for publishers.
    pub fn publisher_source(&self, stream: &StreamName, source: Option<&str>) -> Option<SourceName> {
        let failover_group = self.source_registry.failover_group(stream)?;
        failover_group.config.whip_source(source).cloned()
    }

    /// Whether publishers may feed this source of a stream; `None` is the only one.
    pub fn is_source_for_publishers(&self, stream: &StreamName, source: Option<&SourceName>) -> bool {
        match (self.source_registry.failover_group(stream), source) {
            (None, source) => source.is_none(),
            (Some(failover_group), Some(source)) => failover_group.config.whip_source(Some(source.as_str())).is_some(),
            (Some(_), None) => false,
        }
    }

    /// Returns the stream that a publisher writes to: that of the source that it names, or of the first one for publishers.
    ///
    /// # Errors
    ///
    /// A [`PublisherSourceError`].
    pub fn publisher_stream_key(
        &self,
        stream: &StreamName,
        source: Option<&str>,
    ) -> Result<StreamKey, PublisherSourceError> {
        let Some(ConfiguredFailoverGroup { config, .. }) = self.source_registry.failover_group(stream) else {
            return match source {
                Some(_) => Err(PublisherSourceError::SingleSource),
                None => Ok(stream.into()),
            };
        };
        if config.has_camera_layers() {
            return Err(PublisherSourceError::CameraLayers);
        }
        if let Some(source) = config.whip_source(source) {
            return Ok(stream.failover_source_key(source));
        }
        let publishers = config
            .sources
            .iter()
            .filter(|source| source.kind == FailoverSourceKind::Whip);
        let known: Vec<&str> = publishers.map(|source| source.name.as_str()).collect();
        Err(match known.is_empty() {
            true => PublisherSourceError::NoPublishers,
            false => PublisherSourceError::UnknownSource {
                known: known.join(", "),
            },
        })
    }
}

fn failover_source_settings(config: &FailoverConfig) -> Vec<FailoverSourceSettings> {
    let sources = config.sources.iter().map(|source| FailoverSourceSettings {
        key: config.source_key(source),
        name: source.name.clone(),
        runs_on_demand: source.kind == FailoverSourceKind::Pulled(StandbyMode::Cold),
    });
    sources.collect()
}

fn failover_times_from_config(config: &FailoverConfig) -> FailoverTimes {
    FailoverTimes {
        hold_off: config.times.hold_off,
        stall_timeout: config.times.stall_timeout,
    }
}

fn remove_failover_group_and_end_its_publishers(media: &MediaPlane, stream: &StreamName) {
    for source in media.failover_groups().remove(media.hub(), stream) {
        if source.shard != ShardIndex::NO_SHARD {
            media.end_session(source.session_id, CloseReason::SourceRemoved);
        }
    }
}

/// Lets the failover groups select their sources until the gateway ends. Sleeps while there are none.
pub async fn run_failover_timeouts(media: MediaPlane, changed: Arc<Notify>) {
    loop {
        while !media.failover_groups().is_empty() {
            media.run_due_failover_switches();
            sleep(FAILOVER_TIMEOUT_INTERVAL).await;
        }
        changed.notified().await;
    }
}
