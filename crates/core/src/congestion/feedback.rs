//! Reads transport-wide congestion feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01) in place: no
//! allocation, one pass over the chunks to check that all deltas are there, one over the packets.

/// A feedback packet that was checked: [`Self::packet_statuses`] finds every delta that the chunks announce.
#[derive(Clone, Copy, Debug)]
pub struct TransportFeedback<'a> {
    /// Number of the first packet.
    pub base_sequence_number: u16,
    /// Number of packets that the feedback covers.
    pub packet_status_count: u16,
    /// Time before the first delta in units of 64 ms, 24 bits.
    pub reference_time: u32,
    chunks: &'a [u8],
    deltas: &'a [u8],
}

/// What a feedback packet says of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketStatus {
    /// Transport-wide sequence number.
    pub transport_sequence_number: u16,
    pub received: bool,
    /// Arrival after the reference time in units of [`RECEIVE_DELTA_UNIT_US`]; `None` if the packet was lost, or
    /// reported without delta.
    pub arrival_ticks: Option<i64>,
}

/// Unit of the deltas in microseconds (§3.1.5).
pub const RECEIVE_DELTA_UNIT_US: i64 = 250;

/// Unit of the reference time in microseconds (§3.1).
pub const REFERENCE_TIME_UNIT_US: i64 = 64_000;

/// SSRCs, base number, count, reference time and feedback count.
const FEEDBACK_HEADER_LEN: usize = 16;

impl<'a> TransportFeedback<'a> {
    /// Reads the body of an RTCP packet of type 205 and format 15, that is all after its first 4 bytes. `None` if
    /// chunks or deltas are missing.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let (&[_, _, _, _, _, _, _, _, b0, b1, c0, c1, r0, r1, r2, _], rest) =
            body.split_first_chunk::<FEEDBACK_HEADER_LEN>()?;
        let count = u16::from_be_bytes([c0, c1]);
        let (mut at, mut left, mut delta_bytes) = (0, count, 0);
        while left > 0 {
            let chunk = PacketStatusChunk::read(rest.get(at..)?)?;
            let covered = chunk.symbols_left.min(left);
            delta_bytes += chunk.delta_bytes_of_first_symbols(covered);
            left -= covered;
            at += 2;
        }
        let (chunks, deltas) = rest.split_at_checked(at)?;
        (delta_bytes <= deltas.len()).then_some(Self {
            base_sequence_number: u16::from_be_bytes([b0, b1]),
            packet_status_count: count,
            reference_time: u32::from_be_bytes([0, r0, r1, r2]),
            chunks,
            deltas,
        })
    }

    /// Returns the packets in the order of their numbers.
    pub fn packet_statuses(&self) -> PacketStatuses<'a> {
        PacketStatuses {
            next_sequence_number: self.base_sequence_number,
            left: self.packet_status_count,
            ticks: 0,
            chunk: PacketStatusChunk::EMPTY_CHUNK,
            chunks: self.chunks,
            deltas: self.deltas,
        }
    }
}

/// Iterator over the packets of a feedback packet.
#[derive(Clone, Debug)]
pub struct PacketStatuses<'a> {
    next_sequence_number: u16,
    left: u16,
    ticks: i64,
    chunk: PacketStatusChunk,
    chunks: &'a [u8],
    deltas: &'a [u8],
}

impl Iterator for PacketStatuses<'_> {
    type Item = PacketStatus;

    #[inline]
    fn next(&mut self) -> Option<PacketStatus> {
        if self.left == 0 {
            return None;
        }
        while self.chunk.symbols_left == 0 {
            self.chunk = PacketStatusChunk::read(self.chunks)?;
            self.chunks = self.chunks.get(2..)?;
        }
        let symbol = self.chunk.take_packet_status_symbol();
        let delta = match symbol {
            SMALL_DELTA_SYMBOL => {
                let (delta, rest) = self.deltas.split_first()?;
                self.deltas = rest;
                Some(i64::from(*delta))
            }
            LARGE_DELTA_SYMBOL => {
                let (delta, rest) = self.deltas.split_first_chunk::<2>()?;
                self.deltas = rest;
                Some(i64::from(i16::from_be_bytes(*delta)))
            }
            _ => None,
        };
        self.ticks += delta.unwrap_or(0);
        let status = PacketStatus {
            transport_sequence_number: self.next_sequence_number,
            received: symbol != NOT_RECEIVED_SYMBOL,
            arrival_ticks: delta.map(|_| self.ticks),
        };
        self.next_sequence_number = self.next_sequence_number.wrapping_add(1);
        self.left -= 1;
        Some(status)
    }
}

const NOT_RECEIVED_SYMBOL: u16 = 0;
const SMALL_DELTA_SYMBOL: u16 = 1;
const LARGE_DELTA_SYMBOL: u16 = 2;

