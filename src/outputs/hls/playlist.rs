//! Renders the playlists (rfc8216bis §4.4). The multivariant playlist is written by `hls_m3u8`. That crate supports
//! neither the LL-HLS tags nor versions above 7, so media playlists are written here, and tests parse them with it.

use std::fmt::Write as _;
use std::time::Duration;

use hls_m3u8::MasterPlaylist;
use hls_m3u8::tags::{ExtXMedia, VariantStream};
use hls_m3u8::types::{MediaType, StreamData, UFloat};
use time::OffsetDateTime;
use time::macros::format_description;

use super::packager::ResolutionAndFrameRate;
use super::rendition::{Msn, Rendition, RenditionRole, Segment, window_segment_count};

/// Delivery directives of a media playlist request (§6.2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryDirectives {
    /// Block until this segment, or this part of it, is available.
    pub msn: Option<Msn>,
    pub part: Option<usize>,
    /// Omit segments that the player already has.
    pub skip: bool,
}

/// Maximum number of complete segments in a playlist, without short ones.
const MAX_LISTED_SEGMENTS: usize = 6;

/// Parts are listed for segments that start at most this many target durations before the end (§4.4.4.9).
const PART_LISTING_TARGET_DURATIONS: u32 = 3;

/// The renditions of a multivariant playlist.
#[derive(Clone, Debug)]
pub struct MultivariantRenditions<'a> {
    /// Best first.
    pub video_layers: Vec<(&'a Rendition, ResolutionAndFrameRate)>,
    pub audio: Option<&'a Rendition>,
    /// Whether the audio is available as AAC too.
    pub has_aac_transcode: bool,
}

/// Codec string (RFC 6381) and bitrate in bits per second of the AAC transcode.
const AAC_CODEC_AND_BITRATE: (&str, u64) = ("mp4a.40.2", 128_000);

/// Returns the multivariant playlist; `query` is appended to each URL. `None` without renditions.
///
/// With an additional AAC rendition, each video layer has two variants with different audio groups. The first one needs
/// no transcode. Its bandwidth is declared to be at least that of the other, so that players have no reason to switch.
pub fn render_multivariant_playlist(variants: &MultivariantRenditions<'_>, query: &str) -> Option<String> {
    let (layers, audio) = (&variants.video_layers, variants.audio);
    let mut audio_variants: Vec<(RenditionRole, &str, u64)> = Vec::new();
    if let Some(audio) = audio {
        let bitrate = if variants.has_aac_transcode {
            audio.average_bitrate().max(AAC_CODEC_AND_BITRATE.1)
        } else {
            audio.average_bitrate()
        };
        audio_variants.push((RenditionRole::Audio, audio.codecs(), bitrate));
    }
    if variants.has_aac_transcode {
        audio_variants.push((
            RenditionRole::AacAudio,
            AAC_CODEC_AND_BITRATE.0,
            AAC_CODEC_AND_BITRATE.1,
        ));
    }
    let mut media = Vec::new();
    let mut streams = Vec::new();
    if !layers.is_empty() {
        for (role, _, _) in &audio_variants {
            media.push(audio_group_media_tag(*role, query)?);
        }
    }
    if audio_variants.is_empty() {
        for layer in layers {
            streams.push(video_variant(*layer, None, query)?);
        }
    }
    for (role, codecs, bitrate) in audio_variants {
        let audio = VariantAudioRendition { role, codecs, bitrate };
        if layers.is_empty() {
            streams.push(audio_only_variant(audio, query)?);
        }
        for layer in layers {
            streams.push(video_variant(*layer, Some(audio), query)?);
        }
    }
    // Players start with the first variant: the best one.
    if streams.is_empty() {
        return None;
    }
    // A segment that a long frame or a long key frame interval began is not independent (§4.4.2.1).
    let mut video_segments = variants.video_layers.iter().flat_map(|(video, _)| video.segments());
    let is_independent = |segment: &Segment| segment.parts.first().is_none_or(|part| part.is_independent);
    let playlist = MasterPlaylist::builder()
        .media(media)
        .variant_streams(streams)
        .has_independent_segments(video_segments.all(is_independent))
        .build();
    playlist.ok().map(|playlist| playlist.to_string())
}

