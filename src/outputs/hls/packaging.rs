//! The task that packages one stream while it has HLS requests: it follows the stream to other sources and to
//! transcoded streams, and requests key frames. Not sans-I/O, like [`service`](super::service).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::packaged_stream::{PackagedStream, StreamProvider};
use super::packager::{MonotonicAndWallTime, Packager};
use super::rendition::RenditionRole;
use millstream_core::hub::Hub;
use millstream_core::hub::mailbox::Mailbox;
use millstream_core::hub::name::{StreamKey, StreamName};
use millstream_core::hub::reader::RingReader;
use millstream_core::hub::stream::{SessionId, SimulcastLayer, StreamState};
use millstream_core::hub::tap::{StreamTap, TapQueue};
use millstream_core::media::depacketizer::{Depacketizer, Frame};
use millstream_core::media::track_delivery::{self, SourceTrack, TrackDelivery, TranscodeTarget};
use millstream_core::media::{Codec, CodecFormat, MediaKind};

/// Maximum age of the last key frame before another one is requested. It is lower for the first segment, for which
/// players wait.
const MAX_KEY_FRAME_AGE: Duration = Duration::from_secs(2);
const MAX_KEY_FRAME_AGE_BEFORE_FIRST_SEGMENT: Duration = Duration::from_secs(1);

/// Minimum interval between key frame requests.
const MIN_KEY_FRAME_REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of the check for a new source and for idleness, neither of which is signalled.
const STREAM_STATE_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Packages a stream until `remove_if_unwatched` has removed it, because it had no requests for a while.
pub(super) async fn package_stream(
    remove_if_idle: impl Fn() -> bool,
    plane: Arc<dyn StreamProvider>,
    name: StreamName,
    live: Arc<PackagedStream>,
) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let tap: Arc<TapQueue> = Arc::new(Mailbox::new(1, move || notify.notify_one()));
    let mut tracks: Vec<TrackReader<'_>> = Vec::new();
    let mut best_layer: Option<StreamTap<'_>> = None;
    let mut last_key_frame_request = Instant::now();
    let mut next_poll = Instant::now();
    let mut retry_at: Option<std::time::Instant> = None;
    loop {
        let due = retry_at.map_or(next_poll, |at| next_poll.min(at.into()));
        tokio::select! {
            () = changed.notified() => tap.take_all_messages(&mut VecDeque::new()),
            () = live.poll_requested.notified() => next_poll = Instant::now(),
            () = sleep_until(due) => {}
        }
        let now = Instant::now();
        if now >= next_poll {
            next_poll = now + STREAM_STATE_POLL_INTERVAL;
            if remove_if_idle() {
                info!(stream = %name, "HLS packaging stopped: no recent requests");
                return;
            }
            tap_best_pulled_layer(plane.all_streams_hub(), &name, &tap, &mut best_layer);
            update_track_readers_and_renditions(plane.all_streams_hub(), &name, &tap, &live, &mut tracks);
            let max_age = if live.lock_packager().has_complete_segment() {
                MAX_KEY_FRAME_AGE
            } else {
                MAX_KEY_FRAME_AGE_BEFORE_FIRST_SEGMENT
            };
            if now.duration_since(last_key_frame_request) >= MIN_KEY_FRAME_REQUEST_INTERVAL
                && request_key_frame_if_older_than(&*plane, &tracks, max_age)
            {
                last_key_frame_request = now;
            }
        }
        retry_at = package_new_frames(&live, &mut tracks, now.into_std());
    }
}

/// Keeps a tap on the best layer of a camera: it is pulled only while somebody reads it. The stream itself carries it then.
fn tap_best_pulled_layer<'a>(
    hub: &'a Hub,
    name: &StreamName,
    queue: &Arc<TapQueue>,
    best_layer: &mut Option<StreamTap<'a>>,
) {
    let best = hub.find_stream(name).and_then(|stream| {
        stream.with_state(|state| {
            let best = state.layers().iter().find(|layer| layer.is_available());
            best.filter(|best| best.is_pulled()).map(|best| best.rid.clone())
        })
    });
    let key = best.map(|rid| name.lower_simulcast_layer_key(&rid));
    if best_layer.as_ref().map(|tap| &tap.stream.key) != key.as_ref() {
        *best_layer = key.map(|key| StreamTap::open(hub, key, queue));
    }
}

