//! A viewer that behaves like a browser: asks again for what is missing, and remembers everything that it saw.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millstream_core::media::rtcp::{self, RtcpMessage};
use millstream_core::media::rtp::{ParsedRtpHeader, extend_rtp_timestamp, extend_seq};
use millstream_core::media::{CodecFormat, MediaKind, Ssrc};
use millstream_core::sdp::negotiation_result::OutgoingTrack;
use millstream_core::session::feedback::TransportFeedbackGenerator;
use millstream_test_support::media::vp8_counters;
use millstream_test_support::{FrameCheck, Stamp, VideoCodec};

pub(super) struct Viewer {
    pub tracks: Vec<OutgoingTrack>,
    rtt: Duration,
    pub video: Line,
    pub audio: Line,
    pub check: FrameCheck,
    /// When each video frame was whole.
    pub whole_at: BTreeMap<u32, Instant>,
    /// Picture ID and TL0PICIDX by extended sequence number, of VP8.
    pub vp8_counters: BTreeMap<u64, (u16, u8)>,
    parts: BTreeMap<u32, u16>,
    /// Packets that came as retransmissions.
    pub retransmitted: u64,
    pub plis: Vec<Vec<u8>>,
    /// NTP time and RTP time of the last sender report, by kind.
    pub reports: BTreeMap<u32, (u64, u32)>,
    pub nacks: bool,
    /// Whether it requests missing audio again, as it does video.
    pub nacks_audio: bool,
    /// Packets asked for again, each time counted.
    pub asked: u64,
    /// Sends a receiver report each second, as browsers do.
    pub sends_reports: bool,
    /// Transport-wide feedback, if it gives any.
    pub feedback: Option<TransportFeedbackGenerator>,
    /// Packets with a transport-wide number.
    pub numbered: u64,
    pub last_number: u16,
    /// All decrypted packets, if they are kept.
    pub plain_packets: Option<Vec<Vec<u8>>>,
    reception_by_ssrc: BTreeMap<u32, ReceptionReports>,
    reported_at: Option<Instant>,
}

/// What a receiver report says of an SSRC.
#[derive(Default)]
struct ReceptionReports {
    /// Sequence number of the newest packet and of that at the last report.
    newest: Option<u16>,
    newest_reported: Option<u16>,
    /// Packets since the last report.
    received: u16,
    /// Of the last sender report: the middle of its NTP time, and when it came.
    report: Option<(u32, Instant)>,
}

impl ReceptionReports {
    fn record(&mut self, seq: u16) {
        self.received += 1;
        let newest = *self.newest.get_or_insert(seq);
        if seq.wrapping_sub(newest) < 0x8000 {
            self.newest = Some(seq);
        }
    }

    fn block(&mut self, now: Instant, media: u32) -> Option<rtcp::ReceiverReportStats> {
        let newest = self.newest?;
        let before = self.newest_reported.replace(newest).unwrap_or(newest);
        let received = std::mem::take(&mut self.received);
        let expected = newest.wrapping_sub(before);
        let lost = u32::from(expected.saturating_sub(received));
        // Before the first sender report there is none to name (RFC 3550 §6.4.1).
        let (last_sr, since) = self.report.unwrap_or((0, now));
        Some(rtcp::ReceiverReportStats {
            media_ssrc: Ssrc(media),
            fraction_lost: u8::try_from(lost * 256 / u32::from(expected.max(1))).expect("a fraction"),
            cumulative_lost: lost,
            highest_seq: u32::from(newest),
            jitter: 0,
            last_sr,
            delay_since_last_sr: (now.duration_since(since).as_secs_f64() * 65_536.0) as u32,
        })
    }
}

/// What was seen of one track.
#[derive(Default)]
pub(super) struct Line {
    /// Arrival, RTP time and stamp by extended sequence number.
    pub packets: BTreeMap<u64, Seen>,
    missing: BTreeMap<u64, Missing>,
    highest: Option<u64>,
    latest_time: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub at: Instant,
    pub time: u64,
    pub stamp: Option<Stamp>,
    /// Last byte of the payload.
    pub last: u8,
}

struct Missing {
    since: Instant,
    asked: Option<Instant>,
}

/// A browser gives a packet up after about this time.
const PATIENCE: Duration = Duration::from_millis(1_000);

impl Viewer {
    pub(super) fn new(rtt: Duration) -> Self {
        Self {
            tracks: Vec::new(),
            rtt,
            video: Line::default(),
            audio: Line::default(),
            check: FrameCheck::default(),
            whole_at: BTreeMap::new(),
            vp8_counters: BTreeMap::new(),
            parts: BTreeMap::new(),
            retransmitted: 0,
            plis: Vec::new(),
            reports: BTreeMap::new(),
            nacks: true,
            nacks_audio: false,
            asked: 0,
            sends_reports: false,
            feedback: None,
            numbered: 0,
            last_number: 0,
            plain_packets: None,
            reception_by_ssrc: BTreeMap::new(),
            reported_at: None,
        }
    }