/// An audio rendition for a variant.
#[derive(Clone, Copy)]
struct VariantAudioRendition<'a> {
    role: RenditionRole,
    codecs: &'a str,
    bitrate: u64,
}

/// The audio group with this rendition; the group ID is the name of its role.
fn audio_group_media_tag(role: RenditionRole, query: &str) -> Option<ExtXMedia<'static>> {
    let media = ExtXMedia::builder()
        .media_type(MediaType::Audio)
        .group_id(role.name())
        .name("Audio")
        .is_default(true)
        .is_autoselect(true)
        .uri(format!("{}.m3u8{query}", role.name()))
        .build();
    media.ok()
}

fn video_variant<'a>(
    (video, info): (&Rendition, ResolutionAndFrameRate),
    audio: Option<VariantAudioRendition<'a>>,
    query: &str,
) -> Option<VariantStream<'a>> {
    let bitrate = video.average_bitrate() + audio.as_ref().map_or(0, |audio| audio.bitrate);
    let codecs = std::iter::once(video.codecs().to_owned());
    let codecs = codecs.chain(audio.as_ref().map(|audio| audio.codecs.to_owned()));
    let rate = (info.frame_rate * 1_000.0).round() as f32 / 1_000.0;
    Some(VariantStream::ExtXStreamInf {
        uri: format!("{}.m3u8{query}", video.role.name()).into(),
        frame_rate: (rate > 0.5).then(|| UFloat::new(rate)),
        audio: audio.map(|audio| audio.role.name().into()),
        subtitles: None,
        closed_captions: None,
        stream_data: stream_inf_attributes(bitrate, codecs.collect(), info.resolution)?,
    })
}

/// A variant without video.
fn audio_only_variant<'a>(audio: VariantAudioRendition<'a>, query: &str) -> Option<VariantStream<'a>> {
    Some(VariantStream::ExtXStreamInf {
        uri: format!("{}.m3u8{query}", audio.role.name()).into(),
        frame_rate: None,
        audio: None,
        subtitles: None,
        closed_captions: None,
        stream_data: stream_inf_attributes(audio.bitrate, vec![audio.codecs.to_owned()], None)?,
    })
}

fn stream_inf_attributes(
    bitrate: u64,
    codecs: Vec<String>,
    resolution: Option<(u16, u16)>,
) -> Option<StreamData<'static>> {
    let mut data = StreamData::builder();
    // The peak bitrate of a live stream is unknown in advance; assume 1.5 times the average.
    data.bandwidth((bitrate * 3 / 2).max(1))
        .average_bandwidth(bitrate.max(1))
        .codecs(codecs);
    if let Some((width, height)) = resolution {
        data.resolution((usize::from(width), usize::from(height)));
    }
    data.build().ok()
}

