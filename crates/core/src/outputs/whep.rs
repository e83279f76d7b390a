//! Playback of one WHEP viewer: forwards packets of the hub with rewritten headers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::track::{OutTrack, Retransmissions};
use crate::hub::name::StreamKey;
use crate::hub::ring::{HISTORY, Ring};
use crate::hub::stream::{LayerSelection, SourceRef, Stream, StreamId, StreamState};
use crate::hub::traffic;
use crate::media::packet::{Packet, TrackSeq};
use crate::media::rtcp::{self, Message, SenderInfo};
use crate::media::transcode::TrackPlan;
use crate::media::{Codec, Kind, Ssrc};
use crate::sdp::plan::Playback;
use crate::session::Session;
use crate::session::outbox::{Destination, Outbox};

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
    /// SRTP protection of a packet failed, so the session must be closed.
    broken: bool,
}

/// A track, and the stream that it is taken from.
struct Played {
    out: OutTrack,
    from: Arc<Stream>,
    /// The stream to switch to once it has a key frame, or audio.
    next: Option<Next>,
}

/// A stream that a track will switch to.
struct Next {
    stream: Arc<Stream>,
    /// Set for a switch between layers, during which the current layer continues: the switch waits for a key frame
    /// newer than this one, at most until this instant.
    after: Option<(Option<TrackSeq>, Instant)>,
}

