//! AAC in RTP as cameras send it: `MPEG4-GENERIC` (RFC 3640 §3.3.5, §3.3.6) and `MP4A-LATM` with its configuration in
//! the session description, in the packets, or nowhere (RFC 6416 §6). Interleaving is not supported. Some cameras put ADTS frames where RFC 3640 has
//! raw ones, or ADTS frames alone: their headers are removed.

use bytes::{Bytes, BytesMut};

use super::aac::AacConfig;
use super::codec::bit_reader::BitReader;
use super::container::adts::{split_adts_frames, starts_with_adts_frame};
use super::latm::StreamMuxConfig;

/// How the frames of a track are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AacPayloadFormat {
    /// Access unit headers with a size of this many bits, and an index of this many bits in the first one and in each
    /// later one.
    AuHeaders { size: u32, index: u32, index_delta: u32 },
    /// Multiplex elements. `has_config_in_elements` is what the sender announces; some do the other.
    Latm {
        mux: StreamMuxConfig,
        has_config_in_elements: bool,
    },
}

/// Reads AAC frames from RTP packets.
#[derive(Debug)]
pub struct AacDepacketizer {
    config: AacConfig,
    packing: AacPayloadFormat,
    /// The beginning of a frame that several packets carry, and its whole length.
    partial_frame: Option<(BytesMut, usize)>,
}

/// Maximum length of a frame in bytes: the 13-bit size of RFC 3640 §3.3.6.
const MAX_AAC_FRAME_BYTES: usize = 8_191;

/// Maximum number of frames in a packet.
const MAX_FRAMES_PER_PACKET: usize = 64;

impl AacDepacketizer {
    /// Reads the parameters of an `fmtp` attribute. A configuration that is missing or invalid is assumed to be AAC-LC
    /// with `rate` and `channels` of the `rtpmap`. Returns `None` if there is no such configuration either.
    pub fn for_mpeg4_generic(fmtp: &str, rate: u32, channels: u8) -> Option<Self> {
        let number = |key: &str, default| {
            let given = fmtp_parameter(fmtp, key).and_then(|value| value.parse().ok());
            given.filter(|bits| *bits <= 16).unwrap_or(default)
        };
        let is_low_rate = fmtp_parameter(fmtp, "mode").is_some_and(|mode| mode.eq_ignore_ascii_case("AAC-lbr"));
        let (size, index) = if is_low_rate { (6, 2) } else { (13, 3) };
        Some(Self {
            config: aac_config_from_fmtp(fmtp).or_else(|| AacConfig::new_aac_lc(rate, channels))?,
            packing: AacPayloadFormat::AuHeaders {
                size: number("sizelength", size),
                index: number("indexlength", index),
                index_delta: number("indexdeltalength", index),
            },
            partial_frame: None,
        })
    }

    /// As [`Self::for_mpeg4_generic`], for LATM. A configuration in the packets has to be that of the description, or of the
    /// `rtpmap`.
    pub fn for_mp4a_latm(fmtp: &str, rate: u32, channels: u8) -> Option<Self> {
        let given = fmtp_parameter(fmtp, "config").and_then(parse_hex);
        let mux = match given.and_then(|mux| StreamMuxConfig::parse(&mux)) {
            Some(mux) => mux,
            None => StreamMuxConfig::new(AacConfig::new_aac_lc(rate, channels)?),
        };
        let has_config_in_elements = fmtp_parameter(fmtp, "cpresent").is_some_and(|value| value != "0");
        Some(Self {
            config: mux.audio,
            packing: AacPayloadFormat::Latm {
                mux,
                has_config_in_elements,
            },
            partial_frame: None,
        })
    }

    /// Returns the configuration that a decoder needs.
    pub fn config(&self) -> AacConfig {
        self.config
    }

    /// Appends the frames of a packet, each with its distance from the timestamp of the packet in samples. `lost` says
    /// that packets are missing before this one. Returns `false` if the payload is invalid.
    pub fn push_packet(&mut self, payload: &Bytes, marker: bool, lost: bool, out: &mut Vec<(u32, Bytes)>) -> bool {
        if lost {
            self.partial_frame = None;
        }
        match self.packing {
            AacPayloadFormat::AuHeaders {
                size,
                index,
                index_delta,
            } => self.push_access_units(payload, [size, index, index_delta], out),
            AacPayloadFormat::Latm {
                mux,
                has_config_in_elements,
            } => self.push_latm(payload, marker, (mux, has_config_in_elements), out),
        }
        .is_some()
    }