/// The symbols of a packet chunk that were not taken yet (§3.1.2).
#[derive(Clone, Copy, Debug)]
struct PacketStatusChunk {
    symbols_left: u16,
    /// A run repeats one symbol; a vector has its next symbol in the highest bits.
    symbol_bits: u16,
    /// Bits per symbol of a vector, 0 for a run.
    bits_per_symbol: u8,
}

impl PacketStatusChunk {
    const EMPTY_CHUNK: Self = Self {
        symbols_left: 0,
        symbol_bits: 0,
        bits_per_symbol: 0,
    };

    fn read(bytes: &[u8]) -> Option<Self> {
        let word = u16::from_be_bytes(*bytes.first_chunk::<2>()?);
        let (len, symbols, width) = match word >> 14 {
            0 | 1 => (word & 0x1fff, word >> 13, 0),
            2 => (14, word << 2, 1),
            _ => (7, word << 2, 2),
        };
        Some(Self {
            symbols_left: len,
            symbol_bits: symbols,
            bits_per_symbol: width,
        })
    }

    #[inline]
    fn take_packet_status_symbol(&mut self) -> u16 {
        self.symbols_left -= 1;
        let symbol = match self.bits_per_symbol {
            0 => self.symbol_bits,
            width => self.symbol_bits >> (16 - u32::from(width)),
        };
        self.symbol_bits = match self.bits_per_symbol {
            0 => self.symbol_bits,
            width => self.symbol_bits << width,
        };
        symbol
    }

    /// Bytes of the deltas of the first `symbols_left` symbols.
    fn delta_bytes_of_first_symbols(mut self, len: u16) -> usize {
        let bytes = |symbol| match symbol {
            SMALL_DELTA_SYMBOL => 1,
            LARGE_DELTA_SYMBOL => 2,
            _ => 0,
        };
        match self.bits_per_symbol {
            0 => usize::from(len) * bytes(self.symbol_bits),
            1 => (self.symbol_bits & !(0xffff_u32 >> len) as u16).count_ones() as usize,
            _ => (0..len).map(|_| bytes(self.take_packet_status_symbol())).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base 65,534, reference 3; chunks and deltas follow.
    fn body(count: u16, rest: &[u8]) -> Vec<u8> {
        let mut body = vec![0, 0, 0, 1, 0, 0, 0, 2, 0xff, 0xfe];
        body.extend_from_slice(&count.to_be_bytes());
        body.extend_from_slice(&[0, 0, 3, 9]);
        body.extend_from_slice(rest);
        body
    }

    fn read(count: u16, rest: &[u8]) -> Option<Vec<(u16, bool, Option<i64>)>> {
        let body = body(count, rest);
        let feedback = TransportFeedback::parse(&body)?;
        assert_eq!((feedback.base_sequence_number, feedback.reference_time), (65_534, 3));
        let packets = feedback.packet_statuses();
        Some(
            packets
                .map(|status| (status.transport_sequence_number, status.received, status.arrival_ticks))
                .collect(),
        )
    }

    #[test]
    fn runs_and_vectors_are_read_across_the_wrap_of_the_numbers() {
        // Two received, one lost and one with a negative delta as a vector of two bits.
        let chunks = [0x20, 0x02, 0b1100_1000, 0];
        let deltas = [4, 8, 0xff, 0xfd];
        let expected = vec![
            (65_534, true, Some(4)),
            (65_535, true, Some(12)),
            (0, false, None),
            (1, true, Some(9)),
        ];
        assert_eq!(read(4, &[&chunks[..], &deltas].concat()), Some(expected));
    }

    #[test]
    fn a_vector_of_one_bit_is_read_up_to_the_count() {
        let expected = vec![(65_534, true, Some(7)), (65_535, false, None), (0, true, Some(8))];
        assert_eq!(read(3, &[0b1010_1111, 0xff, 7, 1]), Some(expected));
    }

    #[test]
    fn a_packet_without_delta_is_received() {
        let expected = vec![(65_534, true, None), (65_535, true, Some(5))];
        assert_eq!(read(2, &[0b1111_0100, 0, 5]), Some(expected));
    }

    #[test]
    fn missing_chunks_and_deltas_are_refused() {
        assert_eq!(read(1, &[]), None);
        assert_eq!(read(1, &[0x20]), None);
        assert_eq!(read(2, &[0x20, 0x02, 1]), None);
        assert_eq!(read(1, &[0x40, 0x01, 1]), None);
        assert_eq!(read(3, &[0x00, 0x00, 0x00, 0x02]), None, "an empty run covers nothing");
        assert_eq!(TransportFeedback::parse(&[0; 15]).map(|_| ()), None);
    }

    #[test]
    fn a_long_run_is_checked_without_walking_it() {
        // 65,535 packets not received in 9 chunks.
        let chunks: Vec<u8> = [0x1f, 0xff].repeat(9);
        let body = body(65_535, &chunks);
        let feedback = TransportFeedback::parse(&body).expect("valid");
        assert_eq!(feedback.packet_statuses().count(), 65_535);
    }
}
