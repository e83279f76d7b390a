//! Parses HLS playlists (RFC 8216 §4).
//!
//! The parser is hand-written so that the memory used is bounded by the size of the playlist and irrelevant mistakes
//! are tolerated: `hls_m3u8` 0.7 reserves memory for as many segments as the media sequence number says, rejects
//! versions above 7 and playlists whose durations are not rounded correctly, and panics on a byte range that ends
//! before it begins. Tests parse what that crate writes.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// A playlist.
#[derive(Clone, Debug, PartialEq)]
pub enum Playlist {
    Multivariant(Multivariant),
    Media(Media),
}

/// A multivariant playlist.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Multivariant {
    pub variants: Vec<Variant>,
    pub audio: Vec<AudioRendition>,
}

/// One variant stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    pub uri: String,
    /// Peak bitrate in bit/s.
    pub bandwidth: u64,
    pub height: Option<u32>,
    pub codecs: Option<String>,
    /// Group of its audio renditions.
    pub audio: Option<String>,
}

/// An audio rendition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AudioRendition {
    pub group: String,
    /// `None` if the audio is part of the variant.
    pub uri: Option<String>,
    pub is_default: bool,
}

/// A media playlist.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Media {
    pub target_duration: Duration,
    /// No segments will be added (EXT-X-ENDLIST).
    pub has_ended: bool,
    /// The playlist type is VOD.
    pub is_recorded: bool,
    /// The origin supports blocking playlist reload (rfc8216bis §6.2.5.2).
    pub can_wait: bool,
    pub segments: Vec<Segment>,
    /// Media sequence number of the segment that will be added next.
    pub next: u64,
}

/// One segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Media sequence number.
    pub number: u64,
    /// Discontinuity sequence number, or the number of discontinuities in the playlist if it states none.
    pub discontinuities: u64,
    /// Whether the playlist states its discontinuity sequence number.
    pub is_counted: bool,
    /// A discontinuity precedes the segment.
    pub begins: bool,
    pub duration: Duration,
    pub uri: String,
    pub range: Option<ByteRange>,
    /// Shared by all segments that use it.
    pub init: Option<Arc<Init>>,
    pub key: Option<Arc<Key>>,
    /// Its media is missing (EXT-X-GAP).
    pub is_gap: bool,
}

/// A byte range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub begin: u64,
    pub length: u64,
}

/// An initialization section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    pub uri: String,
    pub range: Option<ByteRange>,
}

/// How a segment is encrypted: AES-128 in CBC mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub uri: String,
    pub iv: Option<[u8; 16]>,
}

/// Why a playlist cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlaylistError {
    #[error("it is not a playlist: its first line is not #EXTM3U")]
    NotOne,
    #[error("line {line} is invalid: {problem}")]
    Line { line: usize, problem: &'static str },
    #[error("its segments are encrypted with {0}; only AES-128 is supported")]
    Encryption(String),
    #[error("it lists neither segments nor variants")]
    Empty,
    #[error("it lists more than {MAX_SEGMENTS} segments")]
    TooMany,
}

/// Maximum number of segments or variants of a playlist. A recording of a day in segments of two seconds has 43200.
const MAX_SEGMENTS: usize = 50_000;

/// State of the parser.
#[derive(Default)]
struct Reader {
    multivariant: Multivariant,
    media: Media,
    variant: Option<Variant>,
    sequence: u64,
    discontinuity_sequence: Option<u64>,
    discontinuities: u64,
    begins: bool,
    duration: Option<Duration>,
    range: Option<(u64, Option<u64>)>,
    /// URI and end of the last byte range.
    range_end: Option<(String, u64)>,
    init: Option<Arc<Init>>,
    key: Option<Arc<Key>>,
    is_gap: bool,
}

