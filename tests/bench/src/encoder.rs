//! `millstream-bench publish`: an H.264 file in real time beside silence in Opus, from an encoder that behaves as OBS
//! does towards requests: NACKs are answered on the same SSRC, requests for key frames are ignored.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    clip,
    endpoint::Endpoint,
    sdp::{AUDIO_SSRC, VIDEO_SSRC},
    sys,
    timeline::Track,
};

#[derive(Args)]
pub(crate) struct Publish {
    /// Address of the gateway's HTTP
    #[arg(long)]
    http: SocketAddr,
    /// Token to publish with
    #[arg(long)]
    token: String,
    /// Name of the stream
    #[arg(long)]
    stream: String,
    /// H.264 in Annex B form, without reordered frames
    #[arg(long)]
    file: PathBuf,
    /// Frames per second
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=120))]
    fps: u32,
    /// Begin again at the end of the file
    #[arg(long = "loop")]
    endless: bool,
}

/// Video packets that can be sent again: several seconds of a usual stream.
const HISTORY: usize = 1_000;

/// 20 ms of silence: CELT, full band, stereo (RFC 6716 §3.1).
const SILENCE: [u8; 3] = [0xfc, 0xff, 0xfe];
const AUDIO_STEP: Duration = Duration::from_millis(20);

const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Longest time between two looks at the peer's timers.
const STEP: Duration = Duration::from_millis(20);

/// From the NTP epoch to the Unix epoch in seconds (RFC 3550 §4).
const NTP_OFFSET: u64 = 2_208_988_800;

/// Plays the file. Prints one line of JSON when the first frame leaves: its time in Unix milliseconds, the frame rate
/// and the number of frames in the file.
///
/// # Errors
///
/// Those of the file, the gateway's refusal, those of the socket.
pub(crate) fn publish(options: &Publish) -> io::Result<bool> {
    let frames = clip::frames(&std::fs::read(&options.file)?)?;
    let joined = Endpoint::join_as_encoder(options.http, &options.token, &options.stream)?;
    sys::sharpen_timers();
    let start = serde_json::json!({
        "frame0_ms": sys::realtime_ns() as f64 / 1e6,
        "fps": options.fps,
        "frames": frames.len(),
    });
    println!("{start}");
    let encoder = Encoder {
        endpoint: joined.endpoint,
        started: Instant::now(),
        datagram: vec![0; 2048],
        sent: [Sent::default(); 2],
        history: VecDeque::new(),
        report_at: Instant::now(),
    };
    encoder.run(&frames, options)?;
    Ok(true)
}

struct Encoder {
    endpoint: Endpoint,
    started: Instant,
    datagram: Vec<u8>,
    sent: [Sent; 2],
    history: VecDeque<Packet>,
    report_at: Instant,
}

#[derive(Clone, Copy, Default)]
struct Sent {
    packets: u32,
    octets: u32,
}

struct Packet {
    seq: u64,
    time: u32,
    marker: bool,
    payload: Vec<u8>,
}

impl Encoder {
    fn run(mut self, frames: &[clip::Frame], options: &Publish) -> io::Result<()> {
        let rounds = if options.endless { usize::MAX } else { 1 };
        let frames = std::iter::repeat_n(frames, rounds).flatten();
        for (number, frame) in (0u32..).zip(frames) {
            let at = Duration::from_secs(1) * number / options.fps;
            self.send_audio_until(at)?;
            self.wait(self.started + at)?;
            for (index, payload) in frame.iter().enumerate() {
                self.send(Track::Video, at, index + 1 == frame.len(), payload)?;
            }
        }
        Ok(())
    }

    /// Sends the silence that comes before a frame.
    fn send_audio_until(&mut self, end: Duration) -> io::Result<()> {
        loop {
            let at = AUDIO_STEP * self.sent[Track::Audio.index()].packets;
            if at >= end {
                return Ok(());
            }
            self.wait(self.started + at)?;
            self.send(Track::Audio, at, false, &SILENCE)?;
        }
    }

