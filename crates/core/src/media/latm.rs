//! Audio multiplex elements of LATM (ISO/IEC 14496-3 §1.7.3), of one program with one layer.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::aac::AacConfig;
use super::codec::bit_reader::BitReader;

/// A StreamMuxConfig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamMuxConfig {
    pub(super) audio: AacConfig,
    frames_per_element: u32,
    /// Bits behind the frames of an element that belong to none.
    other_data_bits: usize,
}

/// Longest number of other data that is read, in bytes.
const MAX_OTHER_DATA_NUMBER_BYTES: usize = 3;

impl StreamMuxConfig {
    /// One frame in each element, and nothing else.
    pub(super) fn new(audio: AacConfig) -> Self {
        Self {
            audio,
            frames_per_element: 1,
            other_data_bits: 0,
        }
    }

    /// Parses the configuration of a session description, of which some cameras leave out the end.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read(&mut BitReader::new(bytes))
    }

    fn read(bits: &mut BitReader<'_>) -> Option<Self> {
        let (version, _same_framing) = (bits.read_bits(1)?, bits.read_bits(1)?);
        let (sub_frames, programs, layers) = (bits.read_bits(6)?, bits.read_bits(4)?, bits.read_bits(3)?);
        if (version, programs, layers) != (0, 0, 0) {
            return None;
        }
        let audio = read_audio_specific_config(bits)?;
        // frameLengthType: lengths are in the elements.
        if bits.read_bits(3).unwrap_or(0) != 0 {
            return None;
        }
        Some(Self {
            audio,
            frames_per_element: sub_frames + 1,
            other_data_bits: read_other_data_bits(bits).unwrap_or(0),
        })
    }

    /// Returns the frames of an element without configuration, which begins with the length of the first.
    pub(super) fn split_element(&self, element: &Bytes) -> Option<Vec<Bytes>> {
        self.read_frames(&mut BitReader::new(element), element.len())
    }

    /// As [`Self::split_element`], for an element that says first whether its configuration is the one before (§1.7.3.1).
    /// `None` if it has another one.
    pub(super) fn split_element_with_config(&self, element: &Bytes) -> Option<Vec<Bytes>> {
        let mut bits = BitReader::new(element);
        let uses_config_before = bits.read_flag()?;
        let config = if uses_config_before {
            *self
        } else {
            Self::read(&mut bits)?
        };
        let is_same_audio = (config.audio.sample_rate, config.audio.channel_configuration)
            == (self.audio.sample_rate, self.audio.channel_configuration);
        is_same_audio.then(|| config.read_frames(&mut bits, element.len()))?
    }

    /// Reads frames up to the end of an element of `length` bytes.
    fn read_frames(&self, bits: &mut BitReader<'_>, length: usize) -> Option<Vec<Bytes>> {
        let mut frames = Vec::new();
        for _ in 0..self.frames_per_element {
            let mut frame_length = 0;
            loop {
                let byte = bits.read_bits(8)?;
                frame_length += byte as usize;
                if byte != 255 {
                    break;
                }
            }
            if frame_length == 0 || frame_length > length {
                return None;
            }
            let mut frame = BytesMut::with_capacity(frame_length);
            for _ in 0..frame_length {
                frame.put_u8(bits.read_bits_u8(8)?);
            }
            frames.push(frame.freeze());
        }
        bits.skip(self.other_data_bits);
        let left = (length * 8).checked_sub(bits.position())?;
        (left < 8).then_some(frames)
    }
}

/// `latmBufferFullness`, and what follows it. A checksum is of the configuration itself.
fn read_other_data_bits(bits: &mut BitReader<'_>) -> Option<usize> {
    bits.skip(8); // latmBufferFullness
    let mut other_data_bits = 0;
    if bits.read_flag()? {
        for _ in 0..MAX_OTHER_DATA_NUMBER_BYTES {
            let is_followed = bits.read_flag()?;
            other_data_bits = other_data_bits << 8 | bits.read_bits(8)? as usize;
            if !is_followed {
                break;
            }
        }
    }
    if bits.read_flag()? {
        bits.skip(8); // crcCheckSum
    }
    Some(other_data_bits)
}

