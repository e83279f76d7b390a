//! Sessions of talkers, which send audio to the camera of a stream.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;
use tracing::warn;

use super::ControlPlane;
use super::talkers::TalkReservation;
use crate::shard::SessionId;
use crate::sources::fetch::SourceKind;
use crate::sources::fetch::registry::RegisteredSource;
use crate::sources::fetch::status::SourceState;
use crate::sources::rtsp::back_channel::{BackChannelEnd, BackChannelSender};
use crate::sources::rtsp::camera::Camera;
use millstream_core::hub::changes::ChangeTopic;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::tap::StreamTap;
use millstream_core::session::CloseReason;

/// How often a talker looks at the source of its stream beside the changes that it is told of.
const SOURCE_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Why nobody can talk to the source of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoCameraError {
    #[error(
        "two-way audio needs a source that the gateway reads with its own RTSP client (`rtsp = \"rtsp://...\"`), and \
         this stream has none"
    )]
    NotCamera,
    #[error(
        "the source of this stream was stopped through the API or could not be started: start it through the API, or \
         retry later"
    )]
    SourceAway,
}

/// A camera that somebody may talk to, and the entry of its source.
pub struct TalkTarget {
    pub camera: Camera,
    source: Arc<RegisteredSource>,
}

/// A talker and the back channel that its audio goes to.
pub struct TalkSession {
    pub session: SessionId,
    pub stream: StreamName,
    pub target: TalkTarget,
    pub back_channel: BackChannelSender,
    pub reservation: TalkReservation,
}

impl TalkTarget {
    /// Returns the stream that the camera feeds: the one of its source, if there are several.
    pub fn source_key(&self) -> &StreamKey {
        &self.source.stream
    }
}

impl ControlPlane {
    /// Returns the camera of a stream: of several sources, the first that is one.
    ///
    /// # Errors
    ///
    /// A [`NoCameraError`].
    pub async fn camera_to_talk_to(&self, stream: &StreamName) -> Result<TalkTarget, NoCameraError> {
        let keys: Vec<StreamKey> = match self.source_registry.failover_group(stream) {
            Some(group) => {
                let sources = group.config.sources.iter();
                sources.map(|source| group.config.source_key(source)).collect()
            }
            None => vec![stream.into()],
        };
        let mut error = NoCameraError::NotCamera;
        for key in keys {
            let Some(source) = self.source_registry.get(key.clone()) else {
                continue;
            };
            match self
                .supervisor
                .running_source_config(&key)
                .await
                .map(|config| config.kind)
            {
                Some(SourceKind::Camera(camera)) => {
                    return Ok(TalkTarget {
                        camera: *camera,
                        source,
                    });
                }
                Some(SourceKind::Pipeline(_) | SourceKind::Hls(_)) => {}
                None => error = NoCameraError::SourceAway,
            }
        }
        Err(error)
    }

    /// Sends what the talker's session receives to the camera, until either ends.
    pub async fn forward_talk(self: Arc<Self>, talk: TalkSession) {
        let TalkSession {
            session,
            stream,
            target,
            back_channel,
            reservation,
        } = talk;
        let (queue, arrived) = BackChannelSender::make_tap_queue();
        let tap = StreamTap::open(self.media_plane.hub(), stream.back_channel_key(), &queue);
        let left = self.wait_until_talker_left(session, &stream, &target.source);
        let end = back_channel
            .forward_audio((&queue, &arrived), &self.talkers.counters, left)
            .await;
        drop(tap);
        // Before the session is told to have ended, so that the next talker is accepted.
        drop(reservation);
        let reason = match end {
            BackChannelEnd::TalkerLeft if self.is_current_source(&target.source) => return,
            BackChannelEnd::TalkerLeft => CloseReason::SourceRemoved,
            BackChannelEnd::NoAudio => CloseReason::NoAudio,
            BackChannelEnd::Camera(problem) => {
                warn!(?session, %stream, problem, "two-way audio session ended by the camera");
                CloseReason::BackChannelClosed
            }
        };
        // It does nothing if the session has ended.
        self.media_plane.end_session(session, reason);
    }

    /// Returns when the talker's session has ended, or the source of the stream is another one.
    async fn wait_until_talker_left(&self, session: SessionId, stream: &StreamName, source: &Arc<RegisteredSource>) {
        let topics = [ChangeTopic::Session(session), ChangeTopic::Stream(stream.clone())];
        let mut changes = self.media_plane.hub().change_notifier().listen(topics);
        while self.sessions.is_session_running(session) && self.is_current_source(source) {
            let _ = timeout(SOURCE_POLL_INTERVAL, changes.changed()).await;
        }
    }

    /// Whether a source is still the one of its stream, and was not stopped.
    fn is_current_source(&self, source: &Arc<RegisteredSource>) -> bool {
        let current = self.source_registry.get(source.stream.clone());
        current.is_some_and(|current| Arc::ptr_eq(&current, source)) && source.status().state != SourceState::Stopped
    }
}
