//! Playback of one WHEP viewer: forwards packets of the hub with rewritten headers.
//!
//! A viewer is a state machine like [`crate::session::Session`]: `handle_*` calls go in, sealed packets go to the outbox,
//! and [`Viewer::poll_output`] returns what the shard must do. After each `handle_*` call the shard drains it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::played::Played;
use super::track::{OutTrack, Retransmissions};
use crate::hub::name::StreamKey;
use crate::hub::ring::{Entry, HISTORY, Ring};
use crate::hub::stream::{LayerSelection, SourceRef, Stream, StreamId, StreamState};
use crate::hub::traffic;
use crate::media::rtcp::{self, Message, SenderInfo};
use crate::media::transcode::TrackPlan;
use crate::media::{Codec, Kind, Ssrc};
use crate::sdp::plan::Playback;
use crate::session::egress::Egress;

/// A viewer of a stream. A track whose format it cannot play is taken from a transcoded stream
/// ([`crate::media::transcode`]). Switching between the two when the format changes keeps sequence numbers and
/// timestamps continuous.
pub struct Viewer {
    pub stream: Arc<Stream>,
    video: Option<Played>,
    audio: Option<Played>,
    cname: String,
    started: bool,
    next_report: Option<Instant>,
    /// When the viewer requested a key frame that has not arrived yet.
    awaited_key_frame: Option<Instant>,
    last_replay: Option<Instant>,
    rtt: Duration,
    layer: LayerSelection,
    pending: Pending,
}

/// What [`Viewer::poll_output`] has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    /// Close the session: SRTP protection of a packet failed.
    close: bool,
    /// Request a key frame from the source.
    key_frame: bool,
    /// Select the stream of each track again, and complete switches.
    streams: bool,
    /// Send what is due from the rings.
    catch_up: bool,
}

/// What the shard must do for a viewer.
pub enum ViewerOutput {
    /// Request a key frame from this source.
    RequestKeyFrame(SourceRef),
    /// Subscribe the viewer to this stream and pass the stream to [`Viewer::handle_subscribed`].
    Subscribe { kind: Kind, stream: StreamKey },
    /// Cancel the subscription to this stream.
    Unsubscribe(Arc<Stream>),
    /// Close the session: a packet could not be encrypted.
    Close,
}

/// Interval of sender reports (RFC 3550 §6.2 allows less than 5 s if bandwidth permits).
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// If the source ignores a viewer's key frame request, the cached key frame is replayed after this time.
const REPLAY_AFTER: Duration = Duration::from_millis(600);

/// Minimum interval between replays for one viewer.
const REPLAY_INTERVAL: Duration = Duration::from_secs(3);

/// Time in which a source usually answers a key frame request: a round trip and a frame.
const ANSWER_TIME: Duration = Duration::from_millis(300);

/// A cached key frame younger than this is used instead of requesting a new one: requests are limited to one per
/// second.
const FRESH: Duration = Duration::from_secs(1);

/// Video is not replayed if nothing arrived for this long: the viewer has already seen it, and the source may be dead.
/// Longer than [`REPLAY_AFTER`] plus a round trip, so that requests caused by a frame are answered at low frame rates
/// too.
const SILENT_AFTER: Duration = Duration::from_millis(1_500);

impl Viewer {
    /// `random` seeds sequence numbers and timestamps (RFC 3550 §5.1).
    pub fn new(stream: Arc<Stream>, playback: Playback, random: &mut dyn FnMut() -> u32) -> Self {
        let (mut video, mut audio) = (None, None);
        for track in playback.tracks {
            match track.kind {
                Kind::Video => video = Some(Played::new(OutTrack::new(track, random), &stream)),
                Kind::Audio => audio = Some(Played::new(OutTrack::new(track, random), &stream)),
            }
        }
        Self {
            stream,
            video,
            audio,
            cname: playback.cname,
            started: false,
            next_report: None,
            awaited_key_frame: None,
            last_replay: None,
            rtt: Duration::from_millis(100),
            layer: LayerSelection::default(),
            pending: Pending::default(),
        }
    }

    /// Starts playback when the session is connected: video from the cached key frame if there is one, audio at the live
    /// edge. Without a source, video waits for the next source, because the frames of the previous one are not live.
    pub fn handle_connected(&mut self, now: Instant) {
        self.started = true;
        self.next_report = Some(now + REPORT_INTERVAL / 4);
        let (video, audio) = (&mut self.video, &mut self.audio);
        let needs_key_frame = self.stream.with(|state| {
            if let Some(audio) = audio {
                audio.out.start_live(state.audio.ring());
            }
            let Some(video) = video.as_mut().filter(|_| state.source().is_some()) else {
                return false;
            };
            let request = is_request_cheaper(state.video.ring(), state.viewers());
            if request && state.answers_requests {
                video.out.wait(now + ANSWER_TIME, state.video.ring());
            } else {
                video.out.start(now, state.video.ring());
            }
            request
        });
        self.pending.key_frame |= needs_key_frame;
        self.select_streams_again();
    }

