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
    Multivariant(MultivariantPlaylist),
    Media(MediaPlaylist),
}

/// A multivariant playlist.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MultivariantPlaylist {
    pub variants: Vec<Variant>,
    pub audio_renditions: Vec<AudioRendition>,
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
    pub audio_group_id: Option<String>,
}

/// An audio rendition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AudioRendition {
    pub group_id: String,
    /// `None` if the audio is part of the variant.
    pub uri: Option<String>,
    pub is_default: bool,
}

/// A media playlist.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MediaPlaylist {
    pub target_duration: Duration,
    /// No segments will be added (EXT-X-ENDLIST).
    pub has_ended: bool,
    /// Segments are never removed (EXT-X-PLAYLIST-TYPE is VOD or EVENT).
    pub keeps_all_segments: bool,
    /// The origin supports blocking playlist reload (rfc8216bis §6.2.5.2).
    pub can_block_reload: bool,
    /// Segments are listed in parts (EXT-X-PART-INF).
    pub part_target: Option<Duration>,
    pub segments: Vec<OriginSegment>,
    /// Why segments are gaps, if they are encrypted in a way that is not supported.
    pub encryption: Option<String>,
    /// The segment in progress, of which only parts are listed.
    pub segment_in_progress: Option<OriginSegment>,
    /// Media sequence number of the segment that will be added next.
    pub next_segment_number: u64,
}

/// One segment.
#[derive(Clone, Debug, PartialEq)]
pub struct OriginSegment {
    /// Media sequence number.
    pub media_sequence_number: u64,
    /// Discontinuity sequence number, or the number of discontinuities in the playlist if it states none.
    pub discontinuity_sequence: u64,
    /// Whether the playlist states its discontinuity sequence number.
    pub has_discontinuity_sequence: bool,
    /// A discontinuity precedes the segment.
    pub follows_discontinuity: bool,
    pub duration: Duration,
    /// Empty for the segment in progress.
    pub uri: String,
    pub byte_range: Option<ByteRange>,
    /// Shared by all segments that use it.
    pub init_section: Option<Arc<InitSection>>,
    pub decryption_key: Option<Arc<KeyUriAndIv>>,
    /// Its media is missing (EXT-X-GAP), or it cannot be fetched or decrypted.
    pub is_gap: bool,
    /// Parts of a recent segment (EXT-X-PART).
    pub parts: Vec<OriginPart>,
}

/// A part of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPart {
    pub uri: String,
    pub byte_range: Option<ByteRange>,
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
pub struct InitSection {
    pub uri: String,
    pub byte_range: Option<ByteRange>,
    /// The key that holds where it is listed, which need not be that of the segments (RFC 8216 §4.3.2.5).
    pub decryption_key: Option<Arc<KeyUriAndIv>>,
}

impl MediaPlaylist {
    /// Checks that there is something to decrypt. The playlist of a source that is played may list nothing but an
    /// advertisement for a while.
    ///
    /// # Errors
    ///
    /// [`PlaylistError::UnsupportedEncryption`].
    pub fn require_supported_encryption(&self) -> Result<(), PlaylistError> {
        match &self.encryption {
            Some(how) if self.segments.iter().all(|segment| segment.is_gap) => {
                Err(PlaylistError::UnsupportedEncryption(how.clone()))
            }
            _ => Ok(()),
        }
    }
}

impl InitSection {
    /// Whether both are the same bytes once they are decrypted; the key before them changes while a playlist slides.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (&self.uri, self.byte_range) == (&other.uri, other.byte_range)
    }
}

/// How a segment is encrypted: AES-128 in CBC mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUriAndIv {
    pub uri: String,
    pub iv: Option<[u8; 16]>,
}

/// Why a playlist cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlaylistError {
    #[error("the file is not a playlist: its first line is not #EXTM3U")]
    NotPlaylist,
    #[error("the HLS segments have unsupported encryption ({0}): only AES-128 with a key URI is supported")]
    UnsupportedEncryption(String),
    #[error("the playlist lists neither segments nor variants")]
    Empty,
    #[error("the playlist lists more than {MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST} segments")]
    TooManySegments,
}

/// Maximum number of segments or variants of a playlist. A recording of a day in segments of two seconds has 43200.
const MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST: usize = 50_000;

/// Number of segments at the end of a live playlist that are kept.
const MAX_KEPT_LIVE_SEGMENTS: usize = 1_000;

/// Maximum number of parts of a segment.
const MAX_PARTS_PER_SEGMENT: usize = 256;

/// Longest segment.
const SEGMENT_DURATION_CAP: Duration = Duration::from_secs(3_600);

