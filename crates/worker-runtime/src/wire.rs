//! Protocol between gateway and worker over a socket pair: length-prefixed messages.
//!
//! ```text
//! length (4 bytes, of what follows) | kind (1) | body
//! frame:  track (1) | flags (1) | time in ns (8) | bytes
//! chunk:  rendition (1) | role (1) | timeline (8) | bytes
//! want:   rendition (1)
//! others: JSON
//! ```
//!
//! The gateway does not trust a worker: lengths are bounded, and an invalid message ends the worker.

use std::path::PathBuf;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use millstream_core::media::Kind;

/// Job of a worker that runs a pipeline.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub launch: String,
    /// Property values by `element.property`, set after the launch line was parsed.
    pub properties: Vec<(String, String)>,
    /// Tracks that will be sent to `video_in` and `audio_in`.
    pub inputs: Vec<Input>,
    /// Restart from the beginning at the end of the stream.
    pub repeats: bool,
    /// Allow network access.
    pub network: bool,
    /// Files and devices that it may open.
    pub files: Vec<PathBuf>,
    /// Memory limit in bytes.
    pub memory: u64,
    /// Number of processors that it may use; 0 means no limit.
    pub processors: u32,
}

impl std::fmt::Debug for Job {
    /// Omits the property values, which may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("launch", &self.launch)
            .finish_non_exhaustive()
    }
}

/// A track that is sent to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub media: Media,
}

/// Format of frames, in either direction. H.264 and H.265 are byte streams with start codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Media {
    H264,
    H265,
    Vp8,
    Vp9,
    Av1,
    Jpeg,
    Opus,
    Pcmu,
    Pcma,
    /// With the AudioSpecificConfig.
    Aac(Vec<u8>),
}

impl Media {
    /// Returns whether this is audio or video.
    pub fn kind(&self) -> Kind {
        match self {
            Self::H264 | Self::H265 | Self::Vp8 | Self::Vp9 | Self::Av1 | Self::Jpeg => Kind::Video,
            Self::Opus | Self::Pcmu | Self::Pcma | Self::Aac(_) => Kind::Audio,
        }
    }
}

/// A frame, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireFrame {
    pub kind: Kind,
    /// Presentation time in nanoseconds since an origin that all tracks share.
    pub time: u64,
    /// Frames before it are missing.
    pub after_gap: bool,
    pub bytes: Bytes,
}

/// Job of a worker that demuxes HLS segments without a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemuxJob {
    /// Number of renditions: 2 if the audio has a rendition of its own, else 1.
    pub renditions: u8,
    /// The stream is live: latency is kept low.
    pub is_live: bool,
    /// Memory limit in bytes.
    pub memory: u64,
}

/// A part of an HLS segment.
#[derive(Clone, PartialEq, Eq)]
pub struct SegmentChunk {
    /// Index of the rendition; rendition 0 leads.
    pub rendition: u8,
    pub role: ChunkRole,
    /// Timestamps of one timeline share an origin; each discontinuity starts a new timeline.
    pub timeline: u64,
    pub bytes: Bytes,
}

impl std::fmt::Debug for SegmentChunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SegmentChunk({:?}, {} bytes)", self.role, self.bytes.len())
    }
}

/// Position of a chunk in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkRole {
    /// A complete initialization section for the segments that follow.
    Init,
    /// A part of a segment; more parts follow.
    Part,
    /// The last part of a segment.
    Last,
    /// End of the stream: no more segments follow.
    End,
}

impl ChunkRole {
    const ALL: [Self; 4] = [Self::Init, Self::Part, Self::Last, Self::End];
}

/// Message to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    /// First message to a worker that demuxes segments.
    Demux(DemuxJob),
    SegmentChunk(SegmentChunk),
    /// First message to a worker that runs a pipeline.
    Run(Job),
    /// First message to a worker that checks which of these named jobs cannot run.
    Check(Vec<(String, Job)>),
    Frame(WireFrame),
    /// Request a key frame from the encoder.
    KeyFrame,
    /// Stop gracefully.
    Stop,
}

