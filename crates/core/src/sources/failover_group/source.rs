//! One source of a failover_group: whether it is live, and what can be shown of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::selection::SourceCondition;
use super::settings::FailoverSourceSettings;
use super::status::FailoverSourceState;
use super::track_copy::TrackCopyStart;
use crate::hub::failover_input::FailoverInput;
use crate::hub::packet_batch::SourceAndTrackProperties;
use crate::hub::ring::RingEntry;
use crate::hub::stream::{SessionId, Stream, StreamState};
use crate::hub::track::Track;
use crate::media::MediaKind;
use crate::media::track_delivery::SourceTrack;
use crate::sdp::negotiation_result::AudioVideoFormats;

/// A source and its stream.
#[derive(Debug)]
pub(super) struct FailoverSource {
    pub settings: FailoverSourceSettings,
    pub stream: Arc<Stream>,
    pub condition: SourceCondition,
    pub state_since: Option<Instant>,
    /// As of the last look at it while it was connected.
    pub video: ObservedVideo,
    input: FailoverInput,
    /// Its session, and when that was first seen.
    session: Option<(SessionId, Instant)>,
    /// Whether the session has sent a key frame.
    has_video: bool,
    is_demanded: bool,
}

/// What is known of the video of a source.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ObservedVideo {
    pub track: Option<SourceTrack>,
    /// Width and height in pixels.
    pub resolution: Option<(u16, u16)>,
    /// Payload bits per second; 0 if unknown.
    pub bitrate: u64,
}

/// What is shown of a source at first.
#[derive(Debug)]
pub(super) struct SourceCopyStart {
    pub state: SourceAndTrackProperties,
    pub formats: AudioVideoFormats,
    pub video: TrackCopyStart,
    pub audio: TrackCopyStart,
    /// Packets of audio that are too old to be shown.
    pub skipped_audio_insertions: u64,
}

/// What is seen of a source at one moment.
struct SourceObservation {
    session: SessionId,
    is_video_announced: bool,
    has_key_frame: bool,
    newest_video: Option<Instant>,
    newest_audio: Option<Instant>,
    frames_per_second: f64,
    video: ObservedVideo,
}

/// A source that announces video and sends audio alone is taken for one of audio after this time.
const ANNOUNCED_VIDEO_TIMEOUT: Duration = Duration::from_secs(5);

/// Frames that must be missing before a source with few of them counts as stalled.
const MISSING_FRAMES_UNTIL_STALLED: f64 = 3.0;

/// Stall timeout until the frame rate of a source is known, at least.
const MIN_STALL_TIMEOUT_WITHOUT_FRAME_RATE: Duration = Duration::from_secs(1);

/// Stall timeout of a source with few frames, at most.
const MAX_STALL_TIMEOUT_BY_FRAME_RATE: Duration = Duration::from_secs(10);

impl FailoverSource {
    pub(super) fn new(settings: FailoverSourceSettings, input: FailoverInput, stream: Arc<Stream>) -> Self {
        Self {
            settings,
            stream,
            condition: SourceCondition::default(),
            state_since: None,
            video: ObservedVideo::default(),
            input,
            session: None,
            has_video: false,
            is_demanded: false,
        }
    }

    /// Looks at the stream of the source.
    pub(super) fn update_source_condition(&mut self, now: Instant, stall_timeout: Duration) {
        let seen = self
            .stream
            .with_state(|state| SourceObservation::from_stream_state(now, state));
        let state = match &seen {
            Some(seen) => {
                if self.session.is_none_or(|(session, _)| session != seen.session) {
                    self.session = Some((seen.session, now));
                    self.condition.live_since = None;
                }
                self.has_video = seen.has_key_frame;
                self.video = seen.video;
                let since = self.session.map_or(now, |(_, since)| since);
                seen.failover_source_state(now, since, stall_timeout)
            }
            None => {
                self.session = None;
                FailoverSourceState::Away
            }
        };
        if self.state_since.is_none() || state != self.condition.state {
            self.condition.state = state;
            self.state_since = Some(now);
        }
        if state == FailoverSourceState::Live {
            self.condition.live_since.get_or_insert(now);
        } else {
            self.condition.live_since = None;
        }
    }

    /// The session that it has, as of the last look.
    pub(super) fn session_id(&self) -> Option<SessionId> {
        self.session.map(|(session, _)| session)
    }

    /// Whether it has to run, if it runs on demand.
    pub(super) fn is_demanded(&self) -> bool {
        self.is_demanded
    }