    fn push_access_units(
        &mut self,
        payload: &Bytes,
        [size, index, delta]: [u32; 3],
        out: &mut Vec<(u32, Bytes)>,
    ) -> Option<()> {
        // As a length of access unit headers, the sync word would be longer than any packet.
        if self.partial_frame.is_none() && starts_with_adts_frame(payload) {
            let (frames, _) = split_adts_frames(payload);
            push_frames(frames.into_iter().take(MAX_FRAMES_PER_PACKET), out);
            return (!out.is_empty()).then_some(());
        }
        self.push_units_with_headers(payload, [size, index, delta], out)
    }

    fn push_units_with_headers(
        &mut self,
        payload: &Bytes,
        layout: [u32; 3],
        out: &mut Vec<(u32, Bytes)>,
    ) -> Option<()> {
        let length = usize::from(u16::from_be_bytes(*payload.first_chunk::<2>()?));
        let headers = payload.get(2..2 + length.div_ceil(8))?;
        let mut data = payload.slice(2 + headers.len()..);
        let sizes = read_unit_sizes(headers, length, layout)?;
        for (number, unit) in sizes.into_iter().enumerate() {
            if unit == 0 || unit > MAX_AAC_FRAME_BYTES {
                return None;
            }
            if unit > data.len() {
                return (number == 0).then(|| self.push_fragment(&data, unit, out));
            }
            self.partial_frame = None;
            push_unit(data.split_to(unit), out);
        }
        (length > 0).then_some(())
    }

    /// Takes a part of a frame (RFC 3640 §3.2.3.1); each packet repeats the size of the whole.
    fn push_fragment(&mut self, data: &Bytes, size: usize, out: &mut Vec<(u32, Bytes)>) {
        let (bytes, _) = match &mut self.partial_frame {
            Some(fragment) if fragment.1 == size => fragment,
            fragment => fragment.insert((BytesMut::new(), size)),
        };
        bytes.extend_from_slice(data);
        if bytes.len() >= size
            && let Some((bytes, _)) = self.partial_frame.take()
        {
            push_unit(bytes.freeze().slice(..size), out);
        }
    }

    /// Takes packets of LATM: the marker is on the last packet of an element (RFC 6416 §6.1).
    fn push_latm(
        &mut self,
        payload: &Bytes,
        marker: bool,
        (mux, has_config_in_elements): (StreamMuxConfig, bool),
        out: &mut Vec<(u32, Bytes)>,
    ) -> Option<()> {
        let element = match self.partial_frame.take() {
            Some((mut bytes, _)) => {
                bytes.extend_from_slice(payload);
                bytes.freeze()
            }
            None => payload.clone(),
        };
        if !marker {
            let fits = element.len() <= MAX_AAC_FRAME_BYTES;
            self.partial_frame = fits.then(|| (BytesMut::from(&element[..]), 0));
            return fits.then_some(());
        }
        let plain = || split_latm_elements(mux, &element);
        let with_config = || mux.split_element_with_config(&element);
        let frames = if has_config_in_elements {
            with_config().or_else(plain)
        } else {
            plain().or_else(with_config)
        };
        push_frames(frames?, out);
        Some(())
    }
}

/// Returns the frames of elements without configuration: of one, or of several of a frame each.
fn split_latm_elements(mux: StreamMuxConfig, elements: &Bytes) -> Option<Vec<Bytes>> {
    if let Some(frames) = mux.split_element(elements) {
        return Some(frames);
    }
    let (mut frames, mut rest) = (Vec::new(), elements.clone());
    while !rest.is_empty() && frames.len() < MAX_FRAMES_PER_PACKET {
        let full = rest.iter().take_while(|byte| **byte == 255).count();
        let length = full * 255 + usize::from(*rest.get(full)?);
        let _ = rest.split_to(full + 1);
        if length == 0 || length > rest.len() {
            return None;
        }
        frames.push(rest.split_to(length));
    }
    (!frames.is_empty()).then_some(frames)
}

