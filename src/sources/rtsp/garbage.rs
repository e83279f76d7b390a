//! Bytes between the messages and frames of a camera that belong to neither. They are skipped up to what begins a message,
//! or a frame of a known channel.

use bytes::{Buf as _, BytesMut};

/// Skips garbage of one connection.
#[derive(Debug, Default)]
pub(super) struct GarbageSkipper {
    is_skipping: bool,
    /// Bytes since the last message or frame.
    skipped_in_row: usize,
    total_bytes: u64,
}

/// What a buffer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BufferStart {
    /// A message or frame.
    Item,
    /// Too little to say.
    Incomplete,
    /// More garbage in a row than a camera sends by mistake.
    TooMuchGarbage,
}

/// Longest garbage between two messages or frames.
const MAX_GARBAGE_BYTES: usize = 64 * 1024;

/// What begins a message: a response, or a request of the camera (RFC 2326 §10). `HTTP` is an error that retina reports.
const MESSAGE_STARTS: [&[u8]; 14] = [
    b"RTSP/",
    b"HTTP/",
    b"OPTIONS ",
    b"ANNOUNCE ",
    b"DESCRIBE ",
    b"GET_PARAMETER ",
    b"SET_PARAMETER ",
    b"PAUSE ",
    b"PLAY ",
    b"PLAY_NOTIFY ",
    b"RECORD ",
    b"REDIRECT ",
    b"SETUP ",
    b"TEARDOWN ",
];

/// Header of a frame (RFC 2326 §10.12), and the shortest RTP or RTCP packet.
const FRAME_HEADER_BYTES: usize = 4;
const MIN_FRAME_DATA_BYTES: u16 = 8;

impl GarbageSkipper {
    /// Bytes that were skipped so far.
    pub(super) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Removes garbage from the front of a buffer. Behind garbage, only frames of known channels are frames.
    pub(super) fn skip_to_item(&mut self, buffer: &mut BytesMut, is_known_channel: impl Fn(u8) -> bool) -> BufferStart {
        // Some servers send line ends between messages.
        while !self.is_skipping && matches!(buffer.first(), Some(b'\r' | b'\n' | b' ' | 0)) {
            buffer.advance(1);
        }
        let mut skipped = 0;
        let mut start = BufferStart::Incomplete;
        while let Some(rest) = buffer.get(skipped..).filter(|rest| !rest.is_empty()) {
            let is_frame = match rest {
                [b'$', ..] if self.is_skipping => is_frame_of_known_channel(rest, &is_known_channel),
                [b'$', ..] => Some(true),
                _ => Some(false),
            };
            let is_message = MESSAGE_STARTS.iter().any(|start| rest.starts_with(start));
            if is_message || is_frame == Some(true) {
                start = BufferStart::Item;
                break;
            }
            if is_frame.is_none() || MESSAGE_STARTS.iter().any(|start| start.starts_with(rest)) {
                break;
            }
            self.is_skipping = true;
            skipped += 1;
        }
        buffer.advance(skipped);
        self.skipped_in_row += skipped;
        self.total_bytes += skipped as u64;
        if self.skipped_in_row > MAX_GARBAGE_BYTES {
            return BufferStart::TooMuchGarbage;
        }
        if start == BufferStart::Item {
            (self.is_skipping, self.skipped_in_row) = (false, 0);
        }
        start
    }
}

/// Whether a dollar sign among garbage begins a frame, which has RTP or RTCP of version 2; `None` if more is needed to say.
fn is_frame_of_known_channel(rest: &[u8], is_known_channel: impl Fn(u8) -> bool) -> Option<bool> {
    let channel = rest.get(1)?;
    if !is_known_channel(*channel) {
        return Some(false);
    }
    let length = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]);
    let first = rest.get(FRAME_HEADER_BYTES)?;
    Some(length >= MIN_FRAME_DATA_BYTES && first & 0xc0 == 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(skipper: &mut GarbageSkipper, buffer: &mut BytesMut) -> BufferStart {
        skipper.skip_to_item(buffer, |channel| channel < 2)
    }

    #[test]
    fn garbage_is_skipped_to_the_next_message_or_frame() {
        let frame = b"$\x01\x00\x08\x80rtprtp!";
        for garbage in [
            &b"\xff\xfe"[..],
            b"OPTIONAL junk",
            b"x$y$\x07\x00\x08\x80",
            b"x$\x00\x00\x02\x80",
            b"\x80$\x00\x00\x08\x40",
            b"RTSP",
        ] {
            for item in [&frame[..], b"RTSP/1.0 200 OK\r\n\r\n", b"OPTIONS * RTSP/1.0\r\n\r\n"] {
                let sent = [garbage, item].concat();
                // In one piece, and byte by byte.
                let mut skipper = GarbageSkipper::default();
                let mut buffer = BytesMut::from(&sent[..]);
                assert_eq!(skip(&mut skipper, &mut buffer), BufferStart::Item, "{sent:x?}");
                assert_eq!((&buffer[..], skipper.total_bytes()), (item, garbage.len() as u64));
                let (mut skipper, mut buffer) = (GarbageSkipper::default(), BytesMut::new());
                let mut bytes = sent.iter();
                while skip(&mut skipper, &mut buffer) == BufferStart::Incomplete {
                    buffer.extend(bytes.next());
                }
                buffer.extend(bytes);
                assert_eq!(&buffer[..], item, "{sent:x?}");
            }
        }
    }

    #[test]
    fn line_ends_and_frames_of_any_channel_are_no_garbage() {
        let (mut skipper, mut buffer) = (GarbageSkipper::default(), BytesMut::from(&b"\r\n\0 $\x09\0\x01x"[..]));
        assert_eq!(skip(&mut skipper, &mut buffer), BufferStart::Item);
        assert_eq!((skipper.total_bytes(), buffer.first()), (0, Some(&b'$')));
    }

    #[test]
    fn garbage_without_end_is_an_error() {
        let (mut skipper, mut sent) = (GarbageSkipper::default(), 0);
        while skip(&mut skipper, &mut BytesMut::from(&[0xff; 1_000][..])) == BufferStart::Incomplete {
            sent += 1_000;
            assert!(sent <= MAX_GARBAGE_BYTES);
        }
        assert!(sent + 1_000 > MAX_GARBAGE_BYTES);
    }
}