/// Message from a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    /// The pipeline was set up; these tracks may follow.
    Ready(Tracks),
    /// Format of the frames of a track from here on.
    Media(Media),
    Frame(WireFrame),
    /// Request for the next segment of a rendition.
    Want(u8),
    /// Nothing in the pipeline makes a key frame when it is asked for one.
    KeyFrameRefused,
    /// A sign of life, several times a second.
    Alive,
    /// The worker cannot continue.
    Failed(Failure),
    /// The stream ended.
    Ended,
    /// Response to [`ToWorker::Check`].
    Checked(Vec<Finding>),
}

/// The kinds of tracks that a worker outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracks {
    pub video: bool,
    pub audio: bool,
}

/// Why a pipeline does not run.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Failure {
    #[error("missing GStreamer elements: {}", .0.join(", "))]
    Missing(Vec<String>),
    #[error("invalid launch line: {0}")]
    Launch(String),
    #[error("`{target}` cannot be set: {problem}")]
    Property { target: String, problem: String },
    #[error("{0}")]
    Stream(String),
}

impl Failure {
    /// Returns the failure with its texts sanitized: a worker is not trusted, and library messages may contain URLs
    /// with passwords.
    pub fn shown(self) -> Self {
        match self {
            Self::Missing(elements) => {
                let elements = elements.iter().take(MAX_ELEMENTS).map(|element| shown(element));
                Self::Missing(elements.collect())
            }
            Self::Launch(text) => Self::Launch(shown(&text)),
            Self::Property { target, problem } => Self::Property {
                target: shown(&target),
                problem: shown(&problem),
            },
            Self::Stream(text) => Self::Stream(shown(&text)),
        }
    }
}

/// Maximum number of missing elements that are listed.
const MAX_ELEMENTS: usize = 20;

/// Maximum length of a sanitized text, in characters.
const MAX_SHOWN: usize = 300;

/// Sanitizes a text of a worker: one line, of bounded length, without URLs.
pub fn shown(text: &str) -> String {
    let words = text
        .split_whitespace()
        .map(|word| if word.contains("://") { "(URL)" } else { word });
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_SHOWN).collect()
}

/// Result of the check of one pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub name: String,
    pub failure: Option<Failure>,
}

/// Why a message is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("a message of {0} bytes exceeds the limit of {MAX_MESSAGE} bytes")]
    TooLong(usize),
    #[error("a message of kind {0} is malformed")]
    Unreadable(u8),
}

/// Maximum length of a message in bytes: the largest access unit and its header.
pub const MAX_MESSAGE: usize = (8 << 20) + 64;

mod kind {
    pub(super) const RUN: u8 = 1;
    pub(super) const CHECK: u8 = 2;
    pub(super) const FRAME: u8 = 3;
    pub(super) const KEY_FRAME: u8 = 4;
    pub(super) const STOP: u8 = 5;
    pub(super) const DEMUX: u8 = 6;
    pub(super) const CHUNK: u8 = 7;
    pub(super) const READY: u8 = 16;
    pub(super) const MEDIA: u8 = 17;
    pub(super) const ALIVE: u8 = 18;
    pub(super) const FAILED: u8 = 19;
    pub(super) const ENDED: u8 = 20;
    pub(super) const CHECKED: u8 = 21;
    pub(super) const WANT: u8 = 22;
    pub(super) const KEY_FRAME_REFUSED: u8 = 23;
}