/// Updates the track readers to the current source, layers and transcoded streams of the stream.
fn update_track_readers_and_renditions<'a>(
    hub: &'a Hub,
    name: &StreamName,
    tap: &Arc<TapQueue>,
    live: &PackagedStream,
    tracks: &mut Vec<TrackReader<'a>>,
) {
    let Some(stream) = hub.find_stream(name) else { return };
    let was_aac_requested_recently = live.was_aac_requested_recently();
    let followed = stream.with_state(|state| {
        let source = state.source()?;
        let of = |role: RenditionRole| Some((role, playable_stream_key(hub, name, state, role.kind())?));
        let inputs: Vec<(RenditionRole, StreamKey)> = [RenditionRole::Video, RenditionRole::Audio]
            .into_iter()
            .filter_map(of)
            .collect();
        let aac = aac_transcode_key(hub, name, state).filter(|_| was_aac_requested_recently);
        Some((inputs, lower_simulcast_layer_keys(name, state), aac, source.session_id))
    });
    let Some((inputs, lower_layers, aac, source)) = followed else {
        return;
    };
    let main = tracks
        .iter()
        .filter(|track| matches!(track.role, RenditionRole::Video | RenditionRole::Audio));
    let is_same = main.clone().count() == inputs.len()
        && main.zip(&inputs).all(|(track, (role, key))| {
            track.role == *role && track.tap.stream.key == *key && track.source_session == source
        });
    if !is_same {
        if !tracks.is_empty() {
            let mut packager = live.lock_packager();
            packager.restart_timeline();
            // Remove renditions that the new source lacks: they would stay in the playlists, and audio would wait for
            // them.
            let is_kept = |role: &RenditionRole| match role {
                RenditionRole::Video | RenditionRole::Audio => inputs.iter().any(|(kept, _)| kept == role),
                RenditionRole::VideoLayer2 | RenditionRole::VideoLayer3 => {
                    lower_layers.iter().any(|(kept, _)| kept == role)
                }
                RenditionRole::AacAudio => aac.is_some(),
            };
            for role in RenditionRole::ALL_ROLES.into_iter().filter(|role| !is_kept(role)) {
                packager.remove_rendition(role);
            }
            live.discard_rendered_playlists(&packager);
        }
        let track =
            |(role, key): (RenditionRole, StreamKey)| TrackReader::new(role, StreamTap::open(hub, key, tap), source);
        *tracks = inputs.into_iter().map(track).collect();
    }
    // Layers are added and removed without restarting the other tracks.
    let is_current = |track: &TrackReader<'_>| {
        let is_layer = matches!(track.role, RenditionRole::VideoLayer2 | RenditionRole::VideoLayer3);
        let is_active = lower_layers
            .iter()
            .any(|(role, key)| *role == track.role && *key == track.tap.stream.key);
        !is_layer || is_active
    };
    for track in tracks.iter().filter(|track| !is_current(track)) {
        remove_rendition_and_discard_playlists(live, track.role);
    }
    tracks.retain(is_current);
    for (role, key) in &lower_layers {
        if !tracks.iter().any(|track| track.role == *role) {
            tracks.push(TrackReader::new(*role, StreamTap::open(hub, key, tap), source));
        }
    }
    // The same applies to transcoded AAC.
    let has_aac = tracks.iter().any(|track| track.role == RenditionRole::AacAudio);
    match aac {
        Some(key) if !has_aac => tracks.push(TrackReader::new(
            RenditionRole::AacAudio,
            StreamTap::open(hub, key, tap),
            source,
        )),
        None if has_aac => {
            tracks.retain(|track| track.role != RenditionRole::AacAudio);
            remove_rendition_and_discard_playlists(live, RenditionRole::AacAudio);
        }
        Some(_) | None => {}
    }
}

fn remove_rendition_and_discard_playlists(live: &PackagedStream, role: RenditionRole) {
    let mut packager = live.lock_packager();
    packager.remove_rendition(role);
    live.discard_rendered_playlists(&packager);
}