/// Maximum wait for a new key frame of the next layer, longer than the usual key frame interval. After that the cached
/// key frame is used.
const LAYER_SWITCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Actions that a viewer requests from its shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewerRequests {
    /// Request a key frame from the source.
    pub key_frame: bool,
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
            broken: false,
        }
    }

    /// Starts playback: video from the cached key frame if there is one, audio at the live edge. Without a source,
    /// video waits for the next source, because the frames of the previous one are not live.
    pub fn start(&mut self, now: Instant, state: &mut StreamState) -> ViewerRequests {
        self.started = true;
        self.next_report = Some(now + REPORT_INTERVAL / 4);
        if let Some(audio) = &mut self.audio {
            audio.out.start_live(&state.audio.ring);
        }
        let Some(video) = self.video.as_mut().filter(|_| state.source().is_some()) else {
            return ViewerRequests::default();
        };
        let request = is_request_cheaper(&state.video.ring, state.viewers());
        if request && state.answers_requests {
            video.out.wait(now + ANSWER_TIME, &state.video.ring);
        } else {
            video.out.start(now, &state.video.ring);
        }
        ViewerRequests { key_frame: request }
    }

    /// Returns for each kind the stream that the viewer should take it from. `home` is the state of the stream itself,
    /// and `can_transcode` tells whether a codec can be transcoded.
    pub fn wanted(&self, home: &StreamState, can_transcode: impl Fn(Codec) -> bool) -> Vec<(Kind, StreamKey)> {
        [&self.video, &self.audio]
            .into_iter()
            .flatten()
            .map(|played| {
                let kind = played.out.kind();
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

    /// Whether a kind is taken from this stream, or will be after a pending switch.
    pub fn is_bound_for(&self, kind: Kind, key: &StreamKey) -> bool {
        let played = self.played(kind);
        played.is_none_or(|played| {
            let next = played.next.as_ref().map(|next| &next.stream);
            next.unwrap_or(&played.from).key == *key
        })
    }

    /// Sets the stream that a kind switches to. Returns the target of a pending switch that this replaces.
    pub fn bind(&mut self, now: Instant, kind: Kind, to: Arc<Stream>) -> Option<Arc<Stream>> {
        let started = self.started;
        let played = self.played_mut(kind)?;
        let stays = played.from.id == to.id;
        let is_layer = |stream: &Stream| stream.key.is_layer();
        let is_smooth = started && kind == Kind::Video && (is_layer(&to) || is_layer(&played.from));
        let after = is_smooth.then(|| {
            (
                to.with(|state| state.video.ring.key_frame()),
                now + LAYER_SWITCH_TIMEOUT,
            )
        });
        let next = (!stays).then_some(Next { stream: to, after });
        std::mem::replace(&mut played.next, next).map(|next| next.stream)
    }

    /// Whether a switch between layers is waiting for a key frame.
    pub fn awaits_layer(&self) -> bool {
        self.layer_due().is_some()
    }

    /// Returns when a switch between layers stops waiting and uses the cached key frame.
    pub fn layer_due(&self) -> Option<Instant> {
        let next = self.video.as_ref()?.next.as_ref()?;
        next.after.map(|(_, until)| until)
    }

    /// Sets the layer selection of the viewer.
    pub fn select_layer(&mut self, selection: LayerSelection) {
        self.layer = selection;
    }

    /// Completes pending switches set by [`Self::bind`] whose stream has media to start with. Returns the streams that
    /// are no longer used.
    pub fn change(&mut self, now: Instant) -> Vec<Arc<Stream>> {
        let mut left = Vec::new();
        if !self.started {
            return left;
        }
        for played in [&mut self.video, &mut self.audio].into_iter().flatten() {
            left.extend(played.change(now));
        }
        left
    }

    /// Returns the other streams that the viewer reads or waits for.
    pub fn others(&self) -> Vec<Arc<Stream>> {
        let played = [&self.video, &self.audio].into_iter().flatten();
        let streams = played.flat_map(|played| [Some(&played.from), played.next.as_ref().map(|next| &next.stream)]);
        streams
            .flatten()
            .filter(|stream| stream.id != self.stream.id)
            .cloned()
            .collect()
    }

    /// Records a key frame request of the viewer. Returns the source to send it to, if any.
    pub fn request_key_frame_of_source(&self) -> Option<SourceRef> {
        let video = self.video.as_ref()?;
        let stream = video.next.as_ref().map_or(&video.from, |next| &next.stream);
        stream.with(StreamState::request_key_frame_of_source)
    }

    fn played(&self, kind: Kind) -> Option<&Played> {
        match kind {
            Kind::Video => self.video.as_ref(),
            Kind::Audio => self.audio.as_ref(),
        }
    }

    fn played_mut(&mut self, kind: Kind) -> Option<&mut Played> {
        match kind {
            Kind::Video => self.video.as_mut(),
            Kind::Audio => self.audio.as_mut(),
        }
    }

    /// Whether SRTP protection failed.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Forwards the packets of a stream that arrived in one tick.
    pub fn forward(
        &mut self,
        stream: StreamId,
        packets: &[Arc<Packet>],
        session: &mut Session,
        destination: Destination,
        outbox: &mut Outbox,
    ) -> Forwarded {
        let mut forwarded = Forwarded::default();
        let Some(sealer) = session.sealer() else {
            return forwarded;
        };
        for packet in packets {
            let played = match packet.codec.kind() {
                Kind::Video => &mut self.video,
                Kind::Audio => &mut self.audio,
            };
            let Some(played) = played else { continue };
            if played.from.id != stream {
                let is_next = played.next.as_ref().is_some_and(|next| next.stream.id == stream);
                forwarded.may_change |= is_next && (packet.key_frame || played.out.kind() == Kind::Audio);
                continue;
            }
            let track = &mut played.out;
            if packet.key_frame {
                self.awaited_key_frame = None;
                forwarded.may_catch_up |= track.is_waiting();
            }
            if track.takes(packet) {
                self.broken |= track.send(packet, sealer, destination, outbox).is_err();
            }
        }
        forwarded
    }

    /// Handles batches lost on the way to this shard: packets that are still in the ring are sent from there.
    pub fn on_lost_batches(&mut self, now: Instant) {
        for played in [&mut self.video, &mut self.audio].into_iter().flatten() {
            played.out.recover(now);
        }
    }

    /// Sends the packets that are due from the ring. Called at [`Self::poll_timeout`].
    ///
    /// Requests a key frame if the packets to send, including their key frame, are no longer in the ring.
    pub fn catch_up(
        &mut self,
        now: Instant,
        session: &mut Session,
        destination: Destination,
        outbox: &mut Outbox,
    ) -> ViewerRequests {
        let waits = |video: &Option<Played>| video.as_ref().is_some_and(|video| video.out.is_waiting());
        let waited = waits(&self.video);
        let mut due = [Vec::new(), Vec::new()];
        for (played, due) in [&mut self.video, &mut self.audio].into_iter().zip(&mut due) {
            if let Some(Played { out, from, .. }) = played {
                from.with(|state| {
                    let is_dead = state.source().is_none() || (out.is_replaying() && is_silent(&state.video.ring, now));
                    if is_dead && out.kind() == Kind::Video {
                        out.stop_reading();
                    } else {
                        out.catch_up(now, &state.track(out.kind()).ring, due);
                    }
                });
            }
        }
        let requests = ViewerRequests {
            key_frame: !waited && waits(&self.video),
        };
        let Some(sealer) = session.sealer() else {
            return requests;
        };
        for (played, due) in [&mut self.video, &mut self.audio].into_iter().zip(due) {
            let Some(played) = played else { continue };
            for packet in due {
                self.broken |= played.out.send(&packet, sealer, destination, outbox).is_err();
            }
        }
        requests
    }

    /// Handles RTCP of the viewer.
    pub fn handle_rtcp(
        &mut self,
        now: Instant,
        ntp_now: u64,
        messages: &[Message],
        session: &mut Session,
        destination: Destination,
        outbox: &mut Outbox,
    ) -> ViewerRequests {
        let mut requests = ViewerRequests::default();
        self.stream.traffic.reception.record(messages);
        for message in messages {
            match message {
                Message::Nack { media, seqs } => self.retransmit(now, *media, seqs, session, destination, outbox),
                Message::KeyFrameRequest { media } => {
                    if self.video.as_ref().is_some_and(|v| v.out.ssrc() == *media) {
                        self.awaited_key_frame.get_or_insert(now);
                        requests.key_frame = true;
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
        requests
    }

    fn retransmit(
        &mut self,
        now: Instant,
        media: Ssrc,
        seqs: &[u16],
        session: &mut Session,
        destination: Destination,
        outbox: &mut Outbox,
    ) {
        let Some(sealer) = session.sealer() else { return };
        let rtt = self.rtt;
        let mut tracks = [&mut self.video, &mut self.audio].into_iter().flatten();
        let Some(Played { out: track, from, .. }) = tracks.find(|played| played.out.ssrc() == media) else {
            return;
        };
        let wanted: Vec<Retransmissions> = from.with(|state| {
            // A receiver no longer waits for packets of a source that has left.
            let has_source = state.source().is_some();
            let ring = &state.track(track.kind()).ring;
            let is_recent = |(_, at)| now.saturating_duration_since(at) <= HISTORY;
            if !has_source && !ring.newest().is_some_and(is_recent) {
                return Vec::new();
            }
            track.find_nacked(now, rtt, seqs, ring)
        });
        traffic::add(&self.stream.traffic.resent, wanted.len() as u64);
        for item in wanted {
            self.broken |= track.resend(&item, sealer, destination, outbox).is_err();
        }
    }

    /// Handles timers: replays and sender reports. Catching up is done by [`Self::catch_up`].
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        ntp_now: u64,
        session: &mut Session,
        destination: Destination,
        outbox: &mut Outbox,
    ) {
        if !self.started {
            return;
        }
        self.replay_if_ignored(now);
        if self.next_report.is_some_and(|at| at <= now) {
            self.next_report = Some(now + REPORT_INTERVAL);
            if let Some(sealed) = self.report(now, ntp_now).and_then(|report| session.seal_rtcp(&report)) {
                outbox.datagram(destination, &sealed);
            }
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
                let is_live = state.source().is_some() && !is_silent(&state.video.ring, now);
                if is_live {
                    out.replay(now, &state.video.ring);
                }
                is_live
            });
            if replayed {
                self.last_replay = Some(now);
            }
        }
    }

    /// Returns when [`Self::handle_timeout`] or [`Self::catch_up`] must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.started {
            return None;
        }
        let replay = self.awaited_key_frame.map(|since| {
            let due = since + REPLAY_AFTER;
            self.last_replay.map_or(due, |last| due.max(last + REPLAY_INTERVAL))
        });
        [self.next_report, replay, self.poll_catch_up(), self.layer_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns when [`Self::catch_up`] must be called next.
    pub fn poll_catch_up(&self) -> Option<Instant> {
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
            let time = from.with(|state| state.track(track.kind()).clock.time_at(now));
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

/// The result of forwarding a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// [`Viewer::catch_up`] must be called at once.
    pub may_catch_up: bool,
    /// [`Viewer::change`] must be called at once.
    pub may_change: bool,
}

impl Played {
    fn new(out: OutTrack, home: &Arc<Stream>) -> Self {
        Self {
            out,
            from: home.clone(),
            next: None,
        }
    }

    /// How the track reaches the viewer; `None` as long as the stream has no such track.
    fn plan(&self, home: &StreamState, can_transcode: impl Fn(Codec) -> bool) -> Option<TrackPlan> {
        let track = home.available_track(self.out.kind(), can_transcode)?;
        Some(track.plan(|format| self.out.can_take(format.codec())))
    }

    fn change(&mut self, now: Instant) -> Option<Arc<Stream>> {
        let Next { stream: next, after } = self.next.as_ref()?;
        let (next, after) = (next.clone(), *after);
        // Read before the next stream is locked: two viewers that switch in opposite directions would deadlock.
        let kind = self.out.kind();
        let last = self
            .out
            .last_sent()
            .and_then(|seq| self.from.with(|state| state.track(kind).ring.get(seq).cloned()));
        let out = &mut self.out;
        let has_begun = next.with(|state| {
            let has_source = state.source().is_some();
            let ring = &state.track(kind).ring;
            let can_begin = match kind {
                Kind::Video => {
                    let is_new = after.is_none_or(|(cached, until)| ring.key_frame() != cached || now >= until);
                    ring.key_frame().is_some() && is_new
                }
                Kind::Audio => ring.newest().is_some(),
            };
            if has_source && can_begin {
                out.leave(last.as_deref());
                match kind {
                    Kind::Video => {
                        out.start(now, ring);
                    }
                    Kind::Audio => out.start_live(ring),
                }
            }
            has_source && can_begin
        });
        if !has_begun {
            if let Some(waiting) = self
                .next
                .as_mut()
                .filter(|next| next.after.is_some_and(|(_, until)| until <= now))
            {
                // The wait is over and there is no cached key frame: switch at the next one.
                waiting.after = None;
            }
            return None;
        }
        self.next = None;
        Some(std::mem::replace(&mut self.from, next))
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