/// Removes a complete message from the front of the buffer; `None` while it is incomplete.
fn split(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, WireError> {
    let Some(length) = buffer
        .first_chunk::<4>()
        .map(|length| u32::from_be_bytes(*length) as usize)
    else {
        return Ok(None);
    };
    if length > MAX_MESSAGE {
        return Err(WireError::TooLong(length));
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    let mut message = buffer.split_to(length).freeze();
    if message.is_empty() {
        return Err(WireError::Unreadable(0));
    }
    Ok(Some((message.get_u8(), message)))
}

fn write(kind: u8, body: &[&[u8]], out: &mut BytesMut) {
    let length = 1 + body.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(4 + length);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.put_u8(kind);
    body.iter().for_each(|part| out.put_slice(part));
}

fn write_json(kind: u8, body: &impl Serialize, out: &mut BytesMut) {
    write(kind, &[&serde_json::to_vec(body).unwrap_or_default()], out);
}

fn read_json<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(|_| WireError::Unreadable(kind))
}

const AFTER_GAP: u8 = 1;

impl WireFrame {
    fn write(&self, out: &mut BytesMut) {
        let head = [u8::from(self.kind == Kind::Audio), u8::from(self.after_gap) * AFTER_GAP];
        write(kind::FRAME, &[&head, &self.time.to_be_bytes(), &self.bytes], out);
    }

    fn read(mut body: Bytes) -> Result<Self, WireError> {
        if body.len() < 10 {
            return Err(WireError::Unreadable(kind::FRAME));
        }
        let kind = match body.get_u8() {
            0 => Kind::Video,
            1 => Kind::Audio,
            _ => return Err(WireError::Unreadable(kind::FRAME)),
        };
        let after_gap = body.get_u8() & AFTER_GAP != 0;
        let time = body.get_u64();
        Ok(Self {
            kind,
            time,
            after_gap,
            bytes: body,
        })
    }
}

impl SegmentChunk {
    fn write(&self, out: &mut BytesMut) {
        let role = ChunkRole::ALL.iter().position(|role| *role == self.role);
        let head = [
            self.rendition,
            role.and_then(|role| u8::try_from(role).ok()).unwrap_or_default(),
        ];
        write(kind::CHUNK, &[&head, &self.timeline.to_be_bytes(), &self.bytes], out);
    }

    fn read(mut body: Bytes) -> Result<Self, WireError> {
        let unreadable = WireError::Unreadable(kind::CHUNK);
        if body.len() < 10 {
            return Err(unreadable);
        }
        let rendition = body.get_u8();
        let role = *ChunkRole::ALL.get(usize::from(body.get_u8())).ok_or(unreadable)?;
        Ok(Self {
            rendition,
            role,
            timeline: body.get_u64(),
            bytes: body,
        })
    }
}

impl ToWorker {
    /// Appends the encoded message.
    pub fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Demux(job) => write_json(kind::DEMUX, job, out),
            Self::SegmentChunk(chunk) => chunk.write(out),
            Self::Run(job) => write_json(kind::RUN, job, out),
            Self::Check(jobs) => write_json(kind::CHECK, jobs, out),
            Self::Frame(frame) => frame.write(out),
            Self::KeyFrame => write(kind::KEY_FRAME, &[], out),
            Self::Stop => write(kind::STOP, &[], out),
        }
    }

    /// Removes a message from the front of the buffer; `None` while it is incomplete.
    ///
    /// # Errors
    ///
    /// A [`WireError`]; the rest of the stream cannot be read.
    pub fn read(buffer: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some((kind, body)) = split(buffer)? else {
            return Ok(None);
        };
        let message = match kind {
            kind::RUN => Self::Run(read_json(kind, &body)?),
            kind::DEMUX => Self::Demux(read_json(kind, &body)?),
            kind::CHUNK => Self::SegmentChunk(SegmentChunk::read(body)?),
            kind::CHECK => Self::Check(read_json(kind, &body)?),
            kind::FRAME => Self::Frame(WireFrame::read(body)?),
            kind::KEY_FRAME => Self::KeyFrame,
            kind::STOP => Self::Stop,
            kind => return Err(WireError::Unreadable(kind)),
        };
        Ok(Some(message))
    }
}

