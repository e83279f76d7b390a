//! A publisher: paced synthetic media, retransmission on NACK, key frames on request if it is of that kind.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use millstream_core::media::rtcp::{self, Message, SenderInfo};
use millstream_core::media::{Ssrc, clock};
use millstream_test_support::sdp::RTX_DISTANCE;
use millstream_test_support::{SyntheticAudio, SyntheticVideo, VideoCodec, VideoConfig};

pub(super) struct Publisher {
    config: VideoConfig,
    video: SyntheticVideo,
    audio: SyntheticAudio,
    audio_ssrc: u32,
    started: Option<Instant>,
    /// When each video frame was sent.
    pub sent_at: HashMap<u32, Instant>,
    history: VecDeque<Vec<u8>>,
    pending: Vec<Vec<u8>>,
    /// When a request for a key frame arrived.
    pub requests: Vec<Instant>,
    kind: Encoder,
    /// Sequence number of the next retransmission.
    rtx_seq: u16,
    next_report: Option<Instant>,
    /// What is due is lost instead of sent.
    pub paused: bool,
    /// From the capture of a picture, as reports tell, until it is sent.
    pub encoding: Duration,
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
            started: None,
            sent_at: HashMap::new(),
            history: VecDeque::new(),
            pending: Vec::new(),
            requests: Vec::new(),
            kind: Encoder::Obs,
            rtx_seq: 0,
            next_report: None,
            paused: false,
            encoding: Duration::ZERO,
        }
    }

    /// Like a browser: asked for a key frame it sends one.
    pub(super) fn obedient(config: VideoConfig) -> Self {
        Self {
            kind: Encoder::Browser,
            ..Self::deaf(config)
        }
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
        let started = *self.started.get_or_insert(now);
        let mut rtp = std::mem::take(&mut self.pending);
        while started + self.video.next_at() <= now {
            let frame = self.video.next_frame();
            if self.paused {
                continue;
            }
            self.sent_at.insert(frame.number, now);
            self.history.extend(frame.packets.iter().cloned());
            rtp.extend(frame.packets);
        }
        while started + self.audio.next_at() <= now {
            let frame = self.audio.next_frame();
            if !self.paused {
                rtp.extend(frame.packets);
            }
        }
        while self.history.len() > HISTORY {
            self.history.pop_front();
        }
        let due = self.next_report.is_none_or(|at| at <= now) && now > started;
        let rtcp = if due {
            vec![self.report(now, started)]
        } else {
            Vec::new()
        };
        (rtp, rtcp)
    }

    fn report(&mut self, now: Instant, started: Instant) -> Vec<u8> {
        self.next_report = Some(now + Duration::from_secs(1));
        let elapsed = now.duration_since(started);
        let ntp = clock::ntp(Duration::from_secs(1_700_000_000) + elapsed);
        let mut compound = Vec::new();
        let first = self.config.first_time;
        for (ssrc, rate, first) in [(self.config.ssrc, 90_000, first), (self.audio_ssrc, 48_000, 0)] {
            let rtp_time = first.wrapping_add(clock::ticks(elapsed + self.encoding, rate) as u32);
            let info = SenderInfo {
                ssrc: Ssrc(ssrc),
                ntp,
                rtp_time,
                packets: 1,
                octets: 1,
            };
            rtcp::write_sender_report(&mut compound, &info, "publisher");
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
        for message in rtcp::read(compound) {
            match message {
                Message::Nack { seqs, .. } => {
                    for seq in seqs {
                        self.retransmit(seq);
                    }
                }
                Message::KeyFrameRequest { .. } => {
                    self.requests.push(now);
                    if self.kind == Encoder::Browser {
                        self.video.request_key_frame();
                    }
                }
                _ => {}
            }
        }
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
