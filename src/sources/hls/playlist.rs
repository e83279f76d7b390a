//! Parses HLS playlists (RFC 8216 §4).
//!
//! What cannot be understood is passed over: a playlist is refused only if nothing in it can be played. Of a live playlist
//! only the end is kept.
//!
//! The parser is hand-written so that the memory used is bounded by the size of the playlist and mistakes are tolerated:
//! `hls_m3u8` 0.7 reserves memory for as many segments as the media sequence number says, rejects versions above 7 and
//! playlists whose durations are not rounded correctly, and panics on a byte range that ends before it begins. Tests parse
//! what that crate writes.

use std::collections::VecDeque;
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
    /// Segments are listed in parts (EXT-X-PART-INF).
    pub part_target: Option<Duration>,
    pub segments: Vec<Segment>,
    /// The segment in progress, of which only parts are listed.
    pub open: Option<Segment>,
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
    /// Empty for the segment in progress.
    pub uri: String,
    pub range: Option<ByteRange>,
    /// Shared by all segments that use it.
    pub init: Option<Arc<Init>>,
    pub key: Option<Arc<Key>>,
    /// Its media is missing (EXT-X-GAP), or it cannot be fetched or decrypted.
    pub is_gap: bool,
    /// Parts of a recent segment (EXT-X-PART).
    pub parts: Vec<Part>,
}

/// A part of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub uri: String,
    pub range: Option<ByteRange>,
    /// It starts with a frame that a decoder can start with.
    pub is_independent: bool,
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
    #[error("its segments are encrypted with {0}; only AES-128 is supported")]
    Encryption(String),
    #[error("the playlist lists neither segments nor variants")]
    Empty,
    #[error("it lists more than {MAX_SEGMENTS} segments")]
    TooMany,
}

/// Maximum number of segments or variants of a playlist. A recording of a day in segments of two seconds has 43200.
const MAX_SEGMENTS: usize = 50_000;

/// Number of segments at the end of a live playlist that are kept.
const MAX_LIVE: usize = 1_000;

/// Maximum number of parts of a segment.
const MAX_PARTS: usize = 256;

/// Longest segment.
const MAX_DURATION: Duration = Duration::from_secs(3_600);

/// State of the parser.
#[derive(Default)]
struct Reader<'a> {
    multivariant: Multivariant,
    media: Media,
    variant: Option<Variant>,
    sequence: u64,
    discontinuity_sequence: Option<u64>,
    discontinuities: u64,
    /// The segments that are kept, and how many came before them.
    segments: VecDeque<Listed<'a>>,
    dropped: u64,
    next: Listed<'a>,
    /// A duration was read, so a URI is expected.
    has_duration: bool,
    range: Option<(u64, Option<u64>)>,
    /// URI and end of the last byte range.
    range_end: Option<(&'a str, u64)>,
    part_range_end: Option<(String, u64)>,
    /// A method of encryption that is not supported.
    foreign: Option<String>,
}

/// A segment as it is listed.
#[derive(Clone, Default)]
struct Listed<'a> {
    uri: &'a str,
    duration: Option<Duration>,
    discontinuities: u64,
    begins: bool,
    range: Option<ByteRange>,
    init: Option<Arc<Init>>,
    key: Option<Arc<Key>>,
    /// It is encrypted, and no supported key is listed.
    is_foreign: bool,
    is_gap: bool,
    parts: Vec<Part>,
}

impl Playlist {
    /// Parses a playlist.
    ///
    /// # Errors
    ///
    /// A [`PlaylistError`].
    pub fn parse(text: &str) -> Result<Self, PlaylistError> {
        let text = text.trim_start_matches('\u{feff}');
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        if lines.next().is_none_or(|first| !first.starts_with("#EXTM3U")) {
            return Err(PlaylistError::NotOne);
        }
        let mut reader = Reader::default();
        // What has ended is kept whole.
        let most = if text.contains("#EXT-X-ENDLIST") {
            MAX_SEGMENTS + 1
        } else {
            MAX_LIVE
        };
        for line in lines {
            match line.strip_prefix("#EXT") {
                Some(tag) => {
                    let (name, value) = tag.split_once(':').unwrap_or((tag, ""));
                    reader.tag(name, value.trim());
                }
                None if line.starts_with('#') => {}
                None => reader.uri(line),
            }
            if reader.segments.len() > most {
                reader.segments.pop_front();
                reader.dropped = reader.dropped.saturating_add(1);
            }
            if reader.segments.len() > MAX_SEGMENTS || reader.multivariant.variants.len() > MAX_SEGMENTS {
                return Err(PlaylistError::TooMany);
            }
        }
        reader.finish()
    }
}

