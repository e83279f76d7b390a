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

use millstream_core::media::MediaKind;

/// Job of a worker that runs a pipeline.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelineJob {
    pub launch: String,
    /// Property values by `element.property`, set after the launch line was parsed.
    pub properties: Vec<(String, String)>,
    /// Tracks that will be sent to `video_in` and `audio_in`.
    pub inputs: Vec<InputTrack>,
    /// Restart from the beginning at the end of the stream.
    pub repeats: bool,
    /// Allow network access.
    pub network: bool,
    /// Networks that it may connect to, such as `10.0.0.0/8`; empty allows all.
    pub allowed_networks: Vec<String>,
    /// Files and devices that it may open.
    pub files: Vec<PathBuf>,
    /// Memory limit in bytes.
    pub memory: u64,
    /// Number of processors that it may use; 0 means no limit.
    pub processors: u32,
}

impl std::fmt::Debug for PipelineJob {
    /// Omits the property values, which may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("launch", &self.launch)
            .finish_non_exhaustive()
    }
}

/// A track that is sent to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputTrack {
    pub media: TrackFormat,
}

/// Format of frames, in either direction. H.264 and H.265 are byte streams with start codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrackFormat {
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

impl TrackFormat {
    /// Returns whether this is audio or video.
    pub fn kind(&self) -> MediaKind {
        match self {
            Self::H264 | Self::H265 | Self::Vp8 | Self::Vp9 | Self::Av1 | Self::Jpeg => MediaKind::Video,
            Self::Opus | Self::Pcmu | Self::Pcma | Self::Aac(_) => MediaKind::Audio,
        }
    }
}

/// A frame, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireFrame {
    pub kind: MediaKind,
    /// Presentation time in nanoseconds since an origin that all tracks share.
    pub pts_ns: u64,
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
    pub rendition_index: u8,
    pub role: ChunkRole,
    /// Timestamps of one timeline share an origin; each discontinuity starts a new timeline.
    pub timeline_id: u64,
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
    InitSection,
    /// A part of a segment; more parts follow.
    SegmentData,
    /// The last part of a segment.
    LastSegmentData,
    /// End of the stream: no more segments follow.
    EndOfStream,
    /// The segments that follow are of another variant, whose video can be decoded from its next key frame on. Without bytes.
    VariantSwitch,
}

impl ChunkRole {
    const ALL_ROLES: [Self; 5] = [
        Self::InitSection,
        Self::SegmentData,
        Self::LastSegmentData,
        Self::EndOfStream,
        Self::VariantSwitch,
    ];
}

/// Message to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum MessageToWorker {
    /// First message to a worker that demuxes segments.
    Demux(DemuxJob),
    SegmentChunk(SegmentChunk),
    /// First message to a worker that runs a pipeline.
    RunPipeline(PipelineJob),
    /// First message to a worker that checks which of these named jobs cannot run.
    CheckPipelines(Vec<(String, PipelineJob)>),
    Frame(WireFrame),
    /// Request a key frame from the encoder.
    KeyFrameRequest,
    /// Stop gracefully.
    Stop,
}

/// Message from a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum MessageFromWorker {
    /// The pipeline was set up; these tracks may follow.
    Ready(OutputTrackKinds),
    /// Format of the frames of a track from here on.
    TrackFormat(TrackFormat),
    Frame(WireFrame),
    /// Request for the next segment of a rendition.
    SegmentRequest(u8),
    /// Nothing in the pipeline makes a key frame when it is asked for one.
    KeyFrameRefused,
    /// A sign of life, several times a second.
    Heartbeat,
    /// The worker cannot continue.
    Failed(WorkerFailure),
    /// The stream ended.
    Ended,
    /// Response to [`MessageToWorker::CheckPipelines`].
    CheckResults(Vec<PipelineCheckResult>),
    /// What of the input is not passed on, as far as it changed.
    LeftOut(LeftOutTracksAndSegments),
}

