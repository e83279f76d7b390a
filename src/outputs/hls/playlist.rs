//! The playlists (rfc8216bis §4.4). `hls_m3u8` writes the multivariant one. It knows no tag of LL-HLS and no version above
//! 7, so media playlists are written here, and the tests read them back with it.

use std::fmt::Write as _;
use std::time::Duration;

use hls_m3u8::MasterPlaylist;
use hls_m3u8::tags::{ExtXMedia, VariantStream};
use hls_m3u8::types::{MediaType, StreamData, UFloat};
use time::OffsetDateTime;
use time::macros::format_description;

use super::rendition::{Msn, Rendition, Segment};
use crate::media::Kind;

/// What a request for a media playlist asks for (§6.2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// Wait until this segment, or this part of it, is there.
    pub msn: Option<Msn>,
    pub part: Option<usize>,
    /// Leave out what the player has.
    pub skip: bool,
}

/// Complete segments that a playlist lists.
const LISTED: usize = 6;

/// Parts are listed for segments that begin so many target durations before the end (§4.4.4.9).
const PARTS_FOR: u32 = 3;

/// The multivariant playlist; `query` is appended to each address. `None` where there is nothing yet.
pub fn multivariant(
    video: Option<&Rendition>,
    audio: Option<&Rendition>,
    resolution: Option<(u16, u16)>,
    frame_rate: f64,
    query: &str,
) -> Option<String> {
    let renditions = || [video, audio].into_iter().flatten();
    let codecs: Vec<&str> = renditions().map(Rendition::codecs).collect();
    let bitrate: u64 = renditions().map(Rendition::bitrate).sum();
    let (has_video, has_group) = (video.is_some(), video.is_some() && audio.is_some());
    let mut media = Vec::new();
    if has_group {
        let sound = ExtXMedia::builder()
            .media_type(MediaType::Audio)
            .group_id("audio")
            .name("Sound")
            .is_default(true)
            .is_autoselect(true)
            .uri(format!("audio.m3u8{query}"))
            .build();
        media.push(sound.ok()?);
    }
    let mut data = StreamData::builder();
    // The peak of a live stream is not known beforehand.
    data.bandwidth((bitrate * 3 / 2).max(1))
        .average_bandwidth(bitrate.max(1))
        .codecs(codecs);
    if let Some((width, height)) = resolution.filter(|_| has_video) {
        data.resolution((usize::from(width), usize::from(height)));
    }
    let shown = has_video && frame_rate > 0.5;
    let variant = VariantStream::ExtXStreamInf {
        uri: format!("{}.m3u8{query}", if has_video { "video" } else { "audio" }).into(),
        frame_rate: shown.then(|| UFloat::new((frame_rate * 1_000.0).round() as f32 / 1_000.0)),
        audio: has_group.then_some("audio".into()),
        subtitles: None,
        closed_captions: None,
        stream_data: data.build().ok()?,
    };
    let playlist = MasterPlaylist::builder()
        .media(media)
        .variant_streams(vec![variant])
        .has_independent_segments(true)
        .build();
    playlist.ok().map(|playlist| playlist.to_string())
}