    /// Answers the gateway and keeps the timers until `due`.
    fn wait(&mut self, due: Instant) -> io::Result<()> {
        loop {
            let now = Instant::now();
            self.endpoint.handle_timeout(now)?;
            let mut wanted = Vec::new();
            self.endpoint
                .receive_rtcp(&mut self.datagram, now, |compound| wanted.extend(nacked(compound)))?;
            self.send_again(&wanted)?;
            if now >= self.report_at {
                self.report_at = now + REPORT_INTERVAL;
                self.report(now)?;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sys::wait_readable(self.endpoint.socket(), left.min(STEP))?;
        }
    }

    fn send(&mut self, track: Track, at: Duration, marker: bool, payload: &[u8]) -> io::Result<()> {
        let sent = &mut self.sent[track.index()];
        let (seq, time) = (u64::from(sent.packets), rtp_time(track, at));
        sent.packets += 1;
        sent.octets = sent.octets.wrapping_add(payload.len() as u32);
        if track == Track::Video {
            self.history.truncate(HISTORY - 1);
            self.history.push_front(Packet {
                seq,
                time,
                marker,
                payload: payload.to_vec(),
            });
        }
        self.endpoint.send_rtp(track, seq, time, marker, payload)
    }

    fn send_again(&mut self, wanted: &[u16]) -> io::Result<()> {
        for seq in wanted {
            if let Some(packet) = self.history.iter().find(|packet| packet.seq as u16 == *seq) {
                let Packet {
                    seq,
                    time,
                    marker,
                    payload,
                } = packet;
                self.endpoint.send_rtp(Track::Video, *seq, *time, *marker, payload)?;
            }
        }
        Ok(())
    }

    /// One sender report for each track (RFC 3550 §6.4.1), each with the CNAME.
    fn report(&mut self, now: Instant) -> io::Result<()> {
        let unix = u128::from(sys::realtime_ns()) + u128::from(NTP_OFFSET) * 1_000_000_000;
        let ntp = ((unix << 32) / 1_000_000_000) as u64;
        for (track, ssrc) in [(Track::Video, VIDEO_SSRC), (Track::Audio, AUDIO_SSRC)] {
            let Sent { packets, octets } = self.sent[track.index()];
            let time = rtp_time(track, now - self.started);
            let mut packet = vec![0x80, 200, 0, 6];
            packet.extend(ssrc.to_be_bytes());
            packet.extend(ntp.to_be_bytes());
            for word in [time, packets, octets] {
                packet.extend(word.to_be_bytes());
            }
            packet.extend([0x81, 202, 0, 3]);
            packet.extend(ssrc.to_be_bytes());
            packet.extend(*b"\x01\x05bench\0");
            self.endpoint.send_plain_rtcp(&packet)?;
        }
        Ok(())
    }
}

fn rtp_time(track: Track, at: Duration) -> u32 {
    let rate = match track {
        Track::Video => 90_000,
        Track::Audio => 48_000,
    };
    ((at.as_nanos() * rate + 500_000_000) / 1_000_000_000) as u32
}

/// Sequence numbers of the video that a compound packet asks for again (RFC 4585 §6.2.1).
fn nacked(compound: &[u8]) -> Vec<u16> {
    let mut wanted = Vec::new();
    let mut rest = compound;
    while let Some((&[first, kind, l1, l2], body)) = rest.split_first_chunk::<4>() {
        let Some((body, following)) = body.split_at_checked(4 * usize::from(u16::from_be_bytes([l1, l2]))) else {
            break;
        };
        rest = following;
        let Some((target, items)) = body.get(4..).and_then(|body| body.split_first_chunk::<4>()) else {
            continue;
        };
        if (first & 0x1f, kind) != (1, 205) || u32::from_be_bytes(*target) != VIDEO_SSRC {
            continue;
        }
        for item in items.chunks_exact(4) {
            let &[p1, p2, b1, b2] = item else { continue };
            let (first, mask) = (u16::from_be_bytes([p1, p2]), u16::from_be_bytes([b1, b2]));
            wanted.push(first);
            wanted.extend(
                (0..16)
                    .filter(|bit| mask >> bit & 1 == 1)
                    .map(|bit| first.wrapping_add(bit + 1)),
            );
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nacks_of_the_video_are_read_and_requests_for_key_frames_are_not() {
        let mut compound = vec![0x81, 206, 0, 2, 0, 0, 0, 1];
        compound.extend(VIDEO_SSRC.to_be_bytes());
        compound.extend([0x81, 205, 0, 3, 0, 0, 0, 1]);
        compound.extend(VIDEO_SSRC.to_be_bytes());
        compound.extend([0xff, 0xff, 0b1000_0000, 0b0000_0001]);
        assert_eq!(nacked(&compound), [0xffff, 0, 15]);
        compound.truncate(compound.len() - 1);
        assert!(nacked(&compound).is_empty());
    }
}
