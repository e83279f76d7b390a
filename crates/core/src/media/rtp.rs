//! Parses RTP packets without copying (RFC 3550 §5.1, header extensions of RFC 8285) and unwraps sequence numbers and
//! timestamps. Writing is not included: each sender builds its own header.

use std::marker::PhantomData;
use std::ops::Range;

use thiserror::Error;

use super::{PayloadType, Ssrc};

/// Length of the header without CSRCs and extensions, in bytes.
pub(crate) const FIXED_HEADER_LEN: usize = 12;

/// Reason why bytes are not an RTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RtpError {
    #[error("RTP packet of {0} bytes is shorter than its header")]
    TooShort(usize),
    #[error("unsupported version {0} in an RTP header; only version 2 is supported")]
    UnsupportedVersion(u8),
    #[error("invalid RTP padding of {padding} bytes in a packet body of {body} bytes")]
    InvalidPadding { padding: u8, body: usize },
}

/// The header of one RTP packet, borrowing from the packet.
///
/// ```text
///  0                   1                   2                   3
/// |V=2|P|X|  CC   |M|     PT      |       sequence number         |
/// |                           timestamp                           |
/// |                             SSRC                              |
/// |                        CC times a CSRC                        |
/// |  with X: profile (0xbede, 0x100x) |    length in words        |
/// |                       extension elements                      |
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedRtpHeader<'a> {
    pub pt: PayloadType,
    pub marker: bool,
    pub seq: u16,
    /// RTP timestamp, in units of the codec's clock rate.
    pub time: u32,
    pub ssrc: Ssrc,
    extensions: HeaderExtensionElements<'a>,
    payload_range: Range<usize>,
}

impl<'a> ParsedRtpHeader<'a> {
    /// Parses the header of a decrypted packet. Extension elements are parsed lazily.
    ///
    /// # Errors
    ///
    /// An [`RtpError`]. Padding that is zero or longer than the body is an error (RFC 3550 §5.1: the padding count
    /// includes itself). A packet that consists only of padding is valid and has an empty payload.
    pub fn parse(packet: &'a [u8]) -> Result<Self, RtpError> {
        let mut header = Self::parse_srtp_header(packet)?;
        let padded = packet.first().is_some_and(|first| first & 0x20 != 0);
        if let (true, Some(body)) = (padded, packet.get(header.payload_range())) {
            header.payload_range.end -= parse_padding_len(body)?;
        }
        Ok(header)
    }

    /// Parses the clear-text header of an SRTP packet; the payload is everything after it, still encrypted.
    ///
    /// # Errors
    ///
    /// An [`RtpError`] if the header is truncated or has another version.
    pub(crate) fn parse_srtp_header(packet: &'a [u8]) -> Result<Self, RtpError> {
        let too_short = RtpError::TooShort(packet.len());
        let (&[first, second, s0, s1, t0, t1, t2, t3, c0, c1, c2, c3], _) =
            packet.split_first_chunk::<FIXED_HEADER_LEN>().ok_or(too_short)?;
        if first >> 6 != 2 {
            return Err(RtpError::UnsupportedVersion(first >> 6));
        }
        let mut start = FIXED_HEADER_LEN + 4 * usize::from(first & 0x0f);
        let mut extensions = HeaderExtensionElements::NO_HEADER_EXTENSIONS;
        if first & 0x10 != 0 {
            let rest = packet.get(start..).ok_or(too_short)?;
            let (&[p0, p1, l0, l1], rest) = rest.split_first_chunk::<4>().ok_or(too_short)?;
            let length = 4 * usize::from(u16::from_be_bytes([l0, l1]));
            let elements = rest.get(..length).ok_or(too_short)?;
            extensions = HeaderExtensionElements::new(u16::from_be_bytes([p0, p1]), elements);
            start += 4 + length;
        }
        if start > packet.len() {
            return Err(too_short);
        }
        Ok(Self {
            pt: PayloadType(second & 0x7f),
            marker: second & 0x80 != 0,
            seq: u16::from_be_bytes([s0, s1]),
            time: u32::from_be_bytes([t0, t1, t2, t3]),
            ssrc: Ssrc(u32::from_be_bytes([c0, c1, c2, c3])),
            extensions,
            payload_range: start..packet.len(),
        })
    }

    /// Byte range of the payload in the packet: after all headers, before the padding.
    pub fn payload_range(&self) -> Range<usize> {
        self.payload_range.clone()
    }