impl Playlist {
    /// Parses a playlist.
    ///
    /// # Errors
    ///
    /// A [`PlaylistError`].
    pub fn parse(text: &str) -> Result<Self, PlaylistError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = (1..).zip(text.lines().map(str::trim));
        if lines.next().is_none_or(|(_, first)| !first.starts_with("#EXTM3U")) {
            return Err(PlaylistError::NotOne);
        }
        let mut reader = Reader::default();
        for (line, text) in lines {
            let refused = |problem| PlaylistError::Line { line, problem };
            match text.strip_prefix("#EXT") {
                Some(tag) => {
                    let (name, value) = tag.split_once(':').unwrap_or((tag, ""));
                    reader.tag(name, value).map_err(|problem| match problem {
                        Problem::Value(problem) => refused(problem),
                        Problem::Encryption(method) => PlaylistError::Encryption(method),
                    })?;
                }
                None if text.is_empty() || text.starts_with('#') => {}
                None => reader.uri(text).map_err(refused)?,
            }
            if reader.media.segments.len() > MAX_SEGMENTS || reader.multivariant.variants.len() > MAX_SEGMENTS {
                return Err(PlaylistError::TooMany);
            }
        }
        reader.finish()
    }
}

/// Why a tag is invalid or not supported.
enum Problem {
    Value(&'static str),
    Encryption(String),
}

impl Reader {
    fn tag(&mut self, name: &str, value: &str) -> Result<(), Problem> {
        let number = |problem| value.trim().parse::<u64>().map_err(|_| Problem::Value(problem));
        match name {
            "-X-TARGETDURATION" => {
                let seconds =
                    seconds(value).ok_or(Problem::Value("EXT-X-TARGETDURATION is not a number of seconds"))?;
                self.media.target_duration = seconds;
            }
            // RFC 8216 §4.3.3.2, §4.3.3.3. Segments are found by their numbers, which would not follow each other.
            "-X-MEDIA-SEQUENCE" | "-X-DISCONTINUITY-SEQUENCE" if !self.media.segments.is_empty() => {
                return Err(Problem::Value(
                    "EXT-X-MEDIA-SEQUENCE and EXT-X-DISCONTINUITY-SEQUENCE belong before the first segment",
                ));
            }
            "-X-MEDIA-SEQUENCE" => self.sequence = number("EXT-X-MEDIA-SEQUENCE is not a number")?,
            "-X-DISCONTINUITY-SEQUENCE" => {
                self.discontinuity_sequence = Some(number("EXT-X-DISCONTINUITY-SEQUENCE is not a number")?);
            }
            "-X-PLAYLIST-TYPE" => self.media.is_recorded = value.trim() == "VOD",
            "-X-ENDLIST" => self.media.has_ended = true,
            "-X-SERVER-CONTROL" => self.media.can_wait = attribute(value, "CAN-BLOCK-RELOAD").as_deref() == Some("YES"),
            "INF" => {
                let text = value.split(',').next().unwrap_or_default();
                self.duration = Some(seconds(text).ok_or(Problem::Value("EXTINF is not a number of seconds"))?);
            }
            "-X-BYTERANGE" => {
                self.range = Some(range(value).ok_or(Problem::Value("EXT-X-BYTERANGE is not a byte range"))?);
            }
            "-X-DISCONTINUITY" => {
                self.begins = true;
                self.discontinuities = self.discontinuities.saturating_add(1);
            }
            "-X-GAP" => self.is_gap = true,
            "-X-MAP" => {
                let init = init(value).ok_or(Problem::Value("EXT-X-MAP has no URI"))?;
                self.init = Some(Arc::new(init));
            }
            "-X-KEY" => self.key = key(value)?.map(Arc::new),
            "-X-STREAM-INF" => self.variant = Some(variant(value)),
            "-X-MEDIA" => self.audio(value),
            _ => {}
        }
        Ok(())
    }

    fn audio(&mut self, value: &str) {
        if attribute(value, "TYPE").as_deref() == Some("AUDIO")
            && let Some(group) = attribute(value, "GROUP-ID")
            && self.multivariant.audio.len() < MAX_SEGMENTS
        {
            self.multivariant.audio.push(AudioRendition {
                group,
                uri: attribute(value, "URI"),
                is_default: attribute(value, "DEFAULT").as_deref() == Some("YES"),
            });
        }
    }

