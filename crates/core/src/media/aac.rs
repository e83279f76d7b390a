//! The AudioSpecificConfig that an AAC decoder needs before the first frame (ISO/IEC 14496-3 §1.6.2.1).

use std::fmt;

use super::codec::bit_reader::BitReader;

/// A parsed AudioSpecificConfig.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AacConfig {
    bytes: [u8; MAX_AAC_CONFIG_BYTES],
    length: u8,
    /// Sampling rate in Hz, before spectral band replication doubles it.
    pub sample_rate: u32,
    /// Channel configuration; 0 if the channels are defined in the bitstream.
    pub channel_configuration: u8,
}

/// Maximum accepted length in bytes. AAC-LC needs two; with signalled extensions, five to seven; with a program config
/// element and its comment, about thirty.
const MAX_AAC_CONFIG_BYTES: usize = 64;

/// ISO/IEC 14496-3 table 1.18.
const AAC_SAMPLE_RATE_TABLE: [u32; 13] = [
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350,
];

impl AacConfig {
    /// AAC-LC, 48 kHz, two channels.
    pub(crate) const LC_48KHZ_STEREO: Self = Self {
        bytes: {
            let mut bytes = [0; MAX_AAC_CONFIG_BYTES];
            [bytes[0], bytes[1]] = [0x11, 0x90];
            bytes
        },
        length: 2,
        sample_rate: 48_000,
        channel_configuration: 2,
    };

    /// Parses a configuration; `None` if it is malformed or has no sampling rate.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut kept = [0; MAX_AAC_CONFIG_BYTES];
        kept.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let mut bits = BitReader::new(bytes);
        let object_type = match bits.read_bits(5)? {
            31 => 32 + bits.read_bits(6)?,
            object_type => object_type,
        };
        let rate = match bits.read_bits(4)? {
            15 => bits.read_bits(24)?,
            index => *AAC_SAMPLE_RATE_TABLE.get(index as usize)?,
        };
        let channels = bits.read_bits_u8(4)?;
        (object_type != 0 && rate != 0).then_some(Self {
            bytes: kept,
            length: u8::try_from(bytes.len()).ok()?,
            sample_rate: rate,
            channel_configuration: channels,
        })
    }

    /// Returns the configuration of AAC-LC; `None` for a rate without an index, or more than seven channels.
    pub(crate) fn new_aac_lc(rate: u32, channels: u8) -> Option<Self> {
        let index = u8::try_from(AAC_SAMPLE_RATE_TABLE.iter().position(|known| *known == rate)?).ok()?;
        let channels = (1..=7).contains(&channels).then_some(channels)?;
        Self::parse(&[2 << 3 | index >> 1, (index & 1) << 7 | channels << 3])
    }

    /// Returns the original bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl fmt::Debug for AacConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "AacConfig({} Hz, {} channels)",
            self.sample_rate, self.channel_configuration
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_have_rate_and_channels() {
        let stereo = AacConfig::parse(&[0x11, 0x90]).expect("AAC-LC");
        assert_eq!(
            (stereo.sample_rate, stereo.channel_configuration, stereo.bytes()),
            (48_000, 2, &[0x11, 0x90][..])
        );
        assert_eq!(stereo, AacConfig::LC_48KHZ_STEREO);
        let written_out = AacConfig::parse(&[0x17, 0x80, 0x5d, 0xc0, 0x08]).expect("a rate in 24 bits");
        assert_eq!(
            (written_out.sample_rate, written_out.channel_configuration),
            (48_000, 1)
        );
    }

    /// Encoders write one for 5.1 with side speakers, which has no channel configuration of its own.
    #[test]
    fn a_program_config_element_with_a_comment_is_kept() {
        let element = [0x11, 0x80, 0x04, 0xc8, 0x44, 0x00, 0x20, 0x00, 0xc4, 0x0c];
        let comment = b"\x0dLavc60.31.102";
        let bytes = [&element[..], comment, &[0x56, 0xe5, 0x00]].concat();
        let config = AacConfig::parse(&bytes).expect("AAC-LC");
        assert_eq!((config.sample_rate, config.channel_configuration), (48_000, 0));
        assert_eq!(config.bytes(), bytes);
    }

    #[test]
    fn malformed_configurations_are_rejected() {
        for bad in [
            &[][..],
            &[0x11],
            &[0x00, 0x00],
            &[0x17, 0xff],
            &[0x16, 0x80],
            &[0x11; 65],
        ] {
            assert_eq!(AacConfig::parse(bad), None, "{bad:02x?}");
        }
    }
}