/// State of the parser.
#[derive(Default)]
struct PlaylistParser<'a> {
    multivariant: MultivariantPlaylist,
    media: MediaPlaylist,
    pending_variant: Option<Variant>,
    media_sequence_number: u64,
    discontinuity_sequence: Option<u64>,
    discontinuity_count: u64,
    /// The segments that are kept, and how many came before them.
    segments: VecDeque<ListedSegment<'a>>,
    dropped_segment_count: u64,
    next_segment: ListedSegment<'a>,
    /// A duration was read, so a URI is expected.
    next_segment_has_duration: bool,
    pending_byte_range: Option<(u64, Option<u64>)>,
    /// URI and end of the last byte range.
    last_byte_range_end: Option<(&'a str, u64)>,
    last_part_byte_range_end: Option<(String, u64)>,
    /// A method of encryption that is not supported.
    unsupported_encryption: Option<String>,
}

/// A segment as it is listed.
#[derive(Clone, Default)]
struct ListedSegment<'a> {
    uri: &'a str,
    duration: Option<Duration>,
    discontinuity_count: u64,
    follows_discontinuity: bool,
    byte_range: Option<ByteRange>,
    init_section: Option<Arc<InitSection>>,
    decryption_key: Option<Arc<KeyUriAndIv>>,
    /// It is encrypted, and no supported key is listed.
    has_unsupported_encryption: bool,
    is_gap: bool,
    parts: Vec<OriginPart>,
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
            return Err(PlaylistError::NotPlaylist);
        }
        let mut reader = PlaylistParser::default();
        // What has ended is kept whole.
        let max_segments = if text.contains("#EXT-X-ENDLIST") {
            MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST + 1
        } else {
            MAX_KEPT_LIVE_SEGMENTS
        };
        for line in lines {
            match line.strip_prefix("#EXT") {
                Some(tag) => {
                    let (name, value) = tag.split_once(':').unwrap_or((tag, ""));
                    reader.parse_tag(name, value.trim());
                }
                None if line.starts_with('#') => {}
                None => reader.parse_uri_line(line),
            }
            if reader.segments.len() > max_segments {
                reader.segments.pop_front();
                reader.dropped_segment_count = reader.dropped_segment_count.saturating_add(1);
            }
            if reader.segments.len() > MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST
                || reader.multivariant.variants.len() > MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST
            {
                return Err(PlaylistError::TooManySegments);
            }
        }
        reader.finish()
    }
}

impl<'a> PlaylistParser<'a> {
    fn parse_tag(&mut self, name: &str, value: &'a str) {
        match name {
            "INF" => {
                self.next_segment_has_duration = true;
                self.next_segment.duration = parse_and_cap_duration(value.split(',').next().unwrap_or_default());
            }
            "-X-TARGETDURATION" => self.media.target_duration = parse_and_cap_duration(value).unwrap_or_default(),
            "-X-MEDIA-SEQUENCE" => self.media_sequence_number = value.parse().unwrap_or(self.media_sequence_number),
            "-X-DISCONTINUITY-SEQUENCE" => {
                self.discontinuity_sequence = value.parse().ok().or(self.discontinuity_sequence);
            }
            "-X-PLAYLIST-TYPE" => self.media.keeps_all_segments = matches!(value, "VOD" | "EVENT"),
            "-X-ENDLIST" => self.media.has_ended = true,
            "-X-SERVER-CONTROL" => {
                self.media.can_block_reload = attribute_value(value, "CAN-BLOCK-RELOAD").as_deref() == Some("YES")
            }
            "-X-PART-INF" => {
                self.media.part_target = attribute_value(value, "PART-TARGET")
                    .as_deref()
                    .and_then(parse_and_cap_duration)
            }
            "-X-PART" => self.parse_part_tag(value),
            "-X-BYTERANGE" => {
                self.pending_byte_range = parse_byte_range(value);
                self.next_segment.is_gap |= self.pending_byte_range.is_none();
            }
            "-X-DISCONTINUITY" => {
                self.next_segment.follows_discontinuity = true;
                self.discontinuity_count = self.discontinuity_count.saturating_add(1);
            }
            "-X-GAP" => self.next_segment.is_gap = true,
            "-X-MAP" => {
                let key = self.next_segment.decryption_key.clone();
                self.next_segment.init_section = parse_init_section(value, key).map(Arc::new);
            }
            "-X-KEY" => self.parse_key_tag(value),
            "-X-STREAM-INF" => self.pending_variant = Some(parse_variant(value)),
            "-X-MEDIA" => self.parse_audio_rendition(value),
            _ => {}
        }
    }