/// Reads an AudioSpecificConfig, whose length is not written anywhere (ISO/IEC 14496-3 §1.6.2.1, §4.4.1).
fn read_audio_specific_config(bits: &mut BitReader<'_>) -> Option<AacConfig> {
    let mut peek = bits.clone();
    let object_type = peek.read_bits(5)?;
    skip_sampling_rate(&mut peek)?;
    let channels = peek.read_bits(4)?;
    // Channels that are defined by a program config element, and object types with an escape, are rarely used.
    if channels == 0 || object_type == 31 {
        return None;
    }
    if matches!(object_type, 5 | 29) {
        skip_sampling_rate(&mut peek)?; // of spectral band replication
        peek.skip(5); // the object type below
    }
    peek.skip(1); // frameLengthFlag
    if peek.read_flag()? {
        peek.skip(14); // coreCoderDelay
    }
    peek.skip(1); // extensionFlag
    let length = peek.position() - bits.position();
    let mut bytes = vec![0u8; length.div_ceil(8)];
    for position in 0..length {
        let bit = u8::from(bits.read_flag()?);
        if let Some(byte) = bytes.get_mut(position / 8) {
            *byte |= bit << (7 - position % 8);
        }
    }
    AacConfig::parse(&bytes)
}

fn skip_sampling_rate(bits: &mut BitReader<'_>) -> Option<()> {
    if bits.read_bits(4)? == 15 {
        bits.skip(24);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AAC-LC with 44.1 kHz and two channels: as cameras send it, and with two frames in an element.
    const ONE_FRAME: [u8; 6] = [0x40, 0x00, 0x24, 0x20, 0x3f, 0xc0];
    const TWO_FRAMES: [u8; 6] = [0x41, 0x00, 0x24, 0x20, 0x3f, 0xc0];

    /// Moves bits behind others.
    fn joined(parts: &[(&[u8], usize)]) -> Bytes {
        let bits: Vec<u8> = parts
            .iter()
            .flat_map(|(bytes, count)| (0..*count).map(|at| bytes[at / 8] >> (7 - at % 8) & 1))
            .collect();
        let byte = |bits: &[u8]| {
            bits.iter()
                .enumerate()
                .fold(0, |byte, (at, bit)| byte | bit << (7 - at))
        };
        bits.chunks(8).map(byte).collect::<Vec<u8>>().into()
    }

    #[test]
    fn frames_follow_their_lengths() {
        let config = StreamMuxConfig::parse(&ONE_FRAME).expect("a configuration");
        assert_eq!(
            (config.audio.sample_rate, config.audio.channel_configuration),
            (44_100, 2)
        );
        let element = Bytes::from_static(&[3, 7, 8, 9]);
        assert_eq!(config.split_element(&element), Some(vec![element.slice(1..)]));
        let two = StreamMuxConfig::parse(&TWO_FRAMES).expect("a configuration");
        let element = Bytes::from_static(&[1, 7, 2, 8, 9]);
        assert_eq!(
            two.split_element(&element),
            Some(vec![element.slice(1..2), element.slice(3..)])
        );
        for wrong in [&[][..], &[0], &[2, 7], &[1, 7, 8, 9], &[255]] {
            assert_eq!(config.split_element(&Bytes::from_static(wrong)), None, "{wrong:x?}");
        }
    }

    #[test]
    fn elements_may_carry_their_configuration() {
        let config = StreamMuxConfig::parse(&ONE_FRAME).expect("a configuration");
        let frame = Bytes::from_static(&[7, 8, 9]);
        // 15 bits of the multiplex, 16 of the audio, 3 of the length type, 8 of the buffer, two flags.
        let with = joined(&[(&[0], 1), (&ONE_FRAME, 44), (&[3, 7, 8, 9], 32)]);
        let without = joined(&[(&[0x80], 1), (&[3, 7, 8, 9], 32)]);
        for element in [with, without] {
            assert_eq!(config.split_element_with_config(&element), Some(vec![frame.clone()]));
            assert_eq!(config.split_element(&element), None);
        }
        // Of another sampling rate.
        let other = joined(&[
            (&[0], 1),
            (&[0x40, 0x00, 0x26, 0x20, 0x3f, 0xc0], 44),
            (&[3, 7, 8, 9], 32),
        ]);
        assert_eq!(config.split_element_with_config(&other), None);
    }
}
