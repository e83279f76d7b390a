//! Parses playlists.
//!
//! What cannot be understood is passed over: a playlist is refused only if nothing in it can be played. Of a live playlist
//! only the end is kept.
//!
//! The parser is hand-written so that the memory used is bounded by the size of the playlist and mistakes are tolerated:
//! `hls_m3u8` 0.7 reserves memory for as many segments as the media sequence number says, rejects versions above 7 and
//! playlists whose durations are not rounded correctly, and panics on a byte range that ends before it begins. Tests parse
//! what that crate writes.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::attributes::{
    attribute_value, parse_and_cap_duration, parse_bandwidth, parse_byte_range, parse_date_time, parse_height,
    parse_iv, parse_segment_duration,
};
use super::variables::{PlaylistContext, VariableReplacer};
use super::{
    AudioRendition, ByteRange, InitSection, KeyUriAndIv, MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST, MediaPlaylist,
    MultivariantPlaylist, OriginPart, OriginSegment, Playlist, PlaylistError, Variant,
};

/// Number of segments at the end of a live playlist that are kept.
pub(super) const MAX_KEPT_LIVE_SEGMENTS: usize = 1_000;

/// Maximum number of parts of a segment.
const MAX_PARTS_PER_SEGMENT: usize = 256;

/// State of the parser.
struct PlaylistParser<'a> {
    variables: VariableReplacer<'a>,
    multivariant: MultivariantPlaylist,
    media: MediaPlaylist,
    pending_variant: Option<Variant>,
    media_sequence_number: u64,
    discontinuity_sequence: Option<u64>,
    discontinuity_count: u64,
    /// The segments that are kept, and how many came before them.
    segments: VecDeque<ListedSegment<'a>>,
    dropped_segment_count: u64,
    /// Segments that are left out of an update (EXT-X-SKIP), which some caches serve to everybody.
    skipped_segment_count: u64,
    /// Date and time at which the next segment begins.
    next_date_time: Option<i64>,
    next_segment: ListedSegment<'a>,
    /// A duration was read, so a URI is expected.
    next_segment_has_duration: bool,
    pending_byte_range: Option<(u64, Option<u64>)>,
    /// URI and end of the last byte range.
    last_byte_range_end: Option<(Cow<'a, str>, u64)>,
    last_part_byte_range_end: Option<(String, u64)>,
    /// A method of encryption that is not supported.
    unsupported_encryption: Option<String>,
}