    fn parse_audio_rendition(&mut self, value: &str) {
        if attribute_value(value, "TYPE").as_deref() == Some("AUDIO")
            && let Some(group) = attribute_value(value, "GROUP-ID")
            && self.multivariant.audio_renditions.len() < MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST
        {
            self.multivariant.audio_renditions.push(AudioRendition {
                group_id: group,
                uri: attribute_value(value, "URI"),
                is_default: attribute_value(value, "DEFAULT").as_deref() == Some("YES"),
            });
        }
    }

    /// Reads an EXT-X-KEY (RFC 8216 §4.3.2.4). Several may hold at once, for players that know different ones.
    fn parse_key_tag(&mut self, value: &str) {
        let method = attribute_value(value, "METHOD").unwrap_or_default();
        let format = attribute_value(value, "KEYFORMAT").filter(|format| format != "identity");
        match (method.as_str(), format) {
            ("NONE", _) => {
                (
                    self.next_segment.decryption_key,
                    self.next_segment.has_unsupported_encryption,
                ) = (None, false)
            }
            ("AES-128", None) => {
                self.next_segment.decryption_key = parse_key_uri_and_iv(value).map(Arc::new);
                self.next_segment.has_unsupported_encryption = self.next_segment.decryption_key.is_none();
                if self.next_segment.has_unsupported_encryption {
                    self.unsupported_encryption =
                        Some("AES-128 without a valid key URI and initialization vector".to_owned());
                }
            }
            ("AES-128" | "SAMPLE-AES", format) => {
                if format.is_none() {
                    self.next_segment.decryption_key = None;
                }
                self.next_segment.has_unsupported_encryption = self.next_segment.decryption_key.is_none();
                let keys = format.map(|format| format!("keys of {}", truncate_text(&format)));
                self.unsupported_encryption = Some(keys.unwrap_or(method));
            }
            // A method for some players only: segments whose media is encrypted say so themselves.
            (_, _) => self.unsupported_encryption = Some(truncate_text(&method)),
        }
    }

    fn parse_part_tag(&mut self, value: &str) {
        let Some(uri) = attribute_value(value, "URI").filter(|_| self.next_segment.parts.len() < MAX_PARTS_PER_SEGMENT)
        else {
            return;
        };
        let stated = attribute_value(value, "BYTERANGE").map(|text| parse_byte_range(&text));
        let is_gap = attribute_value(value, "GAP").as_deref() == Some("YES") || stated == Some(None);
        let found = stated.flatten().and_then(|(length, begin)| {
            let follows = self
                .last_part_byte_range_end
                .as_ref()
                .filter(|(last, _)| *last == uri)
                .map(|(_, end)| *end);
            let begin = begin.or(follows).unwrap_or_default();
            self.last_part_byte_range_end = Some((uri.clone(), begin.checked_add(length)?));
            Some(ByteRange { begin, length })
        });
        self.next_segment.parts.push(OriginPart {
            is_gap: is_gap || stated.is_some() && found.is_none(),
            uri,
            byte_range: found,
            is_independent: attribute_value(value, "INDEPENDENT").as_deref() == Some("YES"),
        });
    }

    fn parse_uri_line(&mut self, uri: &'a str) {
        if let Some(mut variant) = self.pending_variant.take() {
            uri.clone_into(&mut variant.uri);
            self.multivariant.variants.push(variant);
            return;
        }
        // Without a duration it belongs to no segment.
        if !std::mem::take(&mut self.next_segment_has_duration) {
            return;
        }
        if let Some((length, begin)) = self.pending_byte_range.take() {
            let follows = self
                .last_byte_range_end
                .filter(|(last, _)| *last == uri)
                .map(|(_, end)| end);
            let begin = begin.or(follows).unwrap_or_default();
            match begin.checked_add(length) {
                Some(end) => {
                    self.last_byte_range_end = Some((uri, end));
                    self.next_segment.byte_range = Some(ByteRange { begin, length });
                }
                None => self.next_segment.is_gap = true,
            }
        }
        let following = ListedSegment {
            init_section: self.next_segment.init_section.clone(),
            decryption_key: self.next_segment.decryption_key.clone(),
            has_unsupported_encryption: self.next_segment.has_unsupported_encryption,
            ..ListedSegment::default()
        };
        let mut listed = std::mem::replace(&mut self.next_segment, following);
        (listed.uri, listed.discontinuity_count) = (uri, self.discontinuity_count);
        // Only the last segments are fetched in parts.
        if let Some(older) = self.segments.len().checked_sub(MAX_SEGMENTS_WITH_PARTS)
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
        let has_foreign = self.segments.iter().any(|listed| listed.has_unsupported_encryption);
        self.media.encryption = self.unsupported_encryption.clone().filter(|_| has_foreign);
        match self.unsupported_encryption.take() {
            Some(foreign) if self.segments.is_empty() => {
                return Err(PlaylistError::UnsupportedEncryption(foreign));
            }
            _ if self.segments.is_empty()
                && self.next_segment.parts.is_empty()
                && self.media.target_duration.is_zero() =>
            {
                return Err(PlaylistError::Empty);
            }
            _ => {}
        }
        if self.media.target_duration.is_zero() {
            let longest = self.segments.iter().filter_map(|listed| listed.duration).max();
            self.media.target_duration = longest.unwrap_or(DEFAULT_TARGET_DURATION);
        }
        let first = self.media_sequence_number.saturating_add(self.dropped_segment_count);
        let counted = self.discontinuity_sequence;
        let target = self.media.target_duration;
        let segments = (0_u64..).zip(std::mem::take(&mut self.segments));
        self.media.segments = segments
            .map(|(index, listed)| listed.into_segment(first.saturating_add(index), counted, target))
            .collect();
        self.media.next_segment_number = first.saturating_add(self.media.segments.len() as u64);
        if !self.next_segment.parts.is_empty() && !self.media.has_ended {
            self.next_segment.discontinuity_count = self.discontinuity_count;
            self.media.segment_in_progress = Some(self.next_segment.into_segment(
                self.media.next_segment_number,
                counted,
                target,
            ));
        }
        Ok(Playlist::Media(self.media))
    }
}

