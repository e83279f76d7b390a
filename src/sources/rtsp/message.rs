//! RTSP messages and frames of interleaved data (RFC 2326 §10.12), as they stand in a connection.

use bytes::{Buf as _, BytesMut};

/// Longest header, and longest body.
pub(super) const MAX_HEADER_BYTES: usize = 16 * 1024;
pub(super) const MAX_BODY_BYTES: usize = 256 * 1024;

/// A message, or a frame of interleaved data.
pub(super) enum InterleavedFrameOrMessage {
    Interleaved {
        channel: u8,
        data: Vec<u8>,
    },
    Message {
        first: String,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
}

/// Returns the first channel of a `Transport` header.
pub(super) fn parse_interleaved_channel(transport: &str) -> Option<u8> {
    let parts = transport.split([';', ',']).map(str::trim);
    let channels = parts.filter_map(|part| part.split_once('='));
    let (_, channels) = channels
        .into_iter()
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("interleaved"))?;
    channels.split('-').next()?.trim().trim_matches('"').parse().ok()
}

pub(super) fn find_header_value<'a>(headers: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    found.map(|(_, value)| value.as_str())
}

pub(super) fn push_interleaved(out: &mut Vec<u8>, channel: u8, data: &[u8]) {
    out.extend([b'$', channel]);
    out.extend(u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(data);
}

/// The bytes are no RTSP, or a message is too long.
pub(super) struct InvalidRtspData;

/// Removes the next item from the front of a buffer; `None` if it is not complete.
pub(super) fn take_next_frame_or_message(
    buffer: &mut BytesMut,
) -> Result<Option<InterleavedFrameOrMessage>, InvalidRtspData> {
    // Some servers send line ends between messages.
    while matches!(buffer.first(), Some(b'\r' | b'\n' | b' ' | 0)) {
        buffer.advance(1);
    }
    if buffer.first() == Some(&b'$') {
        let &[_, channel, high, low, ..] = &buffer[..] else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if buffer.len() < 4 + length {
            return Ok(None);
        }
        buffer.advance(4);
        return Ok(Some(InterleavedFrameOrMessage::Interleaved {
            channel,
            data: buffer.split_to(length).to_vec(),
        }));
    }
    if buffer.first().is_some_and(|byte| !byte.is_ascii_alphabetic()) {
        return Err(InvalidRtspData);
    }
    let crlf = buffer
        .windows(4)
        .take(MAX_HEADER_BYTES)
        .position(|at| at == b"\r\n\r\n")
        .map(|at| at + 4);
    let lf = buffer
        .windows(2)
        .take(MAX_HEADER_BYTES)
        .position(|at| at == b"\n\n")
        .map(|at| at + 2);
    let Some(head_length) = crlf.into_iter().chain(lf).min() else {
        return if buffer.len() > MAX_HEADER_BYTES {
            Err(InvalidRtspData)
        } else {
            Ok(None)
        };
    };
    let head = String::from_utf8_lossy(buffer.get(..head_length).unwrap_or_default()).into_owned();
    let mut lines = head.lines().map(str::trim_end);
    let first = lines.next().unwrap_or_default().to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let body_length = find_header_value(&headers, "content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    if body_length > MAX_BODY_BYTES {
        return Err(InvalidRtspData);
    }
    if buffer.len() < head_length + body_length {
        return Ok(None);
    }
    buffer.advance(head_length);
    let body = buffer.split_to(body_length).to_vec();
    Ok(Some(InterleavedFrameOrMessage::Message { first, headers, body }))
}
