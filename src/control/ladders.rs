//! Streams with several sources: keeps their ladders as they are configured, and tells which source a publisher feeds.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::ControlPlane;
use crate::config::{LadderConfig, LadderSourceKind, Standby};
use crate::shard::MediaPlane;
use crate::sources::fetch::registry::ConfiguredLadder;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::stream::ShardIndex;
use millstream_core::session::CloseReason;
use millstream_core::sources::ladder::settings::{LadderSourceSettings, LadderTimes};

/// Why a publisher cannot feed the source that it names.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublisherSourceError {
    #[error("the stream has one source: leave out `source`, or add `sources` to the stream in the configuration")]
    SingleSource,
    #[error("the stream has no source of this name for publishers: it has {known}")]
    UnknownSource { known: String },
    #[error("the gateway pulls all sources of this stream: add `{{ whip = \"main\" }}` to its `sources`")]
    NoPublishers,
}

/// How often the sources of the ladders are looked at beside their packets: all of them may be silent.
const LADDER_TIMEOUT_INTERVAL: Duration = Duration::from_millis(50);

impl ControlPlane {
    /// Makes, changes and removes ladders so that exactly these exist. Those whose sources are unchanged go on.
    pub fn reconcile_ladders(&self, configured: &[LadderConfig]) {
        let (media, registry) = (&self.media_plane, &self.source_registry);
        for old in registry.all_ladders() {
            let new = configured.iter().find(|new| new.stream == old.config.stream);
            match new.filter(|new| new.sources == old.config.sources) {
                Some(new) => {
                    old.ladder.set_times(times_of(new));
                    registry.insert_ladder(ConfiguredLadder {
                        config: new.clone(),
                        ladder: old.ladder,
                    });
                }
                None => {
                    registry.remove_ladder(&old.config.stream);
                    remove_ladder_and_end_its_publishers(media, &old.config.stream);
                }
            }
        }
        for config in configured {
            if registry.ladder(&config.stream).is_none() {
                let name = config.stream.clone();
                let ladder = media
                    .ladders()
                    .add(media.hub(), name, settings_of(config), times_of(config));
                let config = config.clone();
                registry.insert_ladder(ConfiguredLadder { config, ladder });
            }
        }
        self.ladders_changed.notify_one();
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
        let Some(ConfiguredLadder { config, .. }) = self.source_registry.ladder(stream) else {
            return match source {
                Some(_) => Err(PublisherSourceError::SingleSource),
                None => Ok(stream.into()),
            };
        };
        if let Some(source) = config.whip_source(source) {
            return Ok(stream.ladder_source_key(source));
        }
        let publishers = config
            .sources
            .iter()
            .filter(|source| source.kind == LadderSourceKind::Whip);
        let known: Vec<&str> = publishers.map(|source| source.name.as_str()).collect();
        Err(match known.is_empty() {
            true => PublisherSourceError::NoPublishers,
            false => PublisherSourceError::UnknownSource {
                known: known.join(", "),
            },
        })
    }
}

fn settings_of(config: &LadderConfig) -> Vec<LadderSourceSettings> {
    let sources = config.sources.iter().map(|source| LadderSourceSettings {
        key: config.source_key(source),
        name: source.name.clone(),
        runs_on_demand: source.kind == LadderSourceKind::Pulled(Standby::Cold),
    });
    sources.collect()
}

fn times_of(config: &LadderConfig) -> LadderTimes {
    LadderTimes {
        hold_off: config.times.hold_off,
        stall_timeout: config.times.stall_timeout,
    }
}

fn remove_ladder_and_end_its_publishers(media: &MediaPlane, stream: &StreamName) {
    for source in media.ladders().remove(media.hub(), stream) {
        if source.shard != ShardIndex::NONE {
            media.end_session(source.session_id, CloseReason::SourceRemoved);
        }
    }
}

/// Lets the ladders select their sources until the gateway ends. Sleeps while there are none.
pub async fn run_ladder_timeouts(media: MediaPlane, changed: Arc<Notify>) {
    loop {
        while !media.ladders().is_empty() {
            media.handle_ladder_timeout();
            sleep(LADDER_TIMEOUT_INTERVAL).await;
        }
        changed.notified().await;
    }
}
