//! Packets of a transport stream (ISO/IEC 13818-1 §2.4.3), found in segments that may begin or end inside a packet.

use bytes::{Buf as _, BytesMut};

/// Packet length in bytes, and the sync byte.
pub(in crate::media::container) const TS_PACKET_LEN: usize = 188;
pub(in crate::media::container) const SYNC_BYTE: u8 = 0x47;

/// Distances between packets: plain, with a timestamp of four bytes before each, and with error correction behind each.
const TS_PACKET_STRIDES: [usize; 3] = [TS_PACKET_LEN, 192, 204];

/// Number of sync bytes in a row that make a transport stream.
const MIN_CONSECUTIVE_SYNC_BYTES: usize = 3;

/// A packet.
pub(super) struct TsPacket<'a> {
    pub(super) pid: u16,
    /// A PES packet or a section begins in the payload.
    pub(super) payload_unit_start: bool,
    pub(super) is_scrambled: bool,
    pub(super) continuity_counter: u8,
    /// The continuity counter may jump here.
    pub(super) is_discontinuous: bool,
    /// Empty if the packet has an adaptation field alone.
    pub(super) payload: &'a [u8],
}

/// PID of packets without content.
const NULL_PID: u16 = 0x1fff;

impl<'a> TsPacket<'a> {
    /// Parses a packet; `None` if it has no content or was received with errors.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        let (&[_, b1, b2, b3], body) = packet.split_first_chunk::<4>()?;
        let pid = u16::from(b1 & 0x1f) << 8 | u16::from(b2);
        let (is_erroneous, has_payload) = (b1 & 0x80 != 0, b3 & 0x10 != 0);
        if is_erroneous || pid == NULL_PID {
            return None;
        }
        let (mut is_discontinuous, mut payload) = (false, body);
        if b3 & 0x20 != 0 {
            let (&length, rest) = body.split_first()?;
            is_discontinuous = length > 0 && rest.first()? & 0x80 != 0;
            payload = rest.get(usize::from(length)..).unwrap_or_default();
        }
        Some(Self {
            pid,
            payload_unit_start: b1 & 0x40 != 0,
            is_scrambled: b3 & 0xc0 != 0,
            continuity_counter: b3 & 0xf,
            is_discontinuous,
            payload: if has_payload { payload } else { &[] },
        })
    }
}

/// Cuts data into packets. What is left of a segment is the beginning of a packet that the next one continues.
#[derive(Debug, Default)]
pub(super) struct TsPacketSplitter {
    buffer: BytesMut,
    packet_stride: usize,
}

impl TsPacketSplitter {
    /// Appends a segment. Drops an incomplete packet that it does not continue.
    pub(super) fn push_segment_dropping_incomplete_packet(&mut self, segment: &[u8]) {
        let is_continued = || {
            let next = self.packet_stride.checked_sub(self.buffer.len())?;
            Some(has_sync_bytes(segment.get(next..)?, self.packet_stride) && next > 0)
        };
        if !self.buffer.is_empty() && !is_continued().unwrap_or(false) {
            self.buffer.clear();
        }
        self.buffer.extend_from_slice(segment);
    }

    /// Drops what is incomplete.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
    }

    /// Takes the next complete packet.
    pub(super) fn next(&mut self) -> Option<[u8; TS_PACKET_LEN]> {
        loop {
            if self.packet_stride > 0 && self.buffer.first() == Some(&SYNC_BYTE) {
                let packet = *self.buffer.first_chunk::<TS_PACKET_LEN>()?;
                // The last packet has nothing behind it.
                self.buffer.advance(self.packet_stride.min(self.buffer.len()));
                return Some(packet);
            }
            let Some((at, stride)) = find_first_packet(&self.buffer) else {
                // Keeps what may be the beginning of a packet.
                let junk = self.buffer.len().saturating_sub(TS_PACKET_LEN - 1);
                self.buffer.advance(junk);
                return None;
            };
            self.buffer.advance(at);
            self.packet_stride = stride;
        }
    }
}