    fn uri(&mut self, uri: &str) -> Result<(), &'static str> {
        if let Some(mut variant) = self.variant.take() {
            uri.clone_into(&mut variant.uri);
            self.multivariant.variants.push(variant);
            return Ok(());
        }
        let Some(duration) = self.duration.take() else {
            return Err("a URI without EXTINF or EXT-X-STREAM-INF before it");
        };
        let range = match self.range.take() {
            None => None,
            Some((length, begin)) => {
                let follows = self
                    .range_end
                    .take()
                    .filter(|(last, _)| last == uri)
                    .map(|(_, end)| end);
                let begin = begin.or(follows).unwrap_or_default();
                let end = begin.checked_add(length).ok_or("EXT-X-BYTERANGE is not a byte range")?;
                self.range_end = Some((uri.to_owned(), end));
                Some(ByteRange { begin, length })
            }
        };
        let index = self.media.segments.len() as u64;
        self.media.segments.push(Segment {
            number: self.sequence.saturating_add(index),
            discontinuities: self
                .discontinuity_sequence
                .unwrap_or_default()
                .saturating_add(self.discontinuities),
            is_counted: self.discontinuity_sequence.is_some(),
            begins: std::mem::take(&mut self.begins),
            duration,
            uri: uri.to_owned(),
            range,
            init: self.init.clone(),
            key: self.key.clone(),
            is_gap: std::mem::take(&mut self.is_gap),
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Playlist, PlaylistError> {
        if !self.multivariant.variants.is_empty() {
            return Ok(Playlist::Multivariant(self.multivariant));
        }
        if self.media.segments.is_empty() && self.media.target_duration.is_zero() {
            return Err(PlaylistError::Empty);
        }
        let longest = self.media.segments.iter().map(|segment| segment.duration).max();
        if self.media.target_duration.is_zero() {
            self.media.target_duration = longest.unwrap_or_default();
        }
        self.media.next = self.sequence.saturating_add(self.media.segments.len() as u64);
        Ok(Playlist::Media(self.media))
    }
}

/// Parses a duration of 0 to 3600 s.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    (0.0..=3_600.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

/// Parses `length[@begin]`.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    match text.trim().split_once('@') {
        Some((length, begin)) => Some((length.parse().ok()?, Some(begin.parse().ok()?))),
        None => Some((text.trim().parse().ok()?, None)),
    }
}

fn init(value: &str) -> Option<Init> {
    let range = match attribute(value, "BYTERANGE") {
        None => None,
        Some(text) => {
            let (length, begin) = range(&text)?;
            Some(ByteRange {
                begin: begin.unwrap_or_default(),
                length,
            })
        }
    };
    Some(Init {
        uri: attribute(value, "URI")?,
        range,
    })
}

/// Parses an EXT-X-KEY (RFC 8216 §4.3.2.4).
fn key(value: &str) -> Result<Option<Key>, Problem> {
    let method = attribute(value, "METHOD").unwrap_or_default();
    let format = attribute(value, "KEYFORMAT");
    match method.as_str() {
        "NONE" => return Ok(None),
        "AES-128" if format.as_deref().is_none_or(|format| format == "identity") => {}
        "AES-128" => return Err(Problem::Encryption(format!("keys of {}", format.unwrap_or_default()))),
        other => return Err(Problem::Encryption(other.chars().take(40).collect())),
    }
    let uri = attribute(value, "URI").ok_or(Problem::Value("EXT-X-KEY has no URI"))?;
    let iv = match attribute(value, "IV") {
        None => None,
        Some(text) => {
            let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
            let iv = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
            Some(
                iv.ok_or(Problem::Value("the IV of EXT-X-KEY is not a 128-bit number"))?
                    .to_be_bytes(),
            )
        }
    };
    Ok(Some(Key { uri, iv }))
}

fn variant(value: &str) -> Variant {
    let height = attribute(value, "RESOLUTION").and_then(|size| size.split_once('x')?.1.parse().ok());
    Variant {
        uri: String::new(),
        bandwidth: attribute(value, "BANDWIDTH")
            .and_then(|bandwidth| bandwidth.parse().ok())
            .unwrap_or_default(),
        height,
        codecs: attribute(value, "CODECS"),
        audio: attribute(value, "AUDIO"),
    }
}

/// Returns the value of an attribute, without quotes (RFC 8216 §4.2).
fn attribute(list: &str, name: &str) -> Option<String> {
    let mut rest = list;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let (value, next) = quoted.split_once('"')?;
                (value, next)
            }
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if key.trim_matches([',', ' ']) == name {
            return Some(value.trim().to_owned());
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests;
