//! Packets of a transport stream (ISO/IEC 13818-1 §2.4.3), found in segments that may begin or end inside a packet.

use bytes::{Buf as _, BytesMut};

/// Packet length in bytes, and the sync byte.
pub(in crate::media::container) const PACKET: usize = 188;
pub(in crate::media::container) const SYNC: u8 = 0x47;

/// Distances between packets: plain, with a timestamp of four bytes before each, and with error correction behind each.
const STRIDES: [usize; 3] = [PACKET, 192, 204];

/// Number of sync bytes in a row that make a transport stream.
const SYNCS: usize = 3;

/// A packet with payload.
pub(super) struct Packet<'a> {
    pub(super) pid: u16,
    /// A PES packet or a section begins in the payload.
    pub(super) begins: bool,
    pub(super) is_scrambled: bool,
    pub(super) counter: u8,
    /// The continuity counter may jump here.
    pub(super) is_discontinuous: bool,
    pub(super) payload: &'a [u8],
}

/// PID of packets without content.
const NULL: u16 = 0x1fff;

impl<'a> Packet<'a> {
    /// Parses a packet; `None` if it has no payload or was received with errors.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        let (&[_, b1, b2, b3], body) = packet.split_first_chunk::<4>()?;
        let pid = u16::from(b1 & 0x1f) << 8 | u16::from(b2);
        let (is_erroneous, has_payload) = (b1 & 0x80 != 0, b3 & 0x10 != 0);
        if is_erroneous || !has_payload || pid == NULL {
            return None;
        }
        let (mut is_discontinuous, mut payload) = (false, body);
        if b3 & 0x20 != 0 {
            let (&length, rest) = body.split_first()?;
            is_discontinuous = length > 0 && rest.first()? & 0x80 != 0;
            payload = rest.get(usize::from(length)..)?;
        }
        (!payload.is_empty()).then_some(Self {
            pid,
            begins: b1 & 0x40 != 0,
            is_scrambled: b3 & 0xc0 != 0,
            counter: b3 & 0xf,
            is_discontinuous,
            payload,
        })
    }
}

/// Cuts data into packets. What is left of a segment is the beginning of a packet that the next one continues.
#[derive(Debug, Default)]
pub(super) struct Packets {
    rest: BytesMut,
    stride: usize,
}

impl Packets {
    /// Appends a segment. Drops an incomplete packet that it does not continue.
    pub(super) fn push(&mut self, segment: &[u8]) {
        let is_continued = || {
            let next = self.stride.checked_sub(self.rest.len())?;
            Some(is_stream(segment.get(next..)?, self.stride) && next > 0)
        };
        if !self.rest.is_empty() && !is_continued().unwrap_or(false) {
            self.rest.clear();
        }
        self.rest.extend_from_slice(segment);
    }

    /// Drops what is incomplete.
    pub(super) fn clear(&mut self) {
        self.rest.clear();
    }

    /// Takes the next complete packet.
    pub(super) fn next(&mut self) -> Option<[u8; PACKET]> {
        loop {
            if self.stride > 0 && self.rest.first() == Some(&SYNC) {
                let packet = *self.rest.first_chunk::<PACKET>()?;
                // The last packet has nothing behind it.
                self.rest.advance(self.stride.min(self.rest.len()));
                return Some(packet);
            }
            let Some((at, stride)) = find(&self.rest) else {
                // Keeps what may be the beginning of a packet.
                let junk = self.rest.len().saturating_sub(PACKET - 1);
                self.rest.advance(junk);
                return None;
            };
            self.rest.advance(at);
            self.stride = stride;
        }
    }
}

/// Whether data is a transport stream from its first byte: as far as it goes, sync bytes stand where they belong.
fn is_stream(bytes: &[u8], stride: usize) -> bool {
    stride > 0 && bytes.first() == Some(&SYNC) && bytes.iter().step_by(stride).take(SYNCS).all(|byte| *byte == SYNC)
}

/// Finds the first packet, and the distance to the next one.
fn find(bytes: &[u8]) -> Option<(usize, usize)> {
    let starts = (0..bytes.len()).filter(|at| bytes.get(*at) == Some(&SYNC));
    starts.filter(|at| bytes.len() - at >= PACKET).find_map(|at| {
        Some((
            at,
            STRIDES
                .into_iter()
                .find(|stride| is_stream(bytes.get(at..).unwrap_or_default(), *stride))?,
        ))
    })
}

/// Whether data is a transport stream, which may begin inside a packet.
pub(in crate::media::container) fn is_transport_stream(bytes: &[u8]) -> bool {
    let within = |&(at, stride): &(usize, usize)| at < stride && (at == 0 || bytes.len() >= at + stride * (SYNCS - 1));
    find(bytes.get(..PACKET * 8).unwrap_or(bytes)).is_some_and(|found| within(&found))
}