/// Requests a key frame from the source if the last one is older than `max_age`, because segments start at key frames.
/// An old key frame of a single layer is sufficient, since players could not switch to it. The source responds with key
/// frames of all layers, which keeps their segments aligned.
fn request_key_frame_if_older_than(plane: &dyn StreamProvider, tracks: &[TrackReader<'_>], max_age: Duration) -> bool {
    let mut video = tracks.iter().filter(|track| track.role.kind() == MediaKind::Video);
    let source = video.find_map(|track| {
        track.tap.stream.with_state(|state| {
            let ring = state.video.ring();
            let age = ring
                .newest_key_frame_seq()
                .and_then(|key_frame| ring.packet_age_behind_newest(key_frame));
            age.is_none_or(|age| age >= max_age)
                .then(|| state.flag_key_frame_request_and_get_source())?
        })
    });
    if let Some(source) = source {
        plane.request_key_frame_from_source(source);
    }
    source.is_some()
}

/// Reads one track from its ring for the packager.
struct TrackReader<'a> {
    role: RenditionRole,
    tap: StreamTap<'a>,
    /// Source of the stream when the reader was created.
    source_session: SessionId,
    reader: Option<RingReader>,
    depacketizer: Depacketizer,
}

impl<'a> TrackReader<'a> {
    fn new(role: RenditionRole, tap: StreamTap<'a>, source: SessionId) -> Self {
        Self {
            role,
            tap,
            source_session: source,
            reader: None,
            depacketizer: Depacketizer::new(role.kind()),
        }
    }

    /// Appends new frames. Returns when to retry if packets are missing.
    fn read_new_frames(&mut self, now: std::time::Instant, frames: &mut Vec<Frame>) -> Option<std::time::Instant> {
        let mut entries = Vec::new();
        let retry_at = self.tap.stream.with_state(|state| {
            let ring = state.track(self.role.kind()).ring();
            if self.reader.is_none() {
                self.reader = match self.role.kind() {
                    // With the oldest one, players often find a complete segment at once.
                    MediaKind::Video => RingReader::starting_at_oldest_key_frame(ring),
                    // Starts before the video; the packager drops audio that is too early.
                    MediaKind::Audio => Some(RingReader::starting_at_oldest_packet(ring)),
                };
            }
            self.reader.as_mut()?.append_available_packets(now, ring, &mut entries)
        });
        for entry in entries {
            self.depacketizer.push_packet(&entry.packet, frames);
        }
        retry_at
    }
}

/// Renditions that a stream is expected to have, as they are or transcoded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ExpectedRenditions {
    pub(super) has_video: bool,
    /// Number of simulcast layers.
    pub(super) layer_count: usize,
    pub(super) has_audio: bool,
    /// AAC transcode in addition to the original audio.
    pub(super) has_aac_transcode: bool,
}

/// Returns the renditions that a stream is expected to have.
pub(super) fn expected_renditions(hub: &Hub, name: &StreamName) -> ExpectedRenditions {
    let Some(stream) = hub.find_stream(name) else {
        return ExpectedRenditions::default();
    };
    stream.with_state(|state| {
        let has = |kind| playable_stream_key(hub, name, state, kind).is_some();
        ExpectedRenditions {
            has_video: has(MediaKind::Video),
            layer_count: 1 + lower_simulcast_layer_keys(name, state).len(),
            has_audio: has(MediaKind::Audio),
            has_aac_transcode: aac_transcode_key(hub, name, state).is_some(),
        }
    })
}

/// Returns the codec of the video of a stream that has video and no video rendition.
pub(super) fn unsupported_video_codec(hub: &Hub, name: &StreamName) -> Option<Codec> {
    hub.find_stream(name)?.with_state(|state| {
        let is_packaged = playable_stream_key(hub, name, state, MediaKind::Video).is_some();
        let video = state
            .source_format_and_b_frames(MediaKind::Video)
            .filter(|_| !is_packaged);
        video.map(|track| track.format.codec())
    })
}

/// Returns whether HLS players play a track without transcoding. They have AAC, and no G.711; B-frames are transcoded, so
/// that one transcode serves them and WebRTC.
fn is_playable_without_transcoding(track: SourceTrack) -> bool {
    Packager::supports_format(track.format)
        && (track.format.codec().kind() == MediaKind::Audio || track.is_webrtc_playable())
}

