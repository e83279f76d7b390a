//! A publisher: paced synthetic media, retransmission on NACK, key frames on request if it is of that kind.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use millstream_core::media::rtcp::{self, RtcpMessage, SenderInfo};
use millstream_core::media::{Ssrc, clock};
use millstream_test_support::sdp::RTX_DISTANCE;
use millstream_test_support::{OfferParameters, SyntheticAudio, SyntheticVideo, VideoCodec, VideoConfig};

pub(super) struct Publisher {
    config: VideoConfig,
    video: SyntheticVideo,
    audio: SyntheticAudio,
    audio_ssrc: u32,
    /// The simulcast layers below the best one, best first.
    lower_layers: Vec<(u32, SyntheticVideo)>,
    started: Option<Instant>,
    /// When it sent for the first time: its clock runs on while it is frozen.
    switched_on: Option<Instant>,
    polled_at: Option<Instant>,
    /// It does nothing, and goes on where it was.
    pub is_frozen: bool,
    /// When each video frame was sent.
    pub sent_at: HashMap<u32, Instant>,
    history: VecDeque<Vec<u8>>,
    /// How it takes requests for lost audio packets; ignores them if `None`.
    pub audio_retransmission: Option<AudioRetransmission>,
    audio_history: VecDeque<Vec<u8>>,
    pub ignores_audio_requests: bool,
    /// When each audio packet was requested again, by its sequence number.
    pub audio_requests: Vec<(Instant, u16)>,
    pending: Vec<Vec<u8>>,
    /// When a request for a key frame arrived.
    pub requests: Vec<Instant>,
    pub ignores_key_frame_requests: bool,
    kind: Encoder,
    /// Sequence number of the next retransmission.
    rtx_seq: u16,
    audio_rtx_seq: u16,
    next_report: Option<Instant>,
    /// What is due is lost instead of sent.
    pub paused: bool,
    /// The same of the best simulcast layer alone.
    pub is_best_layer_paused: bool,
    /// The same of audio.
    pub is_audio_paused: bool,
    /// The next packet of this SSRC is lost and never sent again.
    pub loses_packet_of: Option<u32>,
    /// From the capture of a frame, according to sender reports, until it is sent.
    pub encoding: Duration,
    /// The same according to the header extension `abs-capture-time`, which it offers then for its video.
    pub encoding_by_abs_capture_time: Option<Duration>,
}

/// Whose habits a publisher has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoder {
    /// Ignores requests for key frames, sends lost packets again as they were.
    Obs,
    /// Sends a key frame when asked for one, and lost packets on a stream of their own (RFC 4588).
    Browser,
    /// As FFmpeg 9.0.2: ignores requests for key frames, sends lost packets on a stream of their own, and reads a datagram
    /// of RTCP only if it is a NACK and nothing else.
    Ffmpeg,
}

/// How lost audio packets are sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AudioRetransmission {
    /// As they were.
    Plain,
    /// On a stream of their own (RFC 4588).
    Rtx,
}

/// Payload type of retransmitted audio.
const AUDIO_RTX_PT: u8 = 112;

/// Id of the header extension for capture times.
const ABS_CAPTURE_TIME_ID: u8 = 7;
const ABS_CAPTURE_TIME_URI: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";

/// As many packets as OBS keeps.
const HISTORY: usize = 4_000;

impl Publisher {
    /// Like OBS: asked for a key frame it does nothing.
    pub(super) fn deaf(config: VideoConfig) -> Self {
        Self {
            config,
            video: SyntheticVideo::new(config),
            audio: SyntheticAudio::new(111, config.ssrc ^ 0xffff, config.seed),
            audio_ssrc: config.ssrc ^ 0xffff,
            lower_layers: Vec::new(),
            started: None,
            switched_on: None,
            polled_at: None,
            is_frozen: false,
            sent_at: HashMap::new(),
            history: VecDeque::new(),
            audio_retransmission: None,
            audio_history: VecDeque::new(),
            ignores_audio_requests: false,
            audio_requests: Vec::new(),
            pending: Vec::new(),
            requests: Vec::new(),
            ignores_key_frame_requests: false,
            kind: Encoder::Obs,
            rtx_seq: 0,
            audio_rtx_seq: 0,
            next_report: None,
            paused: false,
            is_best_layer_paused: false,
            is_audio_paused: false,
            loses_packet_of: None,
            encoding: Duration::ZERO,
            encoding_by_abs_capture_time: None,
        }
    }

    /// Like a browser: asked for a key frame it sends one.
    pub(super) fn obedient(config: VideoConfig) -> Self {
        Self {
            kind: Encoder::Browser,
            ..Self::deaf(config)
        }
    }

    /// Like a browser that sends simulcast layers, the best first.
    pub(super) fn simulcast(layers: &[VideoConfig]) -> Self {
        let (best, lower) = layers.split_first().expect("a layer");
        Self {
            lower_layers: lower
                .iter()
                .map(|layer| (layer.ssrc, SyntheticVideo::new(*layer)))
                .collect(),
            ..Self::obedient(*best)
        }
    }