    /// Packets of these frames that came.
    pub(super) fn packets_of_frames(&self, frames: std::ops::Range<u32>) -> u32 {
        self.parts.range(frames).map(|(_, parts)| u32::from(*parts)).sum()
    }

    pub(super) fn track(&self, kind: MediaKind) -> &OutgoingTrack {
        self.tracks.iter().find(|t| t.kind == kind).expect("negotiated")
    }

    pub(super) fn handle_rtp(&mut self, now: Instant, packet: &[u8]) {
        let header = ParsedRtpHeader::parse(packet).expect("the gateway sends valid RTP");
        if let Some(packets) = &mut self.plain_packets {
            packets.push(packet.to_vec());
        }
        let Some(track) = self
            .tracks
            .iter()
            .find(|t| t.ssrc == header.ssrc || t.rtx_ssrc == Some(header.ssrc))
        else {
            panic!("a packet of an SSRC that the answer does not name");
        };
        let number = track.extension_ids.transport_cc.and_then(|id| header.extension(id));
        if let (Some(&[high, low]), Some(feedback)) = (number, &mut self.feedback) {
            self.numbered += 1;
            self.last_number = u16::from_be_bytes([high, low]);
            feedback.on_packet(now, header.ssrc, u16::from_be_bytes([high, low]));
        }
        let mut payload = &packet[header.payload_range()];
        let mut seq = header.seq;
        let rtx = track.rtx_ssrc == Some(header.ssrc);
        let codec = track.codecs.iter().find(|c| {
            if rtx {
                c.rtx_pt == Some(header.pt)
            } else {
                c.pt == header.pt
            }
        });
        let Some(codec) = codec else {
            panic!("payload type {:?} was not answered", header.pt);
        };
        if rtx {
            seq = u16::from_be_bytes([payload[0], payload[1]]);
            payload = &payload[2..];
            self.retransmitted += 1;
        }
        if !rtx {
            self.reception_by_ssrc.entry(header.ssrc.0).or_default().record(seq);
        }
        let kind = track.kind;
        let line = match kind {
            MediaKind::Video => &mut self.video,
            MediaKind::Audio => &mut self.audio,
        };
        let stamp = match kind {
            MediaKind::Video => Stamp::of_video(video_codec(codec.format), payload),
            MediaKind::Audio => Stamp::of_audio(payload),
        };
        let Some(ext) = line.record(now, seq, header.time, stamp) else {
            return;
        };
        if let Some(seen) = line.packets.get_mut(&ext) {
            seen.last = payload.last().copied().unwrap_or_default();
        }
        if codec.format == CodecFormat::Vp8 {
            self.vp8_counters
                .extend(vp8_counters(payload).map(|counters| (ext, counters)));
        }
        if let (MediaKind::Video, Some(stamp)) = (kind, stamp) {
            self.check.push(stamp);
            let parts = self.parts.entry(stamp.frame).or_default();
            *parts += 1;
            if *parts == stamp.count {
                self.whole_at.insert(stamp.frame, now);
            }
        }
    }

    pub(super) fn handle_rtcp(&mut self, now: Instant, compound: &[u8]) {
        for message in rtcp::parse_compound_until_malformed(compound) {
            if let RtcpMessage::SenderReport {
                ssrc, ntp, rtp_time, ..
            } = message
            {
                self.reports.insert(ssrc.0, (ntp, rtp_time));
                self.reception_by_ssrc.entry(ssrc.0).or_default().report = Some(((ntp >> 16) as u32, now));
            }
        }
    }