/// A media playlist. `other` is the rendition beside it.
pub fn media(rendition: &Rendition, other: Option<&Rendition>, skip: bool, query: &str) -> String {
    let target = rendition.target_duration();
    let part_target = rendition.part_target();
    let mut out = String::from("#EXTM3U\n#EXT-X-VERSION:9\n");
    let _ = writeln!(out, "#EXT-X-TARGETDURATION:{target}");
    // Three parts of distance are enough where nothing is lost (§4.4.3.8 asks for at least two).
    let hold_back = part_target.as_secs_f64() * 3.0;
    let skip_until = target * 6;
    let _ = writeln!(
        out,
        "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL={skip_until}.0,PART-HOLD-BACK={hold_back:.3}"
    );
    let _ = writeln!(out, "#EXT-X-PART-INF:PART-TARGET={:.3}", part_target.as_secs_f64());
    let segments: Vec<&Segment> = rendition.segments().collect();
    let complete = segments.iter().filter(|segment| segment.complete).count();
    let (hidden, listed) = segments.split_at(complete.saturating_sub(LISTED));
    let first = listed.first().map_or(0, |segment| segment.msn);
    // Players take no playlist without a whole segment. What was before the first one is a gap, and is said to be one.
    let begins_with_gap = complete == 0 && first > 0;
    let _ = writeln!(out, "#EXT-X-MEDIA-SEQUENCE:{}", first - u64::from(begins_with_gap));
    // The first that is listed bears no mark: there is nothing before it.
    let before = hidden
        .iter()
        .chain(listed.first())
        .filter(|segment| segment.discontinuity)
        .count() as u64;
    let discontinuities = rendition.discontinuity_sequence() + before;
    if discontinuities > 0 {
        let _ = writeln!(out, "#EXT-X-DISCONTINUITY-SEQUENCE:{discontinuities}");
    }
    let end = listed
        .last()
        .map_or(Duration::ZERO, |last| last.begin + last.duration());
    let recent = Duration::from_secs(target) * PARTS_FOR;
    let age = |segment: &Segment| end.saturating_sub(segment.begin);
    // What is older than this may be left out of an update (§4.4.5.2).
    let skipped = if skip {
        let old = |segment: &&&Segment| age(segment) > Duration::from_secs(skip_until) && segment.complete;
        listed.iter().take_while(old).count()
    } else {
        0
    };
    if skipped > 0 {
        let _ = writeln!(out, "#EXT-X-SKIP:SKIPPED-SEGMENTS={skipped}");
    }
    let name = match rendition.kind {
        Kind::Video => "video",
        Kind::Audio => "audio",
    };
    let mut init = None;
    for segment in listed.iter().skip(skipped) {
        if segment.discontinuity && segment.msn != first {
            out.push_str("#EXT-X-DISCONTINUITY\n");
        }
        if init != Some(segment.init) {
            init = Some(segment.init);
            let _ = writeln!(out, "#EXT-X-MAP:URI=\"{name}-init-{}.mp4{query}\"", segment.init);
        }
        if begins_with_gap {
            let _ = writeln!(out, "#EXT-X-GAP\n#EXTINF:1.00000,\n{name}-{}.m4s{query}", first - 1);
        }
        let _ = writeln!(out, "#EXT-X-PROGRAM-DATE-TIME:{}", date_time(segment.wall));
        if age(segment) <= recent || !segment.complete {
            for (index, part) in segment.parts.iter().enumerate() {
                let _ = writeln!(
                    out,
                    "#EXT-X-PART:DURATION={:.5},URI=\"{name}-{}.{index}.m4s{query}\"{}",
                    part.duration.as_secs_f64(),
                    segment.msn,
                    if part.independent { ",INDEPENDENT=YES" } else { "" }
                );
            }
        }
        if segment.complete {
            let _ = writeln!(
                out,
                "#EXTINF:{:.5},\n{name}-{}.m4s{query}",
                segment.duration().as_secs_f64(),
                segment.msn
            );
        }
    }
    let (msn, part) = rendition.next();
    let _ = writeln!(
        out,
        "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"{name}-{msn}.{part}.m4s{query}\""
    );
    if let Some(other) = other {
        let name = match other.kind {
            Kind::Video => "video",
            Kind::Audio => "audio",
        };
        let (msn, part) = match other.next() {
            (msn, 0) => (msn.saturating_sub(1), None),
            (msn, part) => (msn, Some(part - 1)),
        };
        let _ = write!(out, "#EXT-X-RENDITION-REPORT:URI=\"{name}.m3u8{query}\",LAST-MSN={msn}");
        if let Some(part) = part {
            let _ = write!(out, ",LAST-PART={part}");
        }
        out.push('\n');
    }
    out
}

/// ISO 8601 with milliseconds, of a time since 1970.
fn date_time(since: Duration) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let at = OffsetDateTime::UNIX_EPOCH.saturating_add(since.try_into().unwrap_or_default());
    at.format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_795_608_123_456, "2026-11-25T12:02:03.456Z"),
        ] {
            assert_eq!(date_time(Duration::from_millis(millis)), text);
        }
    }
}