impl FromWorker {
    /// Appends the encoded message.
    pub fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Ready(tracks) => write_json(kind::READY, tracks, out),
            Self::Media(media) => write_json(kind::MEDIA, media, out),
            Self::Frame(frame) => frame.write(out),
            Self::Want(rendition) => write(kind::WANT, &[&[*rendition]], out),
            Self::KeyFrameRefused => write(kind::KEY_FRAME_REFUSED, &[], out),
            Self::Alive => write(kind::ALIVE, &[], out),
            Self::Failed(failure) => write_json(kind::FAILED, failure, out),
            Self::Ended => write(kind::ENDED, &[], out),
            Self::Checked(findings) => write_json(kind::CHECKED, findings, out),
        }
    }

    /// Removes a message from the front of the buffer; `None` while it is incomplete.
    ///
    /// # Errors
    ///
    /// A [`WireError`]; the rest of the stream cannot be read.
    pub fn read(buffer: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some((kind, body)) = split(buffer)? else {
            return Ok(None);
        };
        let message = match kind {
            kind::READY => Self::Ready(read_json(kind, &body)?),
            kind::MEDIA => Self::Media(read_json(kind, &body)?),
            kind::FRAME => Self::Frame(WireFrame::read(body)?),
            kind::WANT => Self::Want(*body.first().ok_or(WireError::Unreadable(kind))?),
            kind::KEY_FRAME_REFUSED => Self::KeyFrameRefused,
            kind::ALIVE => Self::Alive,
            kind::FAILED => Self::Failed(read_json(kind, &body)?),
            kind::ENDED => Self::Ended,
            kind::CHECKED => Self::Checked(read_json(kind, &body)?),
            kind => return Err(WireError::Unreadable(kind)),
        };
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> WireFrame {
        WireFrame {
            kind: Kind::Audio,
            time: 1 << 40,
            after_gap: true,
            bytes: Bytes::from_static(b"frame"),
        }
    }

    #[test]
    fn messages_round_trip_however_they_are_fragmented() {
        let messages = [
            FromWorker::Ready(Tracks {
                video: true,
                audio: false,
            }),
            FromWorker::Media(Media::Aac(vec![0x11, 0x90])),
            FromWorker::Frame(frame()),
            FromWorker::KeyFrameRefused,
            FromWorker::Alive,
            FromWorker::Failed(Failure::Missing(vec!["x264enc".to_owned()])),
            FromWorker::Ended,
        ];
        let mut bytes = BytesMut::new();
        messages.iter().for_each(|message| message.write(&mut bytes));
        let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
        for byte in bytes {
            buffer.put_u8(byte);
            while let Some(message) = FromWorker::read(&mut buffer).expect("a message") {
                read.push(message);
            }
        }
        assert_eq!(read, messages);
        let mut bytes = BytesMut::new();
        ToWorker::Frame(frame()).write(&mut bytes);
        assert_eq!(ToWorker::read(&mut bytes), Ok(Some(ToWorker::Frame(frame()))));
    }

    #[test]
    fn worker_texts_are_shown_without_urls_and_within_bounds() {
        let said = Failure::Stream(format!("cannot open\nrtsp://user:secret@cam/1 {}", "x".repeat(9_000)));
        let shown = said.shown().to_string();
        assert!(
            shown.starts_with("cannot open (URL) xxx") && shown.len() == MAX_SHOWN,
            "{shown}"
        );
        let many = Failure::Missing(vec!["e".repeat(500); 1_000]).shown().to_string();
        assert!(many.len() < MAX_ELEMENTS * (MAX_SHOWN + 2) + 50);
    }

    #[test]
    fn invalid_messages_are_rejected_without_reserving_memory() {
        for (bytes, wanted) in [
            (&[0xff, 0xff, 0xff, 0xff, 3][..], WireError::TooLong(0xffff_ffff)),
            (&[0, 0, 0, 0], WireError::Unreadable(0)),
            (&[0, 0, 0, 1, 99], WireError::Unreadable(99)),
            (&[0, 0, 0, 3, 3, 0, 0], WireError::Unreadable(3)),
            (&[0, 0, 0, 3, 16, b'{', b'x'], WireError::Unreadable(16)),
        ] {
            let mut buffer = BytesMut::from(bytes);
            assert_eq!(FromWorker::read(&mut buffer), Err(wanted));
            assert!(buffer.capacity() < 1_024);
        }
    }
}