/// Reads the sizes in access unit headers of `length` bits. Some senders have no index although they announce one, or leave
/// out its length: then the length of all headers tells it.
fn read_unit_sizes(headers: &[u8], length: usize, layout: [u32; 3]) -> Option<Vec<usize>> {
    let [size, ..] = layout;
    let fits = |[size, index, delta]: [u32; 3]| {
        let (first, later) = ((size + index) as usize, (size + delta) as usize);
        first > 0 && later > 0 && length.checked_sub(first).is_some_and(|rest| rest % later == 0)
    };
    let candidates = [layout, [size, 0, 0], HIGH_BITRATE_LAYOUT];
    let [size, index, delta] = candidates.into_iter().find(|layout| fits(*layout)).unwrap_or(layout);
    let mut bits = BitReader::new(headers);
    let (mut sizes, mut left) = (Vec::new(), length);
    for number in 0..MAX_FRAMES_PER_PACKET {
        let header = (size + if number == 0 { index } else { delta }) as usize;
        if header == 0 || left < header {
            break;
        }
        left -= header;
        sizes.push(bits.read_bits(size)? as usize);
        bits.skip(header - size as usize);
    }
    Some(sizes)
}

/// Size, index, and later index of the mode `AAC-hbr` (RFC 3640 §3.3.6), in bits.
const HIGH_BITRATE_LAYOUT: [u32; 3] = [13, 3, 3];

/// Appends an access unit, or the frames that it has with ADTS headers. No raw frame begins like one (ISO/IEC 14496-3
/// table 4.71: an end without elements).
fn push_unit(unit: Bytes, out: &mut Vec<(u32, Bytes)>) {
    let (frames, _) = split_adts_frames(&unit);
    if frames.is_empty() {
        push_frames([unit], out);
    } else {
        push_frames(frames, out);
    }
}

/// Appends frames that follow those before.
fn push_frames(frames: impl IntoIterator<Item = Bytes>, out: &mut Vec<(u32, Bytes)>) {
    for frame in frames {
        let at = out.len() as u32 * AAC_SAMPLES_PER_FRAME;
        out.push((at, frame));
    }
}

/// Samples of a frame (ISO/IEC 14496-3 §4.5.2.1.1), at the sampling rate of the configuration.
const AAC_SAMPLES_PER_FRAME: u32 = 1_024;

/// Returns the value of a parameter of an `fmtp` attribute; the case of its name does not matter.
pub fn fmtp_parameter<'a>(fmtp: &'a str, name: &str) -> Option<&'a str> {
    fmtp_parameter_values(fmtp, name).next()
}

/// Returns all values of a parameter of an `fmtp` attribute, as [`fmtp_parameter`] does the first.
pub fn fmtp_parameter_values<'a>(fmtp: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    fmtp.split(';').filter_map(move |parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().trim_matches('"'))
    })
}