    /// SSRCs of the simulcast layers, best first; empty without simulcast.
    pub(super) fn layer_ssrcs(&self) -> Vec<u32> {
        let lower: Vec<u32> = self.lower_layers.iter().map(|(ssrc, _)| *ssrc).collect();
        let best = (!lower.is_empty()).then_some(self.config.ssrc);
        best.into_iter().chain(lower).collect()
    }

    /// Like FFmpeg's `whip` muxer.
    pub(super) fn ffmpeg(config: VideoConfig) -> Self {
        Self {
            kind: Encoder::Ffmpeg,
            ..Self::deaf(config)
        }
    }

    /// Whether it offers retransmissions as a stream of their own.
    pub(super) fn offers_rtx(&self) -> bool {
        matches!(self.kind, Encoder::Browser | Encoder::Ffmpeg)
    }

    /// What it offers.
    pub(super) fn codecs(&self) -> &'static [VideoCodec] {
        match self.config.codec {
            VideoCodec::H264 => &[VideoCodec::H264],
            VideoCodec::Vp8 => &[VideoCodec::Vp8],
        }
    }

    /// Its offer, with retransmission of audio if it takes requests for it.
    pub(super) fn offer_text(&self, offer: &OfferParameters) -> String {
        let mut text = offer.whip();
        if self.encoding_by_abs_capture_time.is_some() {
            text += &format!("a=extmap:{ABS_CAPTURE_TIME_ID} {ABS_CAPTURE_TIME_URI}\r\n");
        }
        let opus = "a=rtpmap:111 opus/48000/2\r\n";
        match self.audio_retransmission {
            None => text,
            Some(AudioRetransmission::Plain) => text.replace(opus, &format!("{opus}a=rtcp-fb:111 nack\r\n")),
            Some(AudioRetransmission::Rtx) => {
                let (ssrc, rtx) = (self.audio_ssrc, !self.audio_ssrc);
                let pt = AUDIO_RTX_PT;
                let lines = format!(
                    "{opus}a=rtcp-fb:111 nack\r\na=rtpmap:{pt} rtx/48000\r\na=fmtp:{pt} apt=111\r\n\
                     a=ssrc-group:FID {ssrc} {rtx}\r\na=ssrc:{rtx} cname:peer\r\n"
                );
                text.replace(opus, &lines)
                    .replace("SAVPF 111\r\n", &format!("SAVPF 111 {pt}\r\n"))
            }
        }
    }

    pub(super) fn video_ssrc(&self) -> u32 {
        self.config.ssrc
    }

    pub(super) fn audio_ssrc(&self) -> u32 {
        self.audio_ssrc
    }

    /// Number of the newest frame that was sent.
    pub(super) fn newest(&self) -> u32 {
        self.sent_at.keys().copied().max().unwrap_or(0)
    }

    /// RTP and RTCP that are due.
    pub(super) fn poll(&mut self, now: Instant) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let polled_at = self.polled_at.replace(now).unwrap_or(now);
        if self.is_frozen {
            self.started = self.started.map(|started| started + (now - polled_at));
            return (Vec::new(), Vec::new());
        }
        self.switched_on.get_or_insert(now);
        let started = *self.started.get_or_insert(now);
        let mut rtp = std::mem::take(&mut self.pending);
        while started + self.video.next_at() <= now {
            let mut frame = self.video.next_frame();
            if self.paused || self.is_best_layer_paused {
                continue;
            }
            if let Some(encoding) = self.encoding_by_abs_capture_time {
                let captured = self.ntp_time(now) - clock_ticks_of_ntp(encoding);
                for packet in &mut frame.packets {
                    add_abs_capture_time(packet, captured);
                }
            }
            self.sent_at.insert(frame.number, now);
            self.history.extend(frame.packets.iter().cloned());
            rtp.extend(frame.packets);
        }
        for (_, video) in &mut self.lower_layers {
            while started + video.next_at() <= now {
                let frame = video.next_frame();
                if !self.paused {
                    rtp.extend(frame.packets);
                }
            }
        }
        while started + self.audio.next_at() <= now {
            let frame = self.audio.next_frame();
            if !self.paused && !self.is_audio_paused {
                self.audio_history.extend(frame.packets.iter().cloned());
                rtp.extend(frame.packets);
            }
        }
        self.lose_packet(&mut rtp);
        for history in [&mut self.history, &mut self.audio_history] {
            while history.len() > HISTORY {
                history.pop_front();
            }
        }
        let due = self.next_report.is_none_or(|at| at <= now) && now > started;
        let rtcp = if due {
            vec![self.report(now, started)]
        } else {
            Vec::new()
        };
        (rtp, rtcp)
    }

    fn lose_packet(&mut self, rtp: &mut Vec<Vec<u8>>) {
        let Some(ssrc) = self.loses_packet_of else { return };
        if let Some(index) = rtp.iter().position(|packet| packet[8..12] == ssrc.to_be_bytes()) {
            let lost = rtp.remove(index);
            self.history.retain(|packet| *packet != lost);
            self.loses_packet_of = None;
        }
    }

    /// The time of its wall clock.
    fn ntp_time(&self, now: Instant) -> u64 {
        let running = now.duration_since(self.switched_on.unwrap_or(now));
        clock::unix_to_ntp(Duration::from_secs(1_700_000_000) + running)
    }

    fn report(&mut self, now: Instant, started: Instant) -> Vec<u8> {
        self.next_report = Some(now + Duration::from_secs(1));
        let elapsed = now.duration_since(started);
        let ntp = self.ntp_time(now);
        let mut compound = Vec::new();
        let first = self.config.first_time;
        for (ssrc, rate, first) in [(self.config.ssrc, 90_000, first), (self.audio_ssrc, 48_000, 0)] {
            let rtp_time = first.wrapping_add(clock::duration_to_ticks(elapsed + self.encoding, rate) as u32);
            let info = SenderInfo {
                ssrc: Ssrc(ssrc),
                ntp_time: ntp,
                rtp_time,
                packet_count: 1,
                octet_count: 1,
            };
            rtcp::write_sender_report_with_cname(&mut compound, &info, "publisher");
        }
        compound
    }

    pub(super) fn handle_rtcp(&mut self, now: Instant, compound: &[u8]) {
        if self.kind == Encoder::Ffmpeg {
            let length = compound
                .get(2..4)
                .map(|l| 4 * (1 + usize::from(u16::from_be_bytes([l[0], l[1]]))));
            let is_nack = compound.starts_with(&[0x81, 205]) && length == Some(compound.len());
            if !is_nack {
                return;
            }
        }
        for message in rtcp::parse_compound_until_malformed(compound) {
            match message {
                RtcpMessage::Nack { media_ssrc, seqs } if media_ssrc == Ssrc(self.audio_ssrc) => {
                    for seq in seqs {
                        self.audio_requests.push((now, seq));
                        if !self.ignores_audio_requests {
                            self.retransmit_audio(seq);
                        }
                    }
                }
                RtcpMessage::Nack { seqs, .. } => {
                    for seq in seqs {
                        self.retransmit(seq);
                    }
                }
                RtcpMessage::KeyFrameRequest { media_ssrc } => {
                    self.requests.push(now);
                    if self.ignores_key_frame_requests {
                        continue;
                    }
                    let mut lower = self.lower_layers.iter_mut();
                    if let Some((_, video)) = lower.find(|(ssrc, _)| Ssrc(*ssrc) == media_ssrc) {
                        video.request_key_frame();
                    } else if self.kind == Encoder::Browser {
                        self.video.request_key_frame();
                    }
                }
                _ => {}
            }
        }
    }

    fn retransmit_audio(&mut self, seq: u16) {
        let wanted = |packet: &&Vec<u8>| packet[2..4] == seq.to_be_bytes();
        let found = self.audio_history.iter().rev().find(wanted).cloned();
        let (Some(mut packet), Some(kind)) = (found, self.audio_retransmission) else {
            return;
        };
        if kind == AudioRetransmission::Rtx {
            packet[1] = packet[1] & 0x80 | AUDIO_RTX_PT;
            packet[2..4].copy_from_slice(&self.audio_rtx_seq.to_be_bytes());
            packet[8..12].copy_from_slice(&(!self.audio_ssrc).to_be_bytes());
            packet.splice(12..12, seq.to_be_bytes());
            self.audio_rtx_seq += 1;
        }
        self.pending.push(packet);
    }

    fn retransmit(&mut self, seq: u16) {
        let wanted = |packet: &&Vec<u8>| packet[2..4] == seq.to_be_bytes();
        let Some(mut packet) = self.history.iter().rev().find(wanted).cloned() else {
            return;
        };
        if self.offers_rtx() {
            packet[1] += RTX_DISTANCE;
            packet[2..4].copy_from_slice(&self.rtx_seq.to_be_bytes());
            packet[8..12].copy_from_slice(&(!self.config.ssrc).to_be_bytes());
            packet.splice(12..12, seq.to_be_bytes());
            self.rtx_seq += 1;
        }
        self.pending.push(packet);
    }
}

fn clock_ticks_of_ntp(duration: Duration) -> u64 {
    u64::try_from((duration.as_nanos() << 32) / 1_000_000_000).expect("less than a century")
}

/// Adds the header extension, with an offset of zero: the sender is the capturer.
fn add_abs_capture_time(packet: &mut Vec<u8>, captured: u64) {
    packet[0] |= 0x10;
    let mut extension = vec![0xbe, 0xde, 0, 5, ABS_CAPTURE_TIME_ID << 4 | 15];
    extension.extend(captured.to_be_bytes());
    extension.extend([0; 8 + 3]);
    packet.splice(12..12, extension);
}