    /// Handles a change of the layer selection.
    pub fn handle_layer_selection(&mut self, selection: LayerSelection) {
        self.layer = selection;
        self.select_streams_again();
    }

    /// Handles a stream that [`ViewerOutput::Subscribe`] requested.
    pub fn handle_subscribed(&mut self, now: Instant, kind: Kind, stream: Arc<Stream>) {
        let is_playing = self.started;
        if let Some(played) = self.played_mut(kind) {
            played.begin_switch(now, stream, is_playing);
        }
    }

    /// Handles batches lost on the way to this shard: packets that are still in the ring are sent from there.
    pub fn handle_overflow(&mut self, now: Instant) {
        for played in [&mut self.video, &mut self.audio].into_iter().flatten() {
            played.out.recover(now);
        }
        // A change of the stream, or the key frame that a switch waits for, may have been lost too.
        self.select_streams_again();
    }

    /// Handles a change of the formats or the layers of a stream.
    pub fn handle_stream_changed(&mut self, stream: StreamId) {
        if self.stream.id == stream {
            self.select_streams_again();
        }
    }

    /// Forwards the packets of a stream that arrived in one tick.
    pub fn handle_packets(&mut self, stream: StreamId, packets: &[Arc<Entry>], egress: &mut Egress<'_>) {
        let Some(mut rtp) = egress.rtp() else { return };
        for entry in packets {
            let packet = &entry.packet;
            let played = match packet.codec.kind() {
                Kind::Video => &mut self.video,
                Kind::Audio => &mut self.audio,
            };
            let Some(played) = played else { continue };
            if played.from.id != stream {
                if (packet.key_frame || played.kind() == Kind::Audio) && played.awaits(stream) {
                    self.pending.streams = true;
                    self.pending.catch_up = true;
                }
                continue;
            }
            let track = &mut played.out;
            if packet.key_frame {
                self.awaited_key_frame = None;
                self.pending.catch_up |= track.is_waiting();
            }
            if track.takes(entry) {
                self.pending.close |= track.send(entry, &mut rtp).is_err();
            }
        }
    }

    /// Handles RTCP of the viewer.
    pub fn handle_rtcp(&mut self, now: Instant, ntp_now: u64, messages: &[Message], egress: &mut Egress<'_>) {
        self.stream.traffic.reception.record(messages);
        for message in messages {
            match message {
                Message::Nack { media, seqs } => self.retransmit(now, *media, seqs, egress),
                Message::KeyFrameRequest { media } => {
                    if self.video.as_ref().is_some_and(|v| v.out.ssrc() == *media) {
                        self.awaited_key_frame.get_or_insert(now);
                        self.pending.key_frame = true;
                    }
                }
                Message::ReceiverReport { blocks } | Message::SenderReport { blocks, .. } => {
                    for block in blocks.iter().filter(|b| b.last_sr != 0) {
                        if let Some(rtt) = round_trip(ntp_now, block) {
                            self.rtt = rtt;
                            self.stream.traffic.round_trip(rtt);
                        }
                    }
                }
                Message::Bye => {}
            }
        }
    }

    /// Handles timers: replays, sender reports, and what is due from the rings.
    pub fn handle_timeout(&mut self, now: Instant, ntp_now: u64, egress: &mut Egress<'_>) {
        if !self.started {
            return;
        }
        self.replay_if_ignored(now);
        if self.next_report.is_some_and(|at| at <= now) {
            self.next_report = Some(now + REPORT_INTERVAL);
            if let Some(report) = self.report(now, ntp_now) {
                egress.rtcp(&report);
            }
        }
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if is_due(self.switch_due()) {
            self.select_streams_again();
        }
        self.pending.catch_up |= is_due(self.poll_catch_up());
    }