/// What of the input of a worker is not passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOutTracksAndSegments {
    /// Tracks whose codec is not supported, such as `audio AC-3`.
    pub tracks: Vec<String>,
    /// Number of segments that could not be played, and why the first one could not.
    pub segments: u64,
    pub reason: Option<String>,
}

/// The kinds of tracks that a worker outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputTrackKinds {
    pub video: bool,
    pub audio: bool,
}

/// Why a pipeline does not run.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum WorkerFailure {
    #[error("GStreamer elements not installed: {}", .0.join(", "))]
    Missing(Vec<String>),
    #[error("invalid GStreamer launch line: {0}")]
    Launch(String),
    #[error("the pipeline property `{target}` cannot be set: {problem}")]
    Property { target: String, problem: String },
    #[error("{0}")]
    Stream(String),
}

impl WorkerFailure {
    /// Returns the failure with its texts sanitized: a worker is not trusted, and library messages may contain URLs
    /// with passwords.
    pub fn sanitized(self) -> Self {
        match self {
            Self::Missing(elements) => {
                let elements = elements
                    .iter()
                    .take(MAX_LISTED_MISSING_ELEMENTS)
                    .map(|element| sanitize_worker_text(element));
                Self::Missing(elements.collect())
            }
            Self::Launch(text) => Self::Launch(sanitize_worker_text(&text)),
            Self::Property { target, problem } => Self::Property {
                target: sanitize_worker_text(&target),
                problem: sanitize_worker_text(&problem),
            },
            Self::Stream(text) => Self::Stream(sanitize_worker_text(&text)),
        }
    }
}

/// Maximum number of missing elements that are listed.
const MAX_LISTED_MISSING_ELEMENTS: usize = 20;

/// Maximum length of a sanitized text, in characters.
const MAX_SANITIZED_CHARS: usize = 300;

/// Sanitizes a text of a worker: one line, of bounded length, without URLs.
pub fn sanitize_worker_text(text: &str) -> String {
    let words = text
        .split_whitespace()
        .map(|word| if word.contains("://") { "(URL)" } else { word });
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().take(MAX_SANITIZED_CHARS).collect()
}

/// Result of the check of one pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineCheckResult {
    pub name: String,
    pub failure: Option<WorkerFailure>,
}

/// Why a message is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("a worker message of {0} bytes exceeds the limit of {MAX_WORKER_MESSAGE_BYTES} bytes")]
    TooLong(usize),
    #[error("a worker message of kind {0} is malformed")]
    Malformed(u8),
}

/// Maximum length of a message in bytes: the largest access unit and its header.
pub(crate) const MAX_WORKER_MESSAGE_BYTES: usize = (8 << 20) + 64;

mod message_kind {
    pub(super) const RUN_PIPELINE_MESSAGE_KIND: u8 = 1;
    pub(super) const CHECK_PIPELINES_MESSAGE_KIND: u8 = 2;
    pub(super) const FRAME_MESSAGE_KIND: u8 = 3;
    pub(super) const KEY_FRAME_REQUEST_MESSAGE_KIND: u8 = 4;
    pub(super) const STOP_MESSAGE_KIND: u8 = 5;
    pub(super) const DEMUX_MESSAGE_KIND: u8 = 6;
    pub(super) const SEGMENT_CHUNK_MESSAGE_KIND: u8 = 7;
    pub(super) const TRACKS_READY_MESSAGE_KIND: u8 = 16;
    pub(super) const TRACK_FORMAT_MESSAGE_KIND: u8 = 17;
    pub(super) const HEARTBEAT_MESSAGE_KIND: u8 = 18;
    pub(super) const FAILED_MESSAGE_KIND: u8 = 19;
    pub(super) const STREAM_ENDED_MESSAGE_KIND: u8 = 20;
    pub(super) const CHECK_RESULTS_MESSAGE_KIND: u8 = 21;
    pub(super) const SEGMENT_REQUEST_MESSAGE_KIND: u8 = 22;
    pub(super) const KEY_FRAME_REQUEST_REFUSED_MESSAGE_KIND: u8 = 23;
    pub(super) const LEFT_OUT_MEDIA_MESSAGE_KIND: u8 = 24;
}