    /// Iterates over the header extension elements in order.
    pub fn extensions(&self) -> HeaderExtensionElements<'a> {
        self.extensions.clone()
    }

    /// Returns the first element with this ID (1..=14 in the one-byte form, 1..=255 in the two-byte form).
    pub fn extension(&self, id: u8) -> Option<&'a [u8]> {
        self.extensions().find(|(found, _)| *found == id).map(|(_, data)| data)
    }
}

/// Length of the padding, at least 1 and at most the body length.
fn parse_padding_len(body: &[u8]) -> Result<usize, RtpError> {
    let padding = body.last().copied().unwrap_or(0);
    if padding == 0 || usize::from(padding) > body.len() {
        return Err(RtpError::InvalidPadding {
            padding,
            body: body.len(),
        });
    }
    Ok(usize::from(padding))
}

/// Iterator over the ID and data of header extension elements. Stops at the first truncated element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderExtensionElements<'a> {
    form: HeaderExtensionForm,
    remaining: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderExtensionForm {
    /// RFC 8285 §4.2: 4-bit ID, 4-bit length minus one.
    OneByte,
    /// RFC 8285 §4.3: 8-bit ID, 8-bit length.
    TwoByte,
}

impl<'a> HeaderExtensionElements<'a> {
    const NO_HEADER_EXTENSIONS: HeaderExtensionElements<'static> = HeaderExtensionElements {
        form: HeaderExtensionForm::OneByte,
        remaining: &[],
    };

    /// The low four bits of a two-byte profile are "appbits" and ignored. Other profiles have no elements.
    fn new(profile: u16, elements: &'a [u8]) -> Self {
        match profile {
            0xbede => Self {
                form: HeaderExtensionForm::OneByte,
                remaining: elements,
            },
            0x1000..=0x100f => Self {
                form: HeaderExtensionForm::TwoByte,
                remaining: elements,
            },
            _ => Self::NO_HEADER_EXTENSIONS,
        }
    }

    fn take_bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (data, rest) = self.remaining.split_at_checked(length)?;
        self.remaining = rest;
        Some(data)
    }

    fn next_header_extension_element(&mut self) -> Option<(u8, &'a [u8])> {
        loop {
            let (&first, rest) = self.remaining.split_first()?;
            self.remaining = rest;
            // A zero byte is padding in both forms.
            if first == 0 {
                continue;
            }
            return match self.form {
                // RFC 8285 §4.2: ID 0 with a length, and ID 15, terminate the list.
                HeaderExtensionForm::OneByte if matches!(first >> 4, 0 | 15) => None,
                HeaderExtensionForm::OneByte => Some((first >> 4, self.take_bytes(usize::from(first & 0x0f) + 1)?)),
                HeaderExtensionForm::TwoByte => {
                    let (&length, rest) = self.remaining.split_first()?;
                    self.remaining = rest;
                    Some((first, self.take_bytes(usize::from(length))?))
                }
            };
        }
    }
}

impl<'a> Iterator for HeaderExtensionElements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let element = self.next_header_extension_element();
        if element.is_none() {
            self.remaining = &[];
        }
        element
    }
}

/// Extends `seq` to the number nearest to `reference` with these low 16 bits; if that were negative, to the next higher
/// one.
pub fn extend_seq(reference: u64, seq: u16) -> u64 {
    let ahead = seq.wrapping_sub(reference as u16);
    nearest_extended(reference, u64::from(ahead), 1 << 16)
}

/// Extends `time` to the number nearest to `reference` with these low 32 bits; if that were negative, to the next
/// higher one.
pub fn extend_rtp_timestamp(reference: u64, time: u32) -> u64 {
    let ahead = time.wrapping_sub(reference as u32);
    nearest_extended(reference, u64::from(ahead), 1 << 32)
}

/// `ahead` is the forward distance; from half a `cycle` on, the backward distance is shorter.
fn nearest_extended(reference: u64, ahead: u64, cycle: u64) -> u64 {
    let forwards = reference.wrapping_add(ahead);
    if ahead < cycle / 2 {
        forwards
    } else {
        forwards.checked_sub(cycle).unwrap_or(forwards)
    }
}

/// Unwraps a counter of type `T` ([`u16`] sequence numbers, [`u32`] timestamps). Values arrive nearly in order; each is
/// extended to the number nearest to the highest so far.
#[derive(Clone, Debug)]
pub struct CounterUnwrapper<T> {
    min_first_value: u64,
    highest: Option<u64>,
    counter_type: PhantomData<T>,
}

/// Extends sequence numbers.
pub type SeqUnwrapper = CounterUnwrapper<u16>;