/// A segment as it is listed.
#[derive(Clone, Default)]
struct ListedSegment<'a> {
    uri: Cow<'a, str>,
    duration: Option<Duration>,
    program_date_time: Option<i64>,
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
    /// Parses a playlist of which nothing else is known.
    ///
    /// # Errors
    ///
    /// A [`PlaylistError`].
    pub fn parse(text: &str) -> Result<Self, PlaylistError> {
        Self::parse_in_context(text, &PlaylistContext::default())
    }

    /// Parses a playlist.
    ///
    /// # Errors
    ///
    /// A [`PlaylistError`].
    pub fn parse_in_context(text: &str, context: &PlaylistContext) -> Result<Self, PlaylistError> {
        let text = text.trim_start_matches('\u{feff}');
        let lines = text.split(['\n', '\r']).map(str::trim);
        let mut lines = lines.filter(|line| !line.is_empty());
        if lines.next().is_none_or(|first| !first.starts_with("#EXTM3U")) {
            return Err(PlaylistError::NotPlaylist);
        }
        let mut reader = PlaylistParser::new(context);
        reader.media.may_be_truncated = !text.ends_with(['\n', '\r']);
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
                    reader.parse_tag(name, value.trim())?;
                }
                None if line.starts_with('#') => {}
                None => reader.parse_uri_line(line)?,
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
    fn new(context: &'a PlaylistContext) -> Self {
        Self {
            variables: VariableReplacer::new(context),
            multivariant: MultivariantPlaylist::default(),
            media: MediaPlaylist::default(),
            pending_variant: None,
            media_sequence_number: 0,
            discontinuity_sequence: None,
            discontinuity_count: 0,
            segments: VecDeque::new(),
            dropped_segment_count: 0,
            skipped_segment_count: 0,
            next_date_time: None,
            next_segment: ListedSegment::default(),
            next_segment_has_duration: false,
            pending_byte_range: None,
            last_byte_range_end: None,
            last_part_byte_range_end: None,
            unsupported_encryption: None,
        }
    }

    fn parse_tag(&mut self, name: &str, value: &str) -> Result<(), PlaylistError> {
        match name {
            "-X-DEFINE" => self.variables.define(value),
            "-X-PART" | "-X-MAP" | "-X-KEY" | "-X-STREAM-INF" | "-X-MEDIA" => {
                let value = self.variables.replace(value)?;
                self.parse_tag_with_uri(name, &value);
            }
            _ => self.parse_tag_without_uri(name, value),
        }
        Ok(())
    }

    fn parse_tag_without_uri(&mut self, name: &str, value: &str) {
        match name {
            "INF" => {
                self.next_segment_has_duration = true;
                self.next_segment.duration = parse_segment_duration(value);
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
            "-X-SKIP" => {
                let count = attribute_value(value, "SKIPPED-SEGMENTS").and_then(|count| count.parse().ok());
                self.skipped_segment_count = count.unwrap_or_default();
            }
            "-X-PROGRAM-DATE-TIME" => self.next_date_time = parse_date_time(value).or(self.next_date_time),
            "-X-BYTERANGE" => {
                self.pending_byte_range = parse_byte_range(value);
                self.next_segment.is_gap |= self.pending_byte_range.is_none();
            }
            "-X-DISCONTINUITY" => {
                self.next_segment.follows_discontinuity = true;
                self.discontinuity_count = self.discontinuity_count.saturating_add(1);
            }
            "-X-GAP" => self.next_segment.is_gap = true,
            _ => {}
        }
    }

    fn parse_tag_with_uri(&mut self, name: &str, value: &str) {
        match name {
            "-X-PART" => self.parse_part_tag(value),
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
                uri: attribute_value(value, "URI").filter(|uri| !uri.is_empty()),
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
                        Some("AES-128 without a key URI, or with an invalid initialization vector".to_owned());
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

    fn parse_uri_line(&mut self, uri: &'a str) -> Result<(), PlaylistError> {
        let uri = self.variables.replace(uri)?;
        if let Some(mut variant) = self.pending_variant.take() {
            variant.uri = uri.into_owned();
            self.multivariant.variants.push(variant);
            return Ok(());
        }
        // Without a duration it belongs to no segment.
        if !std::mem::take(&mut self.next_segment_has_duration) {
            return Ok(());
        }
        if let Some((length, begin)) = self.pending_byte_range.take() {
            let follows = self.last_byte_range_end.as_ref().filter(|(last, _)| *last == uri);
            let follows = follows.map(|(_, end)| *end);
            let begin = begin.or(follows).unwrap_or_default();
            match begin.checked_add(length) {
                Some(end) => {
                    self.last_byte_range_end = Some((uri.clone(), end));
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
        listed.program_date_time = self.next_date_time;
        self.next_date_time = self.next_date_time.zip(listed.duration).and_then(|(begin, duration)| {
            let milliseconds = i64::try_from(duration.as_millis()).ok()?;
            begin.checked_add(milliseconds)
        });
        // Only the last segments are fetched in parts.
        if let Some(older) = self.segments.len().checked_sub(MAX_SEGMENTS_WITH_PARTS)
            && let Some(older) = self.segments.get_mut(older)
        {
            older.parts = Vec::new();
        }
        self.segments.push_back(listed);
        Ok(())
    }

    fn finish(mut self) -> Result<Playlist, PlaylistError> {
        if !self.multivariant.variants.is_empty() {
            self.multivariant.variables = Arc::new(self.variables.into_variables());
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
        let longest = self.segments.iter().filter_map(|listed| listed.duration).max();
        let stated = Some(self.media.target_duration).filter(|stated| !stated.is_zero());
        // Some origins state less than their segments last, and others state milliseconds as the duration of a segment.
        let raised = stated.map(|stated| {
            let most = stated.saturating_mul(MAX_TARGET_DURATION_FACTOR);
            longest.unwrap_or_default().clamp(stated, most)
        });
        self.media.target_duration = raised.or(longest).unwrap_or(DEFAULT_TARGET_DURATION);
        let before = self.dropped_segment_count.saturating_add(self.skipped_segment_count);
        let first = self.media_sequence_number.saturating_add(before);
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

/// Up to how many times the stated target duration a longer segment raises it.
const MAX_TARGET_DURATION_FACTOR: u32 = 3;

/// Duration of segments if the playlist states none.
const DEFAULT_TARGET_DURATION: Duration = Duration::from_secs(4);

/// Number of complete segments whose parts are kept.
const MAX_SEGMENTS_WITH_PARTS: usize = 4;

impl ListedSegment<'_> {
    fn into_segment(self, number: u64, discontinuity_sequence: Option<u64>, target: Duration) -> OriginSegment {
        OriginSegment {
            media_sequence_number: number,
            listed_sequence_number: number,
            program_date_time: self.program_date_time,
            discontinuity_sequence: discontinuity_sequence
                .unwrap_or_default()
                .saturating_add(self.discontinuity_count),
            has_discontinuity_sequence: discontinuity_sequence.is_some(),
            follows_discontinuity: self.follows_discontinuity,
            duration: self.duration.unwrap_or(target),
            uri: self.uri.into_owned(),
            byte_range: self.byte_range,
            init_section: self.init_section,
            decryption_key: self.decryption_key,
            is_gap: self.is_gap || self.has_unsupported_encryption,
            parts: self.parts,
        }
    }
}

fn truncate_text(text: &str) -> String {
    text.chars().take(40).collect()
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
        Some(text) => Some(parse_iv(&text)?),
    };
    Some(KeyUriAndIv {
        uri: attribute_value(value, "URI")?,
        iv,
    })
}

fn parse_variant(value: &str) -> Variant {
    let height = attribute_value(value, "RESOLUTION").and_then(|size| parse_height(&size));
    Variant {
        uri: String::new(),
        bandwidth: attribute_value(value, "BANDWIDTH")
            .and_then(|bandwidth| parse_bandwidth(&bandwidth))
            .unwrap_or_default(),
        height,
        codecs: attribute_value(value, "CODECS"),
        audio_group_id: attribute_value(value, "AUDIO"),
    }
}