fn aac_config_from_fmtp(fmtp: &str) -> Option<AacConfig> {
    AacConfig::parse(&parse_hex(fmtp_parameter(fmtp, "config")?)?)
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HBR: &str = "streamtype=5;mode=AAC-hbr;SizeLength=13;indexlength=3;indexdeltalength=3;config=1188;";

    fn generic() -> AacDepacketizer {
        AacDepacketizer::for_mpeg4_generic(HBR, 48_000, 1).expect("a configuration")
    }

    fn push(depacketizer: &mut AacDepacketizer, payload: &[u8]) -> (bool, Vec<(u32, Vec<u8>)>) {
        let mut out = Vec::new();
        let valid = depacketizer.push_packet(&Bytes::copy_from_slice(payload), true, false, &mut out);
        (valid, out.into_iter().map(|(at, frame)| (at, frame.to_vec())).collect())
    }

    #[test]
    fn several_access_units_of_a_packet_are_frames_a_frame_apart() {
        let frames = push(&mut generic(), &[0, 32, 0, 2 << 3, 0, 3 << 3, 1, 2, 3, 4, 5]);
        assert_eq!(frames, (true, vec![(0, vec![1, 2]), (1_024, vec![3, 4, 5])]));
    }

    /// ADTS with 48 kHz and one channel.
    fn adts(frame: &[u8], crc: bool) -> Vec<u8> {
        let length = frame.len() + if crc { 9 } else { 7 };
        let header = [
            0xff,
            if crc { 0xf0 } else { 0xf1 },
            0x4c,
            0x40 | (length >> 11) as u8,
            (length >> 3) as u8,
            (length << 5) as u8 | 0x1f,
            0xfc,
        ];
        [&header[..], if crc { &[1, 2] } else { &[] }, frame].concat()
    }

    #[test]
    fn adts_without_access_unit_headers_is_read() {
        for crc in [false, true] {
            let (first, second) = (adts(&[1, 2, 3], crc), adts(&[4; 900], crc));
            let wanted = (true, vec![(0, vec![1, 2, 3]), (1_024, vec![4; 900])]);
            assert_eq!(push(&mut generic(), &[&first[..], &second].concat()), wanted);
            assert_eq!(push(&mut generic(), &[&first[..], &second, &[0, 0]].concat()), wanted);
            let cut = second.get(..20).expect("long");
            assert_eq!(push(&mut generic(), cut), (false, vec![]));
        }
    }

    #[test]
    fn adts_headers_within_access_units_are_removed() {
        for crc in [false, true] {
            let (first, second) = (adts(&[1, 2, 3], crc), adts(&[4, 5], crc));
            let sizes = [0, 32, 0, (first.len() as u8) << 3, 0, (second.len() as u8) << 3];
            let wanted = (true, vec![(0, vec![1, 2, 3]), (1_024, vec![4, 5])]);
            assert_eq!(push(&mut generic(), &[&sizes[..], &first, &second].concat()), wanted);
            // Both in one unit, and a unit over two packets.
            let both = [&first[..], &second].concat();
            let header = [0, 16, 0, (both.len() as u8) << 3];
            assert_eq!(push(&mut generic(), &[&header[..], &both].concat()), wanted);
            let (mut depacketizer, halves) = (generic(), both.split_at(9));
            assert_eq!(
                push(&mut depacketizer, &[&header[..], halves.0].concat()),
                (true, vec![])
            );
            assert_eq!(push(&mut depacketizer, &[&header[..], halves.1].concat()), wanted);
            // The length does not fit: no header.
            let other = [&first[..9], &[7]].concat();
            let unit = [&[0, 16, 0, 10 << 3][..], &other].concat();
            if crc {
                assert_eq!(push(&mut generic(), &unit), (true, vec![(0, other)]));
            }
        }
    }

    /// bluenviron/gortsplib#118: no length of the index is announced, and there is none.
    #[test]
    fn access_unit_headers_without_the_announced_index_are_read() {
        let fmtp = "streamtype=3;mode=AAC-hbr;config=1190;sizeLength=13";
        let one = [0, 13, 0, 2 << 3, 1, 2];
        // Two sizes of 13 bits.
        let two = [0, 26, 0x00, 0x10, 0x00, 0xc0, 1, 2, 3, 4, 5];
        for fmtp in [fmtp, HBR] {
            let mut aac = AacDepacketizer::for_mpeg4_generic(fmtp, 48_000, 2).expect("a configuration");
            assert_eq!(push(&mut aac, &one), (true, vec![(0, vec![1, 2])]), "{fmtp}");
            let wanted = (true, vec![(0, vec![1, 2]), (1_024, vec![3, 4, 5])]);
            assert_eq!(push(&mut aac, &two), wanted, "{fmtp}");
        }
        // The other way round.
        let low = "mode=AAC-hbr;sizelength=13;indexlength=0;indexdeltalength=0;config=1190";
        let mut aac = AacDepacketizer::for_mpeg4_generic(low, 48_000, 2).expect("a configuration");
        assert_eq!(push(&mut aac, &[0, 16, 0, 2 << 3, 1, 2]), (true, vec![(0, vec![1, 2])]));
    }

    #[test]
    fn an_access_unit_over_several_packets_is_one_frame() {
        let mut depacketizer = generic();
        assert_eq!(push(&mut depacketizer, &[0, 16, 0, 4 << 3, 1, 2]), (true, vec![]));
        let whole = push(&mut depacketizer, &[0, 16, 0, 4 << 3, 3, 4]);
        assert_eq!(whole, (true, vec![(0, vec![1, 2, 3, 4])]));
        // A lost packet costs its frame, and no more.
        assert_eq!(push(&mut depacketizer, &[0, 16, 0, 4 << 3, 1, 2]), (true, vec![]));
        let mut out = Vec::new();
        depacketizer.push_packet(&Bytes::from_static(&[0, 16, 0, 2 << 3, 8, 9]), true, true, &mut out);
        assert_eq!(out, [(0, Bytes::from_static(&[8, 9]))]);
    }

    #[test]
    fn a_configuration_that_is_missing_follows_the_rtpmap() {
        for fmtp in ["", "mode=AAC-hbr", "mode=AAC-hbr;config=zz", "config="] {
            let depacketizer = AacDepacketizer::for_mpeg4_generic(fmtp, 16_000, 1).expect(fmtp);
            let config = depacketizer.config();
            assert_eq!(
                (config.sample_rate, config.channel_configuration, config.bytes()),
                (16_000, 1, &[0x14, 0x08][..]),
                "{fmtp}"
            );
        }
        assert!(AacDepacketizer::for_mpeg4_generic("", 12_345, 1).is_none());
        assert_eq!(generic().config().bytes(), [0x11, 0x88]);
    }

    #[test]
    fn latm_has_lengths_before_its_frames() {
        // StreamMuxConfig of AAC-LC with 44.1 kHz and two channels, as cameras send it.
        let mut latm =
            AacDepacketizer::for_mp4a_latm("cpresent=0; config=400024203fc0", 44_100, 2).expect("a configuration");
        let config = latm.config();
        assert_eq!((config.sample_rate, config.channel_configuration), (44_100, 2));
        assert_eq!(push(&mut latm, &[3, 7, 8, 9]), (true, vec![(0, vec![7, 8, 9])]));
        let mut long = vec![255, 1];
        long.extend([5; 256]);
        assert_eq!(push(&mut latm, &long), (true, vec![(0, vec![5; 256])]));
        assert_eq!(push(&mut latm, &[9, 1]), (false, vec![]));
    }

    /// Without `cpresent` the packets have it by RFC 6416, and do not by what senders do; `config=` is that of
    /// bluenviron/mediamtx#3590.
    #[test]
    fn latm_has_its_configuration_anywhere() {
        for fmtp in [
            "config=400024203fc0",
            "cpresent=1; config=400024203fc0",
            "cpresent=1",
            "cpresent=0;config=",
            "",
        ] {
            let mut latm = AacDepacketizer::for_mp4a_latm(fmtp, 44_100, 2).expect(fmtp);
            assert_eq!(
                (latm.config().sample_rate, latm.config().channel_configuration),
                (44_100, 2)
            );
            assert_eq!(
                push(&mut latm, &[3, 7, 8, 9]),
                (true, vec![(0, vec![7, 8, 9])]),
                "{fmtp}"
            );
            // The same behind a bit that says that the configuration is the one before.
            let shifted = [0x80 | 3 >> 1, 3 << 7 | 7 >> 1, 7 << 7 | 8 >> 1, 9 >> 1, 9 << 7];
            assert_eq!(push(&mut latm, &shifted), (true, vec![(0, vec![7, 8, 9])]), "{fmtp}");
            let several = push(&mut latm, &[1, 7, 2, 8, 9]);
            assert_eq!(several, (true, vec![(0, vec![7]), (1_024, vec![8, 9])]), "{fmtp}");
        }
        assert!(
            AacDepacketizer::for_mp4a_latm("", 90_000, 1).is_none(),
            "nothing says the sampling rate"
        );
    }

    #[test]
    fn no_payload_causes_a_panic() {
        for first in 0..=255u8 {
            for length in 0..8 {
                let payload = [first, first, 0xff, first, 1, 2, 3, 4];
                for depacketizer in [
                    &mut generic(),
                    &mut AacDepacketizer::for_mp4a_latm("cpresent=0;config=400024203fc0", 44_100, 2).expect("valid"),
                ] {
                    push(depacketizer, &payload[..length]);
                }
            }
        }
    }
}