/// Returns the active layers below the best one, which the stream itself carries. Empty if the video must be transcoded.
fn lower_simulcast_layer_keys(name: &StreamName, state: &StreamState) -> Vec<(RenditionRole, StreamKey)> {
    let is_playable = state
        .source_format_and_b_frames(MediaKind::Video)
        .is_some_and(is_playable_without_transcoding);
    let active = state.layers().iter().filter(|layer| is_playable && layer.active);
    let is_carried = |layer: &&SimulcastLayer| !layer.is_pulled() || layer.is_carried_by_main_stream;
    let below = active.skip_while(|layer| !is_carried(layer)).skip(1);
    let lower_layers = below.map(|layer| name.lower_simulcast_layer_key(&layer.rid));
    [RenditionRole::VideoLayer2, RenditionRole::VideoLayer3]
        .into_iter()
        .zip(lower_layers)
        .collect()
}

/// Returns the stream with the audio transcoded to AAC. `None` if the audio is AAC already, if the transcode is unavailable,
/// or if the video codec is not supported by Apple players either.
fn aac_transcode_key(hub: &Hub, name: &StreamName, state: &StreamState) -> Option<StreamKey> {
    let source = state.source_format_and_b_frames(MediaKind::Audio)?;
    let video = state.format(MediaKind::Video).map(CodecFormat::codec);
    let supports_video = !matches!(video, Some(Codec::Vp8 | Codec::Vp9 | Codec::Av1));
    let target = TranscodeTarget::Aac;
    let can_transcode = hub.can_transcode_codec_to(source.format.codec(), target);
    let plan = track_delivery::choose_track_delivery(source, target, can_transcode, |track| {
        track.format.codec() == Codec::Aac
    });
    match plan {
        TrackDelivery::Transcode(target) if supports_video => Some(name.transcode_key(target)),
        TrackDelivery::Transcode(_) | TrackDelivery::Passthrough | TrackDelivery::Unavailable(_) => None,
    }
}

/// Returns the stream that a kind is read from: the stream itself or its transcode; `None` if neither is playable.
fn playable_stream_key(hub: &Hub, name: &StreamName, state: &StreamState, kind: MediaKind) -> Option<StreamKey> {
    let source = state.source_format_and_b_frames(kind)?;
    let can_transcode = hub.can_transcode_codec_for_browsers(source.format.codec());
    match track_delivery::choose_track_delivery(
        source,
        TranscodeTarget::webrtc_target_for_kind(kind),
        can_transcode,
        is_playable_without_transcoding,
    ) {
        TrackDelivery::Passthrough => Some(name.into()),
        TrackDelivery::Transcode(target) => Some(name.transcode_key(target)),
        TrackDelivery::Unavailable(_) => None,
    }
}

fn package_new_frames(
    live: &PackagedStream,
    tracks: &mut [TrackReader<'_>],
    now: std::time::Instant,
) -> Option<std::time::Instant> {
    let has_video = tracks.iter().any(|track| track.role == RenditionRole::Video);
    #[expect(clippy::disallowed_methods, reason = "the wall clock for EXT-X-PROGRAM-DATE-TIME")]
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let (mut retry_at, mut updated): (Option<std::time::Instant>, bool) = (None, false);
    for track in tracks {
        let mut frames = Vec::new();
        let due = track.read_new_frames(now, &mut frames);
        retry_at = [retry_at, due].into_iter().flatten().min();
        if frames.is_empty() {
            continue;
        }
        // A copy: HTTP requests hold the packager's lock while they render, and a shard must not wait for them.
        let view = track.tap.stream.with_state(|state| {
            let mut view = state.track(track.role.kind()).format_and_clock();
            // Key frames are requested for segments.
            view.key_frame_interval = view
                .key_frame_interval
                .filter(|_| !state.responds_to_key_frame_requests);
            view
        });
        let mut packager = live.lock_packager();
        let mut has_new_parts = false;
        for frame in frames {
            has_new_parts |= packager.push_frame(
                &view,
                track.role,
                has_video,
                &frame,
                MonotonicAndWallTime {
                    monotonic_time: now,
                    wall_clock_time: wall,
                },
            );
        }
        if has_new_parts {
            live.discard_rendered_playlists(&packager);
        }
        updated |= has_new_parts;
    }
    if updated {
        live.notify_waiting_requests();
    }
    retry_at
}