/// Removes a complete message from the front of the buffer; `None` while it is incomplete.
fn split_off_message(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, WireError> {
    let Some(length) = buffer
        .first_chunk::<4>()
        .map(|length| u32::from_be_bytes(*length) as usize)
    else {
        return Ok(None);
    };
    if length > MAX_WORKER_MESSAGE_BYTES {
        return Err(WireError::TooLong(length));
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    let mut message = buffer.split_to(length).freeze();
    if message.is_empty() {
        return Err(WireError::Malformed(0));
    }
    Ok(Some((message.get_u8(), message)))
}

fn write_message(kind: u8, body: &[&[u8]], out: &mut BytesMut) {
    let length = 1 + body.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(4 + length);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.put_u8(kind);
    body.iter().for_each(|part| out.put_slice(part));
}

fn write_json_message(kind: u8, body: &impl Serialize, out: &mut BytesMut) {
    write_message(kind, &[&serde_json::to_vec(body).unwrap_or_default()], out);
}

fn parse_json_body<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(|_| WireError::Malformed(kind))
}

const FRAME_FLAG_AFTER_GAP: u8 = 1;

impl WireFrame {
    fn write(&self, out: &mut BytesMut) {
        let head = [
            u8::from(self.kind == MediaKind::Audio),
            u8::from(self.after_gap) * FRAME_FLAG_AFTER_GAP,
        ];
        write_message(
            message_kind::FRAME_MESSAGE_KIND,
            &[&head, &self.pts_ns.to_be_bytes(), &self.bytes],
            out,
        );
    }

    fn read(mut body: Bytes) -> Result<Self, WireError> {
        if body.len() < 10 {
            return Err(WireError::Malformed(message_kind::FRAME_MESSAGE_KIND));
        }
        let kind = match body.get_u8() {
            0 => MediaKind::Video,
            1 => MediaKind::Audio,
            _ => return Err(WireError::Malformed(message_kind::FRAME_MESSAGE_KIND)),
        };
        let after_gap = body.get_u8() & FRAME_FLAG_AFTER_GAP != 0;
        let time = body.get_u64();
        Ok(Self {
            kind,
            pts_ns: time,
            after_gap,
            bytes: body,
        })
    }
}

impl SegmentChunk {
    fn write(&self, out: &mut BytesMut) {
        let role = ChunkRole::ALL_ROLES.iter().position(|role| *role == self.role);
        let head = [
            self.rendition_index,
            role.and_then(|role| u8::try_from(role).ok()).unwrap_or_default(),
        ];
        write_message(
            message_kind::SEGMENT_CHUNK_MESSAGE_KIND,
            &[&head, &self.timeline_id.to_be_bytes(), &self.bytes],
            out,
        );
    }

    fn read(mut body: Bytes) -> Result<Self, WireError> {
        let unreadable = WireError::Malformed(message_kind::SEGMENT_CHUNK_MESSAGE_KIND);
        if body.len() < 10 {
            return Err(unreadable);
        }
        let rendition = body.get_u8();
        let role = *ChunkRole::ALL_ROLES.get(usize::from(body.get_u8())).ok_or(unreadable)?;
        Ok(Self {
            rendition_index: rendition,
            role,
            timeline_id: body.get_u64(),
            bytes: body,
        })
    }
}

impl MessageToWorker {
    /// Appends the encoded message.
    pub fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Demux(job) => write_json_message(message_kind::DEMUX_MESSAGE_KIND, job, out),
            Self::SegmentChunk(chunk) => chunk.write(out),
            Self::RunPipeline(job) => write_json_message(message_kind::RUN_PIPELINE_MESSAGE_KIND, job, out),
            Self::CheckPipelines(jobs) => write_json_message(message_kind::CHECK_PIPELINES_MESSAGE_KIND, jobs, out),
            Self::Frame(frame) => frame.write(out),
            Self::KeyFrameRequest => write_message(message_kind::KEY_FRAME_REQUEST_MESSAGE_KIND, &[], out),
            Self::Stop => write_message(message_kind::STOP_MESSAGE_KIND, &[], out),
        }
    }

    /// Removes a message from the front of the buffer; `None` while it is incomplete.
    ///
    /// # Errors
    ///
    /// A [`WireError`]; the rest of the stream cannot be read.
    pub fn take_message_from_buffer(buffer: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some((kind, body)) = split_off_message(buffer)? else {
            return Ok(None);
        };
        let message = match kind {
            message_kind::RUN_PIPELINE_MESSAGE_KIND => Self::RunPipeline(parse_json_body(kind, &body)?),
            message_kind::DEMUX_MESSAGE_KIND => Self::Demux(parse_json_body(kind, &body)?),
            message_kind::SEGMENT_CHUNK_MESSAGE_KIND => Self::SegmentChunk(SegmentChunk::read(body)?),
            message_kind::CHECK_PIPELINES_MESSAGE_KIND => Self::CheckPipelines(parse_json_body(kind, &body)?),
            message_kind::FRAME_MESSAGE_KIND => Self::Frame(WireFrame::read(body)?),
            message_kind::KEY_FRAME_REQUEST_MESSAGE_KIND => Self::KeyFrameRequest,
            message_kind::STOP_MESSAGE_KIND => Self::Stop,
            kind => return Err(WireError::Malformed(kind)),
        };
        Ok(Some(message))
    }
}