    /// RTCP that is due.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut compounds = std::mem::take(&mut self.plis);
        if let Some(feedback) = &mut self.feedback {
            compounds.extend(std::iter::from_fn(|| feedback.poll(now)));
        }
        if self.sends_reports
            && self
                .reported_at
                .is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1))
        {
            self.reported_at = Some(now);
            let reception = self.reception_by_ssrc.iter_mut();
            let blocks: Vec<rtcp::ReceiverReportStats> = reception
                .filter_map(|(ssrc, reception)| reception.block(now, *ssrc))
                .collect();
            let mut compound = Vec::new();
            rtcp::write_receiver_report_with_cname(&mut compound, Ssrc(1), &blocks, "viewer");
            compounds.push(compound);
        }
        if !self.nacks {
            return compounds;
        }
        for kind in [MediaKind::Video, MediaKind::Audio] {
            let (line, is_asked) = match kind {
                MediaKind::Video => (&mut self.video, true),
                MediaKind::Audio => (&mut self.audio, self.nacks_audio),
            };
            let Some(media) = self.tracks.iter().find(|t| t.kind == kind && is_asked).map(|t| t.ssrc) else {
                continue;
            };
            let asked = line.ask(now, self.rtt + Duration::from_millis(20));
            if asked.is_empty() {
                continue;
            }
            let mut compound = Vec::new();
            rtcp::write_receiver_report_with_cname(&mut compound, Ssrc(1), &[], "viewer");
            rtcp::write_nack(&mut compound, Ssrc(1), media, &asked);
            self.asked += asked.len() as u64;
            compounds.push(compound);
        }
        compounds
    }

    /// By how many seconds video and audio of one moment are apart if the last sender reports are believed. Both run
    /// from zero at the publisher: frame n of video is n/30 s, frame m of audio m/50 s.
    pub(super) fn audio_video_offset(&self) -> f64 {
        let captured = |kind: MediaKind, line: &Line, per_second: f64, rate: f64| {
            let (ntp, rtp_time) = self.reports[&self.track(kind).ssrc.0];
            let last = line.packets.values().rev().find_map(|s| Some((s.time, s.stamp?.frame)));
            let (time, frame) = last.expect("stamped");
            let ahead = f64::from((time as u32).wrapping_sub(rtp_time) as i32) / rate;
            let at = (ntp & 0xffff_ffff_ffff) as f64 / f64::from(u32::MAX) + ahead;
            at - f64::from(frame) / per_second
        };
        captured(MediaKind::Video, &self.video, 30.0, 90_000.0)
            - captured(MediaKind::Audio, &self.audio, 50.0, 48_000.0)
    }

    /// Asks for the newest packets of video again, although they came.
    pub(super) fn ask_again(&mut self, packets: usize) {
        let newest = self.video.packets.keys().rev().take(packets);
        let seqs: Vec<u16> = newest.map(|seq| *seq as u16).collect();
        let mut compound = Vec::new();
        rtcp::write_receiver_report_with_cname(&mut compound, Ssrc(1), &[], "viewer");
        rtcp::write_nack(&mut compound, Ssrc(1), self.track(MediaKind::Video).ssrc, &seqs);
        self.plis.push(compound);
    }

    /// Asks for a key frame at the next opportunity.
    pub(super) fn ask_for_key_frame(&mut self) {
        let mut compound = Vec::new();
        rtcp::write_receiver_report_with_cname(&mut compound, Ssrc(1), &[], "viewer");
        rtcp::write_pli(&mut compound, Ssrc(1), self.track(MediaKind::Video).ssrc);
        self.plis.push(compound);
    }
}

fn video_codec(format: CodecFormat) -> VideoCodec {
    match format {
        CodecFormat::H264 { .. } => VideoCodec::H264,
        CodecFormat::Vp8 => VideoCodec::Vp8,
        other => panic!("{other:?} was not offered"),
    }
}

impl Line {
    /// Takes note of a packet. Its extended sequence number, or `None` if it was there already.
    fn record(&mut self, now: Instant, seq: u16, time: u32, stamp: Option<Stamp>) -> Option<u64> {
        let ext = match self.highest {
            Some(highest) => extend_seq(highest, seq),
            None => (1 << 16) + u64::from(seq),
        };
        if self.packets.contains_key(&ext) {
            return None;
        }
        let highest = self.highest.unwrap_or(ext - 1);
        for missing in highest + 1..ext {
            self.missing.insert(
                missing,
                Missing {
                    since: now,
                    asked: None,
                },
            );
        }
        self.missing.remove(&ext);
        self.highest = Some(highest.max(ext));
        let time = extend_rtp_timestamp(self.latest_time.unwrap_or((1 << 32) + u64::from(time)), time);
        self.latest_time = Some(self.latest_time.unwrap_or(0).max(time));
        self.packets.insert(
            ext,
            Seen {
                at: now,
                time,
                stamp,
                last: 0,
            },
        );
        Some(ext)
    }

    fn ask(&mut self, now: Instant, spacing: Duration) -> Vec<u16> {
        self.missing.retain(|_, m| now.duration_since(m.since) < PATIENCE);
        let mut asked = Vec::new();
        for (seq, missing) in &mut self.missing {
            let settled = now.duration_since(missing.since) >= Duration::from_millis(5);
            if settled && missing.asked.is_none_or(|at| now.duration_since(at) >= spacing) {
                missing.asked = Some(now);
                asked.push(*seq as u16);
            }
        }
        asked
    }

    /// Sequence numbers between the first and the last that never came.
    pub(super) fn holes(&self) -> usize {
        let (Some((first, _)), Some((last, _))) = (self.packets.first_key_value(), self.packets.last_key_value())
        else {
            return 0;
        };
        usize::try_from(last - first).expect("fits") + 1 - self.packets.len()
    }

    /// Panics unless times never go back along the line, frames differ in time, and no step in time is longer than
    /// `longest`, in units of the clock.
    pub(super) fn assert_steady(&self, longest: u64) {
        let mut previous: Option<(u64, Seen)> = None;
        for (seq, seen) in &self.packets {
            if let Some((before, last)) = previous {
                assert!(
                    seen.time >= last.time,
                    "time goes back at {seq}: {} after {}",
                    seen.time,
                    last.time
                );
                assert!(
                    seen.time - last.time <= longest,
                    "time jumps by {} at {seq}",
                    seen.time - last.time
                );
                if let (Some(a), Some(b), true) = (last.stamp, seen.stamp, seq - before == 1) {
                    let same_frame = a.frame == b.frame;
                    assert_eq!(
                        same_frame,
                        seen.time == last.time,
                        "frames {} and {} at {seq}",
                        a.frame,
                        b.frame
                    );
                }
            }
            previous = Some((*seq, *seen));
        }
    }
}
