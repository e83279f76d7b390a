//! Assembles the frames of an RTP stream that does not go through a ring, such as that of a camera.
//!
//! An access unit is what has one RTP timestamp, and its contents: the marker is a hint (see [`super::marker`]). Empty
//! packets, and payloads from which no decoder makes anything, are passed over and counted; they leave no gap.

use std::time::Instant;

use bytes::Bytes;

use super::codec::{Inspector, Part, part};
use super::depacketizer::{Depacketizer, Frame};
use super::marker::{Mark, MarkerFilter};
use super::odd::OddCounts;
use super::packet::Packet;
use super::{Codec, Format, Kind};

/// One received RTP packet.
#[derive(Clone, Debug)]
pub struct RtpPacket {
    /// Extended sequence number.
    pub seq: u64,
    /// Extended RTP timestamp, in units of the codec's clock rate.
    pub time: u64,
    pub marker: bool,
    pub arrival: Instant,
    /// Without header and padding.
    pub payload: Bytes,
}

/// Assembles the frames of one RTP stream.
pub struct FrameAssembler {
    codec: Codec,
    inspector: Inspector,
    markers: MarkerFilter<Packet>,
    depacketizer: Depacketizer,
    /// Sequence number of the newest packet.
    newest: Option<u64>,
    /// Sequence number of the next packet for the depacketizer.
    next: u64,
    odd: OddCounts,
}