    /// Whether it can be shown from these packets on.
    pub(super) fn can_start_with_packets(&self, packets: &[Arc<RingEntry>]) -> bool {
        let is_key_frame =
            |entry: &Arc<RingEntry>| entry.packet.identifies_key_frame && entry.packet.codec.kind() == MediaKind::Video;
        !self.has_video || packets.iter().any(is_key_frame)
    }

    /// Whether it can be shown from what is cached. A key frame may have left the cache.
    pub(super) fn can_start_from_cache(&self) -> bool {
        let is_cached = |state: &mut StreamState| state.video.ring().newest_key_frame_seq().is_some();
        !self.has_video || self.stream.with_state(is_cached)
    }

    /// Reads what is shown of it at first; `packets` are those that are being delivered. `None` if it has ended.
    pub(super) fn read_copy_start(&self, packets: &[Arc<RingEntry>]) -> Option<SourceCopyStart> {
        let is_audio = |entry: &&Arc<RingEntry>| entry.packet.codec.kind() == MediaKind::Audio;
        let audio: Vec<Arc<RingEntry>> = packets.iter().filter(is_audio).cloned().collect();
        self.stream.with_state(|state| {
            let ring = state.video.ring();
            let begin = ring.newest_key_frame_seq().unwrap_or(ring.end_seq());
            let video = (begin..ring.end_seq()).filter_map(|seq| ring.get(seq).cloned());
            let video = track_copy_start(&state.video, video.collect());
            let oldest_audio = audio.iter().map(|entry| entry.insertion_order).min();
            let inserted = state.audio.ring().insertion_count();
            Some(SourceCopyStart {
                state: SourceAndTrackProperties::from_stream_state(state)?,
                formats: state.formats()?,
                video,
                audio: track_copy_start(&state.audio, audio),
                skipped_audio_insertions: oldest_audio.map_or(inserted, |order| order - 1),
            })
        })
    }

    /// Sets whether it has to run, if it runs on demand.
    pub(super) fn set_source_demand(&mut self, is_needed: bool) {
        if self.settings.runs_on_demand && self.is_demanded != is_needed {
            self.is_demanded = is_needed;
            self.stream
                .with_state(|state| state.set_failover_group_demand(&self.input, is_needed));
        }
    }
}

fn track_copy_start(track: &Track, cached_packets: Vec<Arc<RingEntry>>) -> TrackCopyStart {
    TrackCopyStart {
        clock: *track.clock(),
        newest_time: track.ring().newest_track_time_and_arrival().map(|(time, _)| time),
        cached_packets,
    }
}

impl SourceObservation {
    fn from_stream_state(now: Instant, state: &StreamState) -> Option<Self> {
        let newest = |track: &Track| track.ring().newest_track_time_and_arrival().map(|(_, arrival)| arrival);
        Some(Self {
            session: state.source()?.session_id,
            is_video_announced: state.video.format().is_some(),
            has_key_frame: state.video.first_key_frame_arrival().is_some(),
            newest_video: newest(&state.video),
            newest_audio: newest(&state.audio),
            frames_per_second: state.video.rate_meter().last_rate().frames_per_second,
            video: ObservedVideo {
                track: state.source_format_and_b_frames(MediaKind::Video),
                resolution: state.video.resolution(),
                bitrate: state.video.rate_meter().current_rate(now).bitrate,
            },
        })
    }

    fn failover_source_state(
        &self,
        now: Instant,
        session_since: Instant,
        stall_timeout: Duration,
    ) -> FailoverSourceState {
        let is_audio_alone =
            !self.is_video_announced || now.saturating_duration_since(session_since) >= ANNOUNCED_VIDEO_TIMEOUT;
        let (newest, timeout) = if self.has_key_frame {
            (self.newest_video, self.video_stall_timeout(stall_timeout))
        } else if is_audio_alone {
            // What is older belongs to an earlier session.
            (self.newest_audio.filter(|at| *at >= session_since), stall_timeout)
        } else {
            (None, stall_timeout)
        };
        match newest {
            None => FailoverSourceState::Starting,
            Some(at) if now.saturating_duration_since(at) >= timeout => FailoverSourceState::Stalled,
            Some(_) => FailoverSourceState::Live,
        }
    }

    fn video_stall_timeout(&self, stall_timeout: Duration) -> Duration {
        if self.frames_per_second <= 0.0 {
            return stall_timeout.max(MIN_STALL_TIMEOUT_WITHOUT_FRAME_RATE);
        }
        let frames =
            Duration::try_from_secs_f64(MISSING_FRAMES_UNTIL_STALLED / self.frames_per_second).unwrap_or(Duration::MAX);
        stall_timeout.max(frames.min(MAX_STALL_TIMEOUT_BY_FRAME_RATE))
    }
}