impl MessageFromWorker {
    /// Appends the encoded message.
    pub fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Ready(tracks) => write_json_message(message_kind::TRACKS_READY_MESSAGE_KIND, tracks, out),
            Self::TrackFormat(media) => write_json_message(message_kind::TRACK_FORMAT_MESSAGE_KIND, media, out),
            Self::Frame(frame) => frame.write(out),
            Self::SegmentRequest(rendition) => {
                write_message(message_kind::SEGMENT_REQUEST_MESSAGE_KIND, &[&[*rendition]], out)
            }
            Self::KeyFrameRefused => write_message(message_kind::KEY_FRAME_REQUEST_REFUSED_MESSAGE_KIND, &[], out),
            Self::Heartbeat => write_message(message_kind::HEARTBEAT_MESSAGE_KIND, &[], out),
            Self::Failed(failure) => write_json_message(message_kind::FAILED_MESSAGE_KIND, failure, out),
            Self::Ended => write_message(message_kind::STREAM_ENDED_MESSAGE_KIND, &[], out),
            Self::CheckResults(findings) => write_json_message(message_kind::CHECK_RESULTS_MESSAGE_KIND, findings, out),
            Self::LeftOut(left_out) => write_json_message(message_kind::LEFT_OUT_MEDIA_MESSAGE_KIND, left_out, out),
        }
    }

    /// Removes a message from the front of the buffer; `None` while it is incomplete.
    ///
    /// # Errors
    ///
    /// A [`WireError`]; the rest of the stream cannot be read.
    pub fn take_message_from_buffer(buffer: &mut BytesMut) -> Result<Option<Self>, WireError> {
        let Some((kind, body)) = split_off_message(buffer)? else {
            return Ok(None);
        };
        let message = match kind {
            message_kind::TRACKS_READY_MESSAGE_KIND => Self::Ready(parse_json_body(kind, &body)?),
            message_kind::TRACK_FORMAT_MESSAGE_KIND => Self::TrackFormat(parse_json_body(kind, &body)?),
            message_kind::FRAME_MESSAGE_KIND => Self::Frame(WireFrame::read(body)?),
            message_kind::SEGMENT_REQUEST_MESSAGE_KIND => {
                Self::SegmentRequest(*body.first().ok_or(WireError::Malformed(kind))?)
            }
            message_kind::KEY_FRAME_REQUEST_REFUSED_MESSAGE_KIND => Self::KeyFrameRefused,
            message_kind::HEARTBEAT_MESSAGE_KIND => Self::Heartbeat,
            message_kind::FAILED_MESSAGE_KIND => Self::Failed(parse_json_body(kind, &body)?),
            message_kind::STREAM_ENDED_MESSAGE_KIND => Self::Ended,
            message_kind::CHECK_RESULTS_MESSAGE_KIND => Self::CheckResults(parse_json_body(kind, &body)?),
            message_kind::LEFT_OUT_MEDIA_MESSAGE_KIND => Self::LeftOut(parse_json_body(kind, &body)?),
            kind => return Err(WireError::Malformed(kind)),
        };
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> WireFrame {
        WireFrame {
            kind: MediaKind::Audio,
            pts_ns: 1 << 40,
            after_gap: true,
            bytes: Bytes::from_static(b"frame"),
        }
    }

    #[test]
    fn messages_round_trip_however_they_are_fragmented() {
        let messages = [
            MessageFromWorker::Ready(OutputTrackKinds {
                video: true,
                audio: false,
            }),
            MessageFromWorker::TrackFormat(TrackFormat::Aac(vec![0x11, 0x90])),
            MessageFromWorker::Frame(frame()),
            MessageFromWorker::KeyFrameRefused,
            MessageFromWorker::Heartbeat,
            MessageFromWorker::Failed(WorkerFailure::Missing(vec!["x264enc".to_owned()])),
            MessageFromWorker::Ended,
            MessageFromWorker::LeftOut(LeftOutTracksAndSegments {
                tracks: vec!["audio AC-3".to_owned()],
                segments: 3,
                reason: None,
            }),
        ];
        let mut bytes = BytesMut::new();
        messages.iter().for_each(|message| message.write(&mut bytes));
        let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
        for byte in bytes {
            buffer.put_u8(byte);
            while let Some(message) = MessageFromWorker::take_message_from_buffer(&mut buffer).expect("a message") {
                read.push(message);
            }
        }
        assert_eq!(read, messages);
        let mut bytes = BytesMut::new();
        MessageToWorker::Frame(frame()).write(&mut bytes);
        assert_eq!(
            MessageToWorker::take_message_from_buffer(&mut bytes),
            Ok(Some(MessageToWorker::Frame(frame())))
        );
    }

    #[test]
    fn worker_texts_are_shown_without_urls_and_within_bounds() {
        let said = WorkerFailure::Stream(format!("cannot open\nrtsp://user:secret@cam/1 {}", "x".repeat(9_000)));
        let shown = said.sanitized().to_string();
        assert!(
            shown.starts_with("cannot open (URL) xxx") && shown.len() == MAX_SANITIZED_CHARS,
            "{shown}"
        );
        let many = WorkerFailure::Missing(vec!["e".repeat(500); 1_000])
            .sanitized()
            .to_string();
        assert!(many.len() < MAX_LISTED_MISSING_ELEMENTS * (MAX_SANITIZED_CHARS + 2) + 50);
    }

    #[test]
    fn invalid_messages_are_rejected_without_reserving_memory() {
        for (bytes, wanted) in [
            (&[0xff, 0xff, 0xff, 0xff, 3][..], WireError::TooLong(0xffff_ffff)),
            (&[0, 0, 0, 0], WireError::Malformed(0)),
            (&[0, 0, 0, 1, 99], WireError::Malformed(99)),
            (&[0, 0, 0, 3, 3, 0, 0], WireError::Malformed(3)),
            (&[0, 0, 0, 3, 16, b'{', b'x'], WireError::Malformed(16)),
        ] {
            let mut buffer = BytesMut::from(bytes);
            assert_eq!(MessageFromWorker::take_message_from_buffer(&mut buffer), Err(wanted));
            assert!(buffer.capacity() < 1_024);
        }
    }
}