/// Returns a media playlist. `others` are the other renditions of the stream, for rendition reports. The `segment_without_counterpart`
/// segment is listed as if it were still in progress.
pub fn render_media_playlist(
    rendition: &Rendition,
    others: &[&Rendition],
    skip: bool,
    segment_without_counterpart: Option<Msn>,
    query: &str,
) -> String {
    let target = rendition.target_duration_secs();
    let part_target = rendition.part_target();
    let mut out = String::from("#EXTM3U\n#EXT-X-VERSION:9\n");
    let _ = writeln!(out, "#EXT-X-TARGETDURATION:{target}");
    let hold_back = rendition.part_hold_back().as_secs_f64();
    let skip_until = target * 6;
    let _ = writeln!(
        out,
        "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL={skip_until}.0,PART-HOLD-BACK={hold_back:.3}"
    );
    let _ = writeln!(out, "#EXT-X-PART-INF:PART-TARGET={:.3}", part_target.as_secs_f64());
    let all = rendition.segments();
    let segments: Vec<&Segment> = all
        .take_while(|segment| segment_without_counterpart.is_none_or(|last| segment.msn <= last))
        .collect();
    let complete = segments
        .iter()
        .filter(|segment| is_listed_as_complete(segment, segment_without_counterpart))
        .count();
    let window = window_segment_count(segments.iter().take(complete).copied(), MAX_LISTED_SEGMENTS);
    let (unlisted, listed) = segments.split_at(complete - window);
    let first = listed.first().map_or(0, |segment| segment.msn);
    // Players reject a playlist without a complete segment. List a gap segment before the first one.
    let starts_with_gap = complete == 0 && first > 0;
    let _ = writeln!(out, "#EXT-X-MEDIA-SEQUENCE:{}", first - u64::from(starts_with_gap));
    // The first listed segment has no discontinuity tag, because nothing precedes it.
    let before = unlisted
        .iter()
        .chain(listed.first())
        .filter(|segment| segment.follows_discontinuity)
        .count() as u64;
    let discontinuities = rendition.discontinuity_sequence() + before;
    if discontinuities > 0 {
        let _ = writeln!(out, "#EXT-X-DISCONTINUITY-SEQUENCE:{discontinuities}");
    }
    let end = listed
        .last()
        .map_or(Duration::ZERO, |last| last.start_time + last.duration());
    let age = |segment: &Segment| end.saturating_sub(segment.start_time);
    // Older segments may be omitted from a delta update (§4.4.5.2).
    let skipped = if skip {
        let old = |segment: &&&Segment| age(segment) > Duration::from_secs(skip_until) && segment.is_complete;
        listed.iter().take_while(old).count()
    } else {
        0
    };
    if skipped > 0 {
        let _ = writeln!(out, "#EXT-X-SKIP:SKIPPED-SEGMENTS={skipped}");
    }
    let list = SegmentListWriter {
        rendition_name: rendition.role.name(),
        query,
        first_msn: first,
        starts_with_gap,
        part_target,
        segment_without_counterpart,
        // Parts are listed of the newest segments only.
        parts_listed_from: end.saturating_sub(Duration::from_secs(target) * PART_LISTING_TARGET_DURATIONS),
    };
    list.write_segments(&mut out, listed.iter().copied().skip(skipped));
    let name = rendition.role.name();
    let (msn, part) = segment_without_counterpart.map_or_else(|| rendition.next_part_position(), |last| (last + 1, 0));
    let _ = writeln!(
        out,
        "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"{name}-{msn}.{part}.m4s{query}\""
    );
    write_rendition_reports(&mut out, others, query);
    out
}

/// How the segments of one media playlist are written.
struct SegmentListWriter<'a> {
    rendition_name: &'static str,
    query: &'a str,
    /// The first segment of the playlist, also if a delta update leaves it out.
    first_msn: Msn,
    starts_with_gap: bool,
    /// Duration of the gap.
    part_target: Duration,
    segment_without_counterpart: Option<Msn>,
    /// Parts of complete segments that begin earlier are not listed.
    parts_listed_from: Duration,
}

impl SegmentListWriter<'_> {
    fn write_segments<'a>(&self, out: &mut String, segments: impl Iterator<Item = &'a Segment>) {
        let Self {
            rendition_name: name,
            query,
            first_msn: first,
            ..
        } = *self;
        let mut init = None;
        let is_listed = |segment: &&Segment| !segment.has_oversized_part || segment.is_complete;
        for segment in segments.filter(is_listed) {
            if segment.follows_discontinuity && segment.msn != first {
                out.push_str("#EXT-X-DISCONTINUITY\n");
            }
            if init != Some(segment.init_section_number) {
                init = Some(segment.init_section_number);
                let _ = writeln!(
                    out,
                    "#EXT-X-MAP:URI=\"{name}-init-{}.mp4{query}\"",
                    segment.init_section_number
                );
            }
            if self.starts_with_gap {
                self.write_gap_before_first_segment(out);
            }
            let _ = writeln!(
                out,
                "#EXT-X-PROGRAM-DATE-TIME:{}",
                format_date_time(segment.program_date_time)
            );
            let is_complete = is_listed_as_complete(segment, self.segment_without_counterpart);
            if segment.start_time >= self.parts_listed_from || !is_complete {
                self.write_parts(out, segment);
            }
            if is_complete {
                let (seconds, msn) = (segment.duration().as_secs_f64(), segment.msn);
                let _ = writeln!(out, "#EXTINF:{seconds:.5},\n{name}-{msn}.m4s{query}");
            }
        }
    }

    /// Writes the gap segment. It has a part, because hls.js starts with the parts of a segment in progress only if they
    /// are not the first ones of the playlist.
    fn write_gap_before_first_segment(&self, out: &mut String) {
        let Self {
            rendition_name: name,
            query,
            ..
        } = self;
        let (seconds, msn) = (self.part_target.as_secs_f64(), self.first_msn - 1);
        let _ = writeln!(
            out,
            "#EXT-X-GAP\n#EXT-X-PART:DURATION={seconds:.5},URI=\"{name}-{msn}.0.m4s{query}\",GAP=YES\n\
             #EXTINF:{seconds:.5},\n{name}-{msn}.m4s{query}"
        );
    }

    fn write_parts(&self, out: &mut String, segment: &Segment) {
        let Self {
            rendition_name: name,
            query,
            ..
        } = self;
        if segment.has_oversized_part {
            return;
        }
        for (index, part) in segment.parts.iter().enumerate() {
            let (seconds, msn) = (part.duration.as_secs_f64(), segment.msn);
            let independent = if part.is_independent { ",INDEPENDENT=YES" } else { "" };
            let _ = writeln!(
                out,
                "#EXT-X-PART:DURATION={seconds:.5},URI=\"{name}-{msn}.{index}.m4s{query}\"{independent}"
            );
        }
    }
}