impl FrameAssembler {
    /// Creates an assembler with nothing received.
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            inspector: Inspector::new(codec),
            markers: MarkerFilter::new(codec),
            depacketizer: Depacketizer::new(codec.kind()),
            newest: None,
            next: 0,
            odd: OddCounts::default(),
        }
    }

    /// After lost packets, drops only the frames that lack them: see [`Depacketizer::go_on_after_gaps`].
    pub fn go_on_after_gaps(&mut self) {
        self.depacketizer.go_on_after_gaps();
    }

    /// Stores parameter sets that were signalled separately, such as in an SDP: NAL units without start code. They are put
    /// before key frames that lack them, until the stream sends others with the same IDs.
    pub fn seed(&mut self, parameter_sets: &[Bytes]) {
        self.inspector.seed(parameter_sets);
    }

    /// Processes the next packet in sequence order; older packets are ignored. Appends complete frames to `out`.
    pub fn push(&mut self, packet: RtpPacket, out: &mut Vec<Frame>) {
        let lost = match self.newest {
            Some(newest) if packet.seq <= newest => return,
            Some(newest) => packet.seq - newest - 1,
            None => 0,
        };
        self.newest = Some(packet.seq);
        self.next += lost;
        let part = match part(self.codec, &packet.payload) {
            Ok(part) => part,
            Err(odd) => {
                self.odd.add(odd);
                return;
            }
        };
        // The inspector only compares timestamps of frames: the low 32 bits are enough.
        let inspection = self.inspector.inspect(packet.time as u32, &packet.payload);
        let key_frame = self.codec.kind() == Kind::Video && inspection.key_frame;
        let missing = inspection.insert.into_iter().map(|set| (set, false, Part::default()));
        for (payload, marker, part) in missing.chain([(packet.payload, packet.marker, part)]) {
            let track_packet = Packet {
                seq: self.next,
                time: packet.time,
                codec: self.codec,
                marker,
                key_frame,
                arrival: packet.arrival,
                payload,
            };
            self.next += 1;
            let mark = Mark {
                seq: track_packet.seq,
                time: packet.time,
                marker,
                part: Some(part),
                arrival: packet.arrival,
            };
            self.filter(mark, track_packet, out);
        }
    }

    /// Completes a frame whose last packet arrived a while ago.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Frame>) {
        let mut released = Vec::new();
        self.markers.handle_timeout(now, &mut released);
        self.depacketize(released, out);
    }

    /// When [`Self::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.markers.poll_timeout()
    }

    /// What follows has other sequence numbers and timestamps: the sender started again. The next frame is a key frame;
    /// parameter sets are kept.
    pub fn restart(&mut self, out: &mut Vec<Frame>) {
        let mut released = Vec::new();
        self.markers.restart(&mut released);
        self.depacketize(released, out);
        self.inspector.restart();
        self.depacketizer.reset();
        self.newest = None;
    }

    /// Returns the format from the parameter sets or the bitstream; `None` before the first.
    pub fn format(&self) -> Option<Format> {
        self.inspector.format()
    }

    /// Returns width and height in pixels; `None` until they are known.
    pub fn resolution(&self) -> Option<(u16, u16)> {
        self.inspector.resolution()
    }

    /// Returns what was passed over so far.
    pub fn odd(&self) -> OddCounts {
        let mut odd = self.odd;
        odd.merge(self.depacketizer.odd());
        odd
    }

    fn filter(&mut self, mark: Mark, packet: Packet, out: &mut Vec<Frame>) {
        if self.codec.kind() == Kind::Audio {
            self.depacketizer.push(&packet, out);
            return;
        }
        let mut released = Vec::new();
        self.markers.push(mark, packet, &mut released);
        self.depacketize(released, out);
    }

    fn depacketize(&mut self, released: Vec<(Packet, bool)>, out: &mut Vec<Frame>) {
        for (packet, marker) in released {
            self.depacketizer.push(&Packet { marker, ..packet }, out);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may take any instant as its origin")]
mod tests {
    use super::*;
    use crate::media::odd::Odd;
    use crate::media::packetizer::annex_b;

    const SPS: &[u8] = &[0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4];
    /// IDs 0 and 1, both of SPS 0.
    const PPS: [&[u8]; 2] = [&[0x68, 0xce, 0x3c, 0x80], &[0x68, 0x5f, 0x20]];
    const IDR: &[u8] = &[0x65, 0x88, 1];
    const REST: &[u8] = &[0x65, 0x42, 2];
    const P: &[u8] = &[0x41, 0x9a, 3];

    struct Camera {
        assembler: FrameAssembler,
        start: Instant,
        seq: u64,
        frames: Vec<Frame>,
    }

    impl Camera {
        fn new(codec: Codec) -> Self {
            Self {
                assembler: FrameAssembler::new(codec),
                start: Instant::now(),
                seq: 0,
                frames: Vec::new(),
            }
        }

        fn send(&mut self, time: u64, marker: bool, payload: &[u8]) {
            let packet = RtpPacket {
                seq: self.seq,
                time,
                marker,
                arrival: self.start,
                payload: Bytes::copy_from_slice(payload),
            };
            self.assembler.push(packet, &mut self.frames);
            self.seq += 1;
        }

        /// Timestamp and NAL units of the frames, the last one included.
        fn frames(&mut self) -> Vec<(u64, Vec<Vec<u8>>)> {
            let late = self.start + super::super::marker::HOLD;
            self.assembler.handle_timeout(late, &mut self.frames);
            let nals = |frame: &Frame| annex_b(&frame.bytes).expect("start codes");
            let frames = std::mem::take(&mut self.frames).into_iter();
            frames
                .map(|frame| (frame.time, nals(&frame).iter().map(|nal| nal.to_vec()).collect()))
                .collect()
        }
    }

    fn owned(nals: &[&[u8]]) -> Vec<Vec<u8>> {
        nals.iter().map(|nal| nal.to_vec()).collect()
    }

    #[test]
    fn after_a_gap_only_the_damaged_frames_are_dropped_if_so_told() {
        for (goes_on, wanted) in [(false, &[0, 1][..]), (true, &[0, 1, 3, 5])] {
            let mut camera = Camera::new(Codec::H264);
            if goes_on {
                camera.assembler.go_on_after_gaps();
            }
            for nal in [SPS, PPS[0], IDR] {
                camera.send(0, nal == IDR, nal);
            }
            camera.send(1, true, P);
            // Frame 2 lacks its end, frame 4 its start.
            camera.send(2, false, P);
            camera.seq += 1;
            camera.send(3, true, P);
            camera.seq += 1;
            camera.send(4, true, &[0x7c, 0x41, 1]);
            camera.send(5, true, P);
            let times: Vec<u64> = camera.frames().iter().map(|(time, _)| *time).collect();
            assert_eq!(times, wanted);
        }
    }

    #[test]
    fn a_frame_is_what_has_one_timestamp_whatever_the_markers_say() {
        for marker in [|_: usize| true, |_: usize| false, |last: usize| last == 3] {
            let mut camera = Camera::new(Codec::H264);
            for time in [0, 3_000, 6_000] {
                for (index, nal) in [SPS, PPS[0], IDR, REST].into_iter().enumerate() {
                    camera.send(time, marker(index), nal);
                }
            }
            let whole = owned(&[SPS, PPS[0], IDR, REST]);
            // Without any marker only the next frame ends the last one.
            let frames = camera.frames();
            assert_eq!(frames[..2], [(0, whole.clone()), (3_000, whole)]);
        }
    }

    #[test]
    fn odd_payloads_are_counted_and_cost_no_frame() {
        let odd: [(&[u8], Odd); 8] = [
            (&[], Odd::Empty),
            (&[0x00, 9], Odd::UndefinedType),
            (&[0x1e, 9], Odd::UndefinedType),
            (&[0x1f, 9], Odd::UndefinedType),
            (&[0x19, 0, 0, 0, 2, 0x41, 9], Odd::Interleaved),
            (&[0x1a, 0, 0, 9], Odd::Interleaved),
            (&[0xe1, 0x9a, 9], Odd::ForbiddenBit),
            (&[0x7c, 0x05, 9], Odd::StrayFragment),
        ];
        for (payload, reason) in odd {
            let mut camera = Camera::new(Codec::H264);
            for (time, nals) in [(0, &[SPS, PPS[0], IDR][..]), (3_000, &[P]), (6_000, &[P])] {
                for (index, nal) in nals.iter().enumerate() {
                    camera.send(time, false, payload);
                    camera.send(time, index + 1 == nals.len(), nal);
                }
            }
            let expected = [
                (0, owned(&[SPS, PPS[0], IDR])),
                (3_000, owned(&[P])),
                (6_000, owned(&[P])),
            ];
            assert_eq!(camera.frames(), expected, "{payload:x?}");
            assert_eq!(camera.assembler.odd().of(reason), 5, "{payload:x?}");
        }
    }

    #[test]
    fn parameter_sets_of_every_id_are_kept_and_those_of_the_sdp_too() {
        let mut camera = Camera::new(Codec::H264);
        let seeds: Vec<Bytes> = [SPS, PPS[0], PPS[1]].map(Bytes::from_static).into();
        camera.assembler.seed(&seeds);
        assert!(camera.assembler.format().is_some() && camera.assembler.resolution().is_some());
        camera.send(0, true, IDR);
        camera.send(3_000, true, P);
        camera.send(6_000, false, PPS[1]);
        camera.send(6_000, true, IDR);
        camera.send(9_000, true, P);
        let frames = camera.frames();
        assert_eq!(frames[0], (0, owned(&[SPS, PPS[0], PPS[1], IDR])));
        assert_eq!(frames[2], (6_000, owned(&[PPS[1], SPS, PPS[0], PPS[1], IDR])));
    }

    #[test]
    fn parameter_sets_with_a_time_of_their_own_belong_to_the_next_frame() {
        let mut camera = Camera::new(Codec::H264);
        for time in [0, 6_000] {
            camera.send(time, true, SPS);
            camera.send(time, true, PPS[0]);
            camera.send(time + 10, true, IDR);
            camera.send(time + 3_000, true, P);
        }
        let frames = camera.frames();
        assert_eq!(
            frames.iter().map(|frame| frame.0).collect::<Vec<_>>(),
            [10, 3_000, 6_010, 9_000]
        );
        assert!(frames[0].1.starts_with(&owned(&[SPS, PPS[0]])) && frames[0].1.ends_with(&owned(&[IDR])));
    }

    #[test]
    fn a_restart_keeps_the_parameter_sets() {
        let mut camera = Camera::new(Codec::H264);
        for nal in [SPS, PPS[0], IDR] {
            camera.send(0, nal == IDR, nal);
        }
        camera.assembler.restart(&mut camera.frames);
        camera.seq = 7;
        camera.send(900_000, true, P);
        camera.send(903_000, true, IDR);
        camera.send(906_000, true, P);
        let times: Vec<u64> = camera.frames().iter().map(|frame| frame.0).collect();
        assert_eq!(times, [0, 903_000, 906_000]);
    }

    #[test]
    fn spatial_layers_of_vp9_become_a_superframe() {
        let mut camera = Camera::new(Codec::Vp9);
        // Profile 0 key frame of 322x182, then a layer that refers to it; one descriptor byte with L, then SID and TL0PICIDX.
        let key = [
            0xac, 1, 0, 0, 0x82, 0x49, 0x83, 0x42, 0x00, 0x14, 0x10, 0x0b, 0x56, 0x06,
        ];
        camera.send(0, false, &key);
        camera.send(0, true, &[0xac, 1, 0x02, 0, 0x86, 7, 7]);
        camera.send(3_000, true, &[0xec, 2, 0, 1, 0x86, 1]);
        camera.send(6_000, true, &[0xec, 3, 0, 1, 0x86, 1]);
        let late = camera.start + super::super::marker::HOLD;
        camera.assembler.handle_timeout(late, &mut camera.frames);
        let bytes: Vec<&[u8]> = camera.frames.iter().map(|frame| &frame.bytes[..]).collect();
        let index = [0xd9, 10, 0, 0, 0, 3, 0, 0, 0, 0xd9];
        assert_eq!(bytes[0], [&key[4..], &[0x86, 7, 7], &index].concat());
        assert_eq!(bytes[1], [0x86, 1], "a single frame needs no index");
    }
}