/// Extends timestamps.
pub type RtpTimestampUnwrapper = CounterUnwrapper<u32>;

impl CounterUnwrapper<u16> {
    /// The first value is extended to the lowest number of at least `min_first_value` with the same low bits. `min_first_value` is raised
    /// to at least 65,536, so that values before the first one can be extended too.
    pub fn with_first_value_at_or_above(start: u64) -> Self {
        Self::with_min_first_value(start.max(1 << 16))
    }

    /// Extends a value and updates the highest one.
    pub fn extend(&mut self, seq: u16) -> u64 {
        let extended = match self.highest {
            Some(highest) => extend_seq(highest, seq),
            None => self.min_first_value + u64::from(seq.wrapping_sub(self.min_first_value as u16)),
        };
        self.update_highest(extended)
    }
}

impl CounterUnwrapper<u32> {
    /// The first value is extended to the lowest number of at least `min_first_value` with the same low bits. `min_first_value` is raised
    /// to at least 2^32, so that values before the first one can be extended too.
    pub fn with_first_value_at_or_above(start: u64) -> Self {
        Self::with_min_first_value(start.max(1 << 32))
    }

    /// Extends a value and updates the highest one.
    pub fn extend(&mut self, time: u32) -> u64 {
        let extended = match self.highest {
            Some(highest) => extend_rtp_timestamp(highest, time),
            None => self.min_first_value + u64::from(time.wrapping_sub(self.min_first_value as u32)),
        };
        self.update_highest(extended)
    }
}

impl<T> CounterUnwrapper<T> {
    fn with_min_first_value(start: u64) -> Self {
        Self {
            min_first_value: start,
            highest: None,
            counter_type: PhantomData,
        }
    }

    fn update_highest(&mut self, extended: u64) -> u64 {
        self.highest = Some(self.highest.map_or(extended, |highest| highest.max(extended)));
        extended
    }

    /// The highest number so far; `None` before the first.
    pub fn highest(&self) -> Option<u64> {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    /// Marker, PT 96, sequence number 0x1234, timestamp 0x01020304, SSRC 0x0a0b0c0d.
    const FIXED: [u8; 12] = [0x80, 0xe0, 0x12, 0x34, 1, 2, 3, 4, 0x0a, 0x0b, 0x0c, 0x0d];

    fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = FIXED.to_vec();
        packet[0] = first;
        packet.extend_from_slice(rest);
        packet
    }

    #[test]
    fn fixed_fields_are_read_and_csrcs_are_skipped() {
        let bytes = packet(0x82, &[1, 1, 1, 1, 2, 2, 2, 2, 9, 8, 7]);
        let header = ParsedRtpHeader::parse(&bytes).expect("valid");
        assert_eq!((header.pt, header.marker), (PayloadType(96), true));
        assert_eq!((header.seq, header.time), (0x1234, 0x0102_0304));
        assert_eq!(header.ssrc, Ssrc(0x0a0b_0c0d));
        assert_eq!(&bytes[header.payload_range()], [9, 8, 7]);
        assert_eq!(header.extension(1), None);
    }

    #[test]
    fn one_byte_extensions_are_found_between_padding() {
        let elements = [0xbe, 0xde, 0, 3, 0x10, b'0', 0, 0, 0x32, 1, 2, 3, 0x51, 7, 8, 0, 0xff];
        let bytes = packet(0x90, &elements);
        let header = ParsedRtpHeader::parse(&bytes).expect("valid");
        let found: Vec<_> = header.extensions().collect();
        assert_eq!(found, [(1, &b"0"[..]), (3, &[1, 2, 3]), (5, &[7, 8])]);
        assert_eq!(header.extension(3), Some(&[1, 2, 3][..]));
        assert_eq!(&bytes[header.payload_range()], [0xff]);
    }

    #[test]
    fn two_byte_extensions_may_be_empty() {
        let elements = [0x10, 0x03, 0, 2, 200, 0, 0, 16, 2, 5, 6, 0];
        let bytes = packet(0x90, &elements);
        let header = ParsedRtpHeader::parse(&bytes).expect("valid");
        let found: Vec<_> = header.extensions().collect();
        assert_eq!(found, [(200, &[][..]), (16, &[5, 6])]);
        assert_eq!(header.payload_range(), 24..24);
    }