/// Whether data is a transport stream from its first byte: as far as it goes, sync bytes stand where they belong.
fn has_sync_bytes(bytes: &[u8], stride: usize) -> bool {
    stride > 0
        && bytes.first() == Some(&SYNC_BYTE)
        && bytes
            .iter()
            .step_by(stride)
            .take(MIN_CONSECUTIVE_SYNC_BYTES)
            .all(|byte| *byte == SYNC_BYTE)
}

/// Finds the first packet, and the distance to the next one.
fn find_first_packet(bytes: &[u8]) -> Option<(usize, usize)> {
    let starts = (0..bytes.len()).filter(|at| bytes.get(*at) == Some(&SYNC_BYTE));
    starts.filter(|at| bytes.len() - at >= TS_PACKET_LEN).find_map(|at| {
        Some((
            at,
            TS_PACKET_STRIDES
                .into_iter()
                .find(|stride| has_sync_bytes(bytes.get(at..).unwrap_or_default(), *stride))?,
        ))
    })
}

/// Bytes before the first packet that are passed over: some origins put the header of an image there, or packets that only
/// their own player understands.
const MAX_BYTES_BEFORE_FIRST_PACKET: usize = 64 << 10;

/// Number of sync bytes in a row that make a transport stream behind something else.
const MIN_CONSECUTIVE_SYNC_BYTES_BEHIND_GARBAGE: usize = 8;

/// Whether data is a transport stream, which may begin inside a packet.
pub(in crate::media::container) fn is_transport_stream(bytes: &[u8]) -> bool {
    let within = |&(at, stride): &(usize, usize)| {
        at < stride && (at == 0 || bytes.len() >= at + stride * (MIN_CONSECUTIVE_SYNC_BYTES - 1))
    };
    find_first_packet(bytes.get(..TS_PACKET_LEN * 8).unwrap_or(bytes)).is_some_and(|found| within(&found))
}

/// Whether data is a transport stream behind something else.
pub(in crate::media::container) fn is_transport_stream_behind_garbage(bytes: &[u8]) -> bool {
    let mut starts =
        (0..bytes.len().min(MAX_BYTES_BEFORE_FIRST_PACKET)).filter(|at| bytes.get(*at) == Some(&SYNC_BYTE));
    starts.any(|at| {
        TS_PACKET_STRIDES.into_iter().any(|stride| {
            let syncs = (0..MIN_CONSECUTIVE_SYNC_BYTES_BEHIND_GARBAGE).map(|index| bytes.get(at + index * stride));
            syncs.into_iter().all(|byte| byte == Some(&SYNC_BYTE))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(packets: usize, content: u8) -> Vec<u8> {
        let mut segment = vec![content; packets * TS_PACKET_LEN];
        segment
            .iter_mut()
            .step_by(TS_PACKET_LEN)
            .for_each(|byte| *byte = SYNC_BYTE);
        segment
    }

    fn contents(splitter: &mut TsPacketSplitter) -> Vec<[u8; 2]> {
        std::iter::from_fn(|| splitter.next())
            .map(|packet| [packet[1], packet[TS_PACKET_LEN - 1]])
            .collect()
    }

    #[test]
    fn a_packet_that_the_next_segment_does_not_continue_is_dropped() {
        let mut splitter = TsPacketSplitter::default();
        splitter.push_segment_dropping_incomplete_packet(&segment(7, 1)[..6 * TS_PACKET_LEN + 100]);
        assert_eq!(contents(&mut splitter), [[1, 1]; 6]);
        splitter.push_segment_dropping_incomplete_packet(&segment(6, 2));
        assert_eq!(contents(&mut splitter), [[2, 2]; 6]);
    }

    #[test]
    fn a_packet_that_the_next_segment_continues_is_whole() {
        let mut splitter = TsPacketSplitter::default();
        let stream = segment(12, 3);
        let (first, second) = stream.split_at(6 * TS_PACKET_LEN + 100);
        splitter.push_segment_dropping_incomplete_packet(first);
        assert_eq!(contents(&mut splitter).len(), 6);
        splitter.push_segment_dropping_incomplete_packet(second);
        assert_eq!(contents(&mut splitter), [[3, 3]; 6]);
    }
}