fn is_listed_as_complete(segment: &Segment, segment_without_counterpart: Option<Msn>) -> bool {
    segment.is_complete && Some(segment.msn) != segment_without_counterpart
}

/// Writes where the other renditions are (§4.4.5.4).
fn write_rendition_reports(out: &mut String, others: &[&Rendition], query: &str) {
    for other in others {
        let name = other.role.name();
        let (msn, part) = match other.next_part_position() {
            (msn, 0) => (msn.saturating_sub(1), None),
            (msn, part) => (msn, Some(part - 1)),
        };
        let _ = write!(out, "#EXT-X-RENDITION-REPORT:URI=\"{name}.m3u8{query}\",LAST-MSN={msn}");
        if let Some(part) = part {
            let _ = write!(out, ",LAST-PART={part}");
        }
        out.push('\n');
    }
}

/// Formats a time since 1970 as ISO 8601 with milliseconds.
fn format_date_time(since_epoch: Duration) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let at = OffsetDateTime::UNIX_EPOCH.saturating_add(since_epoch.try_into().unwrap_or_default());
    at.format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::rendition::PartialSegment;
    use super::*;

    /// Each group of pictures has a gap: a short segment before it, a long one with it.
    #[test]
    fn short_segments_do_not_make_the_window_short() {
        let segment = |msn: u64, millis: u64, is_complete: bool| Segment {
            msn,
            init_section_number: 0,
            follows_discontinuity: false,
            start_time: Duration::ZERO,
            program_date_time: Duration::ZERO,
            parts: vec![PartialSegment {
                duration: Duration::from_millis(millis),
                is_independent: true,
                bytes: bytes::Bytes::new(),
            }],
            is_complete,
            has_oversized_part: false,
        };
        let segments = |lengths: &[u64]| -> Vec<Segment> {
            let numbered = lengths.iter().enumerate();
            numbered
                .map(|(index, length)| segment(index as u64, *length, true))
                .collect()
        };
        assert_eq!(window_segment_count(segments(&[2_000; 20]).iter(), 6), 6);
        assert_eq!(window_segment_count(segments(&[2_000; 3]).iter(), 6), 3);
        assert_eq!(
            window_segment_count(segments(&[600, 1_400, 2_000].repeat(5)).iter(), 6),
            9
        );
        assert_eq!(
            window_segment_count(segments(&[300; 20]).iter(), 6),
            12,
            "it is bounded"
        );
        let mut open = segments(&[2_000; 20]);
        open.push(segment(20, 100, false));
        assert_eq!(window_segment_count(open.iter(), 9), 9, "the open one counts");
    }

    #[test]
    fn times_are_formatted_as_dates() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_795_608_123_456, "2026-11-25T12:02:03.456Z"),
        ] {
            assert_eq!(format_date_time(Duration::from_millis(millis)), text);
        }
    }
}