    #[test]
    fn reserved_and_cut_off_elements_stop_the_iteration() {
        for elements in [[0xf0, 1, 0x20, 2], [0x02, 1, 0x20, 2], [0x1f, 1, 2, 3]] {
            let mut rest = vec![0xbe, 0xde, 0, 1];
            rest.extend_from_slice(&elements);
            let bytes = packet(0x90, &rest);
            let header = ParsedRtpHeader::parse(&bytes).expect("the header itself is valid");
            assert_eq!(header.extensions().count(), 0, "{elements:?}");
        }
        let bytes = packet(0x90, &[0x12, 0x34, 0, 1, 0x10, 7, 0, 0]);
        assert_eq!(ParsedRtpHeader::parse(&bytes).expect("valid").extensions().count(), 0);
    }

    #[test]
    fn padding_is_removed_and_may_be_everything() {
        let bytes = packet(0xa0, &[9, 9, 0, 0, 3]);
        assert_eq!(ParsedRtpHeader::parse(&bytes).expect("valid").payload_range(), 12..14);
        let bytes = packet(0xa0, &[0, 0, 0, 0, 5]);
        assert_eq!(ParsedRtpHeader::parse(&bytes).expect("valid").payload_range(), 12..12);
    }

    #[test]
    fn malformed_packets_are_rejected() {
        let rejected = |first, rest: &[u8]| ParsedRtpHeader::parse(&packet(first, rest)).expect_err("rejected");
        assert_eq!(
            rejected(0xa0, &[9, 3]),
            RtpError::InvalidPadding { padding: 3, body: 2 }
        );
        assert_eq!(
            rejected(0xa0, &[9, 0]),
            RtpError::InvalidPadding { padding: 0, body: 2 }
        );
        assert_eq!(rejected(0xa0, &[]), RtpError::InvalidPadding { padding: 0, body: 0 });
        assert_eq!(rejected(0x40, &[]), RtpError::UnsupportedVersion(1));
        assert_eq!(rejected(0x81, &[1, 2, 3]), RtpError::TooShort(15));
        assert_eq!(rejected(0x90, &[0xbe, 0xde, 0]), RtpError::TooShort(15));
        assert_eq!(rejected(0x90, &[0xbe, 0xde, 0, 1, 1]), RtpError::TooShort(17));
        assert_eq!(ParsedRtpHeader::parse(&FIXED[..11]), Err(RtpError::TooShort(11)));
    }

    #[test]
    fn garbage_never_panics_and_never_reaches_outside() {
        let seed = 1;
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..100_000 {
            let mut bytes = vec![0; rng.random_range(0..64)];
            rng.fill(bytes.as_mut_slice());
            if let Some(first) = bytes.first_mut() {
                *first = 0x80 | (*first & 0x33);
            }
            if let Ok(header) = ParsedRtpHeader::parse(&bytes) {
                assert!(bytes.get(header.payload_range()).is_some());
                assert!(header.extensions().map(|(_, data)| data.len()).sum::<usize>() < 64);
            }
        }
    }

    #[test]
    fn sequence_numbers_are_extended_across_wraps_both_ways() {
        let mut unwrapper = SeqUnwrapper::with_first_value_at_or_above(0);
        let first = unwrapper.extend(65_534);
        assert_eq!(first, 65_536 + 65_534);
        assert_eq!(unwrapper.extend(1), first + 3);
        assert_eq!(unwrapper.extend(65_535), first + 1, "late, from before the wrap");
        assert_eq!(unwrapper.extend(2), first + 4);
        assert_eq!(unwrapper.highest(), Some(first + 4));
    }

    #[test]
    fn values_before_the_first_one_are_extended() {
        let mut unwrapper = RtpTimestampUnwrapper::with_first_value_at_or_above(0);
        let first = unwrapper.extend(0);
        assert_eq!(unwrapper.extend(u32::MAX), first - 1);
        assert_eq!(extend_seq(3, 65_535), 65_535, "never negative");
    }

    #[test]
    fn a_start_is_kept_modulo_the_counter() {
        let mut unwrapper = SeqUnwrapper::with_first_value_at_or_above(1_000_000);
        let first = unwrapper.extend(5);
        assert!((1_000_000..1_065_536).contains(&first));
        assert_eq!(first as u16, 5);
    }

    #[test]
    fn a_day_of_timestamps_never_goes_back() {
        let mut unwrapper = RtpTimestampUnwrapper::with_first_value_at_or_above(0);
        let (mut time, mut last) = (u32::MAX - 10, 0);
        for _ in 0..86_400 {
            let extended = unwrapper.extend(time);
            assert!(last == 0 || extended == last + 90_000);
            (time, last) = (time.wrapping_add(90_000), extended);
        }
    }
}