/// Duration of segments if the playlist states none.
const DEFAULT_TARGET_DURATION: Duration = Duration::from_secs(4);

/// Number of complete segments whose parts are kept.
const MAX_SEGMENTS_WITH_PARTS: usize = 4;

impl ListedSegment<'_> {
    fn into_segment(self, number: u64, discontinuity_sequence: Option<u64>, target: Duration) -> OriginSegment {
        OriginSegment {
            media_sequence_number: number,
            discontinuity_sequence: discontinuity_sequence
                .unwrap_or_default()
                .saturating_add(self.discontinuity_count),
            has_discontinuity_sequence: discontinuity_sequence.is_some(),
            follows_discontinuity: self.follows_discontinuity,
            duration: self.duration.unwrap_or(target),
            uri: self.uri.to_owned(),
            byte_range: self.byte_range,
            init_section: self.init_section,
            decryption_key: self.decryption_key,
            is_gap: self.is_gap || self.has_unsupported_encryption,
            parts: self.parts,
        }
    }
}

/// Parses a duration. Longer ones than an hour are taken for an hour.
fn parse_and_cap_duration(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(SEGMENT_DURATION_CAP.as_secs_f64())))
}

fn truncate_text(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Parses `length[@begin]`.
fn parse_byte_range(text: &str) -> Option<(u64, Option<u64>)> {
    match text.trim().split_once('@') {
        Some((length, begin)) => Some((length.parse().ok()?, Some(begin.parse().ok()?))),
        None => Some((text.trim().parse().ok()?, None)),
    }
}

fn parse_init_section(value: &str, decryption_key: Option<Arc<KeyUriAndIv>>) -> Option<InitSection> {
    let range = match attribute_value(value, "BYTERANGE") {
        None => None,
        Some(text) => {
            let (length, begin) = parse_byte_range(&text)?;
            Some(ByteRange {
                begin: begin.unwrap_or_default(),
                length,
            })
        }
    };
    Some(InitSection {
        uri: attribute_value(value, "URI")?,
        byte_range: range,
        decryption_key,
    })
}

/// Address and initialization vector of an AES-128 key; `None` if either is malformed.
fn parse_key_uri_and_iv(value: &str) -> Option<KeyUriAndIv> {
    let iv = match attribute_value(value, "IV") {
        None => None,
        Some(text) => {
            let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
            Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
        }
    };
    Some(KeyUriAndIv {
        uri: attribute_value(value, "URI")?,
        iv,
    })
}

fn parse_variant(value: &str) -> Variant {
    let height = attribute_value(value, "RESOLUTION").and_then(|size| size.split_once('x')?.1.parse().ok());
    Variant {
        uri: String::new(),
        bandwidth: attribute_value(value, "BANDWIDTH")
            .and_then(|bandwidth| bandwidth.parse().ok())
            .unwrap_or_default(),
        height,
        codecs: attribute_value(value, "CODECS"),
        audio_group_id: attribute_value(value, "AUDIO"),
    }
}

/// Returns the value of an attribute, without quotes (RFC 8216 §4.2).
fn attribute_value(list: &str, name: &str) -> Option<String> {
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