    /// Returns when [`Self::handle_timeout`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.started {
            return None;
        }
        let replay = self.awaited_key_frame.map(|since| {
            let due = since + REPLAY_AFTER;
            self.last_replay.map_or(due, |last| due.max(last + REPLAY_INTERVAL))
        });
        [self.next_report, replay, self.poll_catch_up(), self.switch_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether [`Self::poll_output`] has something to do.
    pub fn has_output(&self) -> bool {
        self.pending != Pending::default()
    }

    /// Returns the next thing that the shard must do, and sends what is due from the rings. `can_transcode` tells whether
    /// a codec can be transcoded.
    pub fn poll_output(
        &mut self,
        now: Instant,
        egress: &mut Egress<'_>,
        can_transcode: impl Fn(Codec) -> bool,
    ) -> Option<ViewerOutput> {
        loop {
            if std::mem::take(&mut self.pending.close) {
                return Some(ViewerOutput::Close);
            }
            if std::mem::take(&mut self.pending.key_frame)
                && let Some(source) = self.request_key_frame_of_source()
            {
                return Some(ViewerOutput::RequestKeyFrame(source));
            }
            if self.pending.streams {
                let output = self.select_streams(now, &can_transcode);
                let output = output.or_else(|| self.complete_switches(now));
                if output.is_some() {
                    return output;
                }
                self.pending.streams = false;
                // A switch between layers waits for a key frame, which a request brings sooner.
                self.pending.key_frame = self.switch_due().is_some();
            } else if std::mem::take(&mut self.pending.catch_up) {
                self.catch_up(now, egress);
            } else {
                return None;
            }
        }
    }

    /// Returns the streams other than its own that the viewer reads or waits for.
    pub fn other_streams(&self) -> Vec<Arc<Stream>> {
        let played = [&self.video, &self.audio].into_iter().flatten();
        let streams = played.flat_map(Played::streams);
        streams.filter(|stream| stream.id != self.stream.id).cloned().collect()
    }

    fn select_streams_again(&mut self) {
        self.pending.streams = true;
        self.pending.catch_up = true;
    }

    /// Selects the stream of each track. Returns a subscription to be changed first, `None` when all are as they should be.
    fn select_streams(&mut self, now: Instant, can_transcode: impl Fn(Codec) -> bool) -> Option<ViewerOutput> {
        let (home, is_playing) = (self.stream.clone(), self.started);
        let wanted = home.with(|state| self.wanted(state, can_transcode));
        for (kind, key) in wanted {
            let Some(played) = self.played_mut(kind).filter(|played| played.target().key != key) else {
                continue;
            };
            if let Some(replaced) = played.cancel_switch().filter(|replaced| replaced.id != home.id) {
                return Some(ViewerOutput::Unsubscribe(replaced));
            }
            if played.from.key == key {
                continue;
            }
            if key != home.key {
                return Some(ViewerOutput::Subscribe { kind, stream: key });
            }
            played.begin_switch(now, home.clone(), is_playing);
        }
        None
    }

    /// Returns for each kind the stream that the viewer should take it from. `home` is the state of the stream itself.
    fn wanted(&self, home: &StreamState, can_transcode: impl Fn(Codec) -> bool) -> Vec<(Kind, StreamKey)> {
        [&self.video, &self.audio]
            .into_iter()
            .flatten()
            .map(|played| {
                let kind = played.kind();
                let own = &self.stream.key;
                let layer = || match kind {
                    Kind::Video => self.layer.choose(home.layers()),
                    Kind::Audio => None,
                };
                let wanted = match played.plan(home, &can_transcode) {
                    Some(TrackPlan::Transcode(target)) => Some(own.name.transcoded(target)),
                    Some(TrackPlan::AsIs | TrackPlan::Nothing(_)) | None => layer().map(|rid| own.name.layer(&rid)),
                };
                (kind, wanted.unwrap_or_else(|| own.clone()))
            })
            .collect()
    }

    /// Completes pending switches whose stream has media to start with.
    fn complete_switches(&mut self, now: Instant) -> Option<ViewerOutput> {
        if !self.started {
            return None;
        }
        let home = self.stream.id;
        let mut played = [&mut self.video, &mut self.audio].into_iter().flatten();
        let left = played.find_map(|played| played.complete_switch(now).filter(|left| left.id != home));
        left.map(ViewerOutput::Unsubscribe)
    }

    /// Returns when a switch between layers stops waiting and uses the cached key frame.
    fn switch_due(&self) -> Option<Instant> {
        self.video.as_ref()?.switch_due()
    }

    /// Records a key frame request of the viewer. Returns the source to send it to, if any.
    fn request_key_frame_of_source(&self) -> Option<SourceRef> {
        let stream = self.video.as_ref()?.target();
        stream.with(StreamState::request_key_frame_of_source)
    }

    fn played_mut(&mut self, kind: Kind) -> Option<&mut Played> {
        match kind {
            Kind::Video => self.video.as_mut(),
            Kind::Audio => self.audio.as_mut(),
        }
    }

    /// Sends the packets that are due from the rings. A key frame is requested if the packets to send, including their key
    /// frame, are no longer in the ring.
    fn catch_up(&mut self, now: Instant, egress: &mut Egress<'_>) {
        if !self.started {
            return;
        }
        let waits = |video: &Option<Played>| video.as_ref().is_some_and(|video| video.out.is_waiting());
        let waited = waits(&self.video);
        let mut due = [Vec::new(), Vec::new()];
        for (played, due) in [&mut self.video, &mut self.audio].into_iter().zip(&mut due) {
            if let Some(Played { out, from, .. }) = played {
                from.with(|state| {
                    let is_dead =
                        state.source().is_none() || (out.is_replaying() && is_silent(state.video.ring(), now));
                    if is_dead && out.kind() == Kind::Video {
                        out.stop_reading();
                    } else {
                        out.catch_up(now, state.track(out.kind()).ring(), due);
                    }
                });
            }
        }
        self.pending.key_frame |= !waited && waits(&self.video);
        let Some(mut rtp) = egress.rtp() else { return };
        for (played, due) in [&mut self.video, &mut self.audio].into_iter().zip(due) {
            let Some(played) = played else { continue };
            for entry in due {
                self.pending.close |= played.out.send(&entry, &mut rtp).is_err();
            }
        }
    }

    fn retransmit(&mut self, now: Instant, media: Ssrc, seqs: &[u16], egress: &mut Egress<'_>) {
        let Some(mut rtp) = egress.rtp() else { return };
        let rtt = self.rtt;
        let mut tracks = [&mut self.video, &mut self.audio].into_iter().flatten();
        let Some(Played { out: track, from, .. }) = tracks.find(|played| played.out.ssrc() == media) else {
            return;
        };
        let wanted: Vec<Retransmissions> = from.with(|state| {
            // A receiver no longer waits for packets of a source that has left.
            let has_source = state.source().is_some();
            let ring = state.track(track.kind()).ring();
            let is_recent = |(_, at)| now.saturating_duration_since(at) <= HISTORY;
            if !has_source && !ring.newest().is_some_and(is_recent) {
                return Vec::new();
            }
            track.find_nacked(now, rtt, seqs, ring)
        });
        traffic::add(&self.stream.traffic.resent, wanted.len() as u64);
        for item in wanted {
            self.pending.close |= track.resend(&item, &mut rtp).is_err();
        }
    }

    fn replay_if_ignored(&mut self, now: Instant) {
        let ignored = self
            .awaited_key_frame
            .is_some_and(|since| now.duration_since(since) >= REPLAY_AFTER);
        let recent = self
            .last_replay
            .is_some_and(|at| now.duration_since(at) < REPLAY_INTERVAL);
        if ignored && !recent {
            self.awaited_key_frame = None;
            let Some(Played { out, from, .. }) = &mut self.video else {
                return;
            };
            let replayed = from.with(|state| {
                let is_live = state.source().is_some() && !is_silent(state.video.ring(), now);
                if is_live {
                    out.replay(now, state.video.ring());
                }
                is_live
            });
            if replayed {
                self.last_replay = Some(now);
            }
        }
    }

    /// Returns when packets are due from a ring.
    fn poll_catch_up(&self) -> Option<Instant> {
        [&self.video, &self.audio]
            .into_iter()
            .flatten()
            .filter_map(|played| played.out.poll_catch_up())
            .min()
    }

    /// Returns a compound packet with a sender report for each track that is at the live edge.
    fn report(&self, now: Instant, ntp: u64) -> Option<Vec<u8>> {
        let mut compound = Vec::new();
        for Played { out: track, from, .. } in [&self.video, &self.audio].into_iter().flatten() {
            let time = from.with(|state| state.track(track.kind()).clock().time_at(now));
            let Some(time) = time.and_then(|time| track.live_stamp(time)) else {
                continue;
            };
            let sent = track.sent();
            let info = SenderInfo {
                ssrc: track.ssrc(),
                ntp,
                rtp_time: time,
                packets: sent.packets,
                octets: sent.octets,
            };
            rtcp::write_sender_report(&mut compound, &info, &self.cname);
        }
        (!compound.is_empty()).then_some(compound)
    }
}

/// Whether nothing arrived within [`SILENT_AFTER`].
fn is_silent(ring: &Ring, now: Instant) -> bool {
    ring.newest()
        .is_none_or(|(_, arrival)| now.saturating_duration_since(arrival) >= SILENT_AFTER)
}

/// Whether requesting a key frame, which is sent to every viewer, costs less than sending the cached packets to one
/// viewer.
fn is_request_cheaper(ring: &Ring, viewers: usize) -> bool {
    let Some(key_frame) = ring.key_frame() else {
        return true;
    };
    let age = ring.age(key_frame).unwrap_or_default();
    age > FRESH && ring.bytes_since_key_frame() > ring.frame_bytes(key_frame).saturating_mul(viewers)
}

/// Returns the round-trip time of a report block (RFC 3550 §6.4.1), or `None` if it is 10 s or more.
fn round_trip(ntp_now: u64, block: &rtcp::ReportBlock) -> Option<Duration> {
    let middle = (ntp_now >> 16) as u32;
    let units = middle
        .wrapping_sub(block.last_sr)
        .wrapping_sub(block.delay_since_last_sr);
    let rtt = Duration::from_secs_f64(f64::from(units) / 65_536.0);
    (rtt < Duration::from_secs(10)).then_some(rtt)
}