impl<'a> Reader<'a> {
    fn tag(&mut self, name: &str, value: &'a str) {
        match name {
            "INF" => {
                self.has_duration = true;
                self.next.duration = seconds(value.split(',').next().unwrap_or_default());
            }
            "-X-TARGETDURATION" => self.media.target_duration = seconds(value).unwrap_or_default(),
            "-X-MEDIA-SEQUENCE" => self.sequence = value.parse().unwrap_or(self.sequence),
            "-X-DISCONTINUITY-SEQUENCE" => {
                self.discontinuity_sequence = value.parse().ok().or(self.discontinuity_sequence);
            }
            "-X-PLAYLIST-TYPE" => self.media.is_recorded = value == "VOD",
            "-X-ENDLIST" => self.media.has_ended = true,
            "-X-SERVER-CONTROL" => self.media.can_wait = attribute(value, "CAN-BLOCK-RELOAD").as_deref() == Some("YES"),
            "-X-PART-INF" => self.media.part_target = attribute(value, "PART-TARGET").as_deref().and_then(seconds),
            "-X-PART" => self.part(value),
            "-X-BYTERANGE" => {
                self.range = range(value);
                self.next.is_gap |= self.range.is_none();
            }
            "-X-DISCONTINUITY" => {
                self.next.begins = true;
                self.discontinuities = self.discontinuities.saturating_add(1);
            }
            "-X-GAP" => self.next.is_gap = true,
            "-X-MAP" => self.next.init = init(value).map(Arc::new),
            "-X-KEY" => self.key(value),
            "-X-STREAM-INF" => self.variant = Some(variant(value)),
            "-X-MEDIA" => self.audio(value),
            _ => {}
        }
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

    /// Reads an EXT-X-KEY (RFC 8216 §4.3.2.4). Several may hold at once, for players that know different ones.
    fn key(&mut self, value: &str) {
        let method = attribute(value, "METHOD").unwrap_or_default();
        let format = attribute(value, "KEYFORMAT").filter(|format| format != "identity");
        match (method.as_str(), format) {
            ("NONE", _) => (self.next.key, self.next.is_foreign) = (None, false),
            ("AES-128", None) => {
                self.next.key = key(value).map(Arc::new);
                self.next.is_foreign = self.next.key.is_none();
                if self.next.is_foreign {
                    self.foreign = Some("a key without an address".to_owned());
                }
            }
            ("AES-128" | "SAMPLE-AES", format) => {
                if format.is_none() {
                    self.next.key = None;
                }
                self.next.is_foreign = self.next.key.is_none();
                let keys = format.map(|format| format!("keys of {}", shortened(&format)));
                self.foreign = Some(keys.unwrap_or(method));
            }
            // A method for some players only: segments whose media is encrypted say so themselves.
            (_, _) => self.foreign = Some(shortened(&method)),
        }
    }

    fn part(&mut self, value: &str) {
        let Some(uri) = attribute(value, "URI").filter(|_| self.next.parts.len() < MAX_PARTS) else {
            return;
        };
        let stated = attribute(value, "BYTERANGE").map(|text| range(&text));
        let is_gap = attribute(value, "GAP").as_deref() == Some("YES") || stated == Some(None);
        let found = stated.flatten().and_then(|(length, begin)| {
            let follows = self
                .part_range_end
                .as_ref()
                .filter(|(last, _)| *last == uri)
                .map(|(_, end)| *end);
            let begin = begin.or(follows).unwrap_or_default();
            self.part_range_end = Some((uri.clone(), begin.checked_add(length)?));
            Some(ByteRange { begin, length })
        });
        self.next.parts.push(Part {
            is_gap: is_gap || stated.is_some() && found.is_none(),
            uri,
            range: found,
            is_independent: attribute(value, "INDEPENDENT").as_deref() == Some("YES"),
        });
    }

    fn uri(&mut self, uri: &'a str) {
        if let Some(mut variant) = self.variant.take() {
            uri.clone_into(&mut variant.uri);
            self.multivariant.variants.push(variant);
            return;
        }
        // Without a duration it belongs to no segment.
        if !std::mem::take(&mut self.has_duration) {
            return;
        }
        if let Some((length, begin)) = self.range.take() {
            let follows = self.range_end.filter(|(last, _)| *last == uri).map(|(_, end)| end);
            let begin = begin.or(follows).unwrap_or_default();
            match begin.checked_add(length) {
                Some(end) => {
                    self.range_end = Some((uri, end));
                    self.next.range = Some(ByteRange { begin, length });
                }
                None => self.next.is_gap = true,
            }
        }
        let following = Listed {
            init: self.next.init.clone(),
            key: self.next.key.clone(),
            is_foreign: self.next.is_foreign,
            ..Listed::default()
        };
        let mut listed = std::mem::replace(&mut self.next, following);
        (listed.uri, listed.discontinuities) = (uri, self.discontinuities);
        // Only the last segments are fetched in parts.
        if let Some(older) = self.segments.len().checked_sub(MAX_SEGMENTS_IN_PARTS)
            && let Some(older) = self.segments.get_mut(older)
        {
            older.parts = Vec::new();
        }
        self.segments.push_back(listed);
    }

    fn finish(mut self) -> Result<Playlist, PlaylistError> {
        if !self.multivariant.variants.is_empty() {
            return Ok(Playlist::Multivariant(self.multivariant));
        }
        let is_usable = |listed: &Listed<'_>| !listed.is_foreign;
        match self.foreign.take() {
            Some(foreign) if !self.segments.iter().any(is_usable) => return Err(PlaylistError::Encryption(foreign)),
            _ if self.segments.is_empty() && self.next.parts.is_empty() && self.media.target_duration.is_zero() => {
                return Err(PlaylistError::Empty);
            }
            _ => {}
        }
        if self.media.target_duration.is_zero() {
            let longest = self.segments.iter().filter_map(|listed| listed.duration).max();
            self.media.target_duration = longest.unwrap_or(DURATION);
        }
        let first = self.sequence.saturating_add(self.dropped);
        let counted = self.discontinuity_sequence;
        let target = self.media.target_duration;
        let segments = (0_u64..).zip(std::mem::take(&mut self.segments));
        self.media.segments = segments
            .map(|(index, listed)| listed.segment(first.saturating_add(index), counted, target))
            .collect();
        self.media.next = first.saturating_add(self.media.segments.len() as u64);
        if !self.next.parts.is_empty() && !self.media.has_ended {
            self.next.discontinuities = self.discontinuities;
            self.media.open = Some(self.next.segment(self.media.next, counted, target));
        }
        Ok(Playlist::Media(self.media))
    }
}

/// Duration of segments if the playlist states none.
const DURATION: Duration = Duration::from_secs(4);

/// Number of complete segments whose parts are kept.
const MAX_SEGMENTS_IN_PARTS: usize = 4;

impl Listed<'_> {
    fn segment(self, number: u64, counted: Option<u64>, target: Duration) -> Segment {
        Segment {
            number,
            discontinuities: counted.unwrap_or_default().saturating_add(self.discontinuities),
            is_counted: counted.is_some(),
            begins: self.begins,
            duration: self.duration.unwrap_or(target),
            uri: self.uri.to_owned(),
            range: self.range,
            init: self.init,
            key: self.key,
            is_gap: self.is_gap || self.is_foreign,
            parts: self.parts,
        }
    }
}

/// Parses a duration. Longer ones than an hour are taken for an hour.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(MAX_DURATION.as_secs_f64())))
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
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

/// Address and initialization vector of an AES-128 key; `None` if either is malformed.
fn key(value: &str) -> Option<Key> {
    let iv = match attribute(value, "IV") {
        None => None,
        Some(text) => {
            let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
            Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
        }
    };
    Some(Key {
        uri: attribute(value, "URI")?,
        iv,
    })
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
