//! The playlists (rfc8216bis §4.4). `hls_m3u8` writes the multivariant one. It knows no tag of LL-HLS and no version above
//! 7, so media playlists are written here, and the tests read them back with it.

use std::fmt::Write as _;
use std::time::Duration;

use hls_m3u8::MasterPlaylist;
use hls_m3u8::tags::{ExtXMedia, VariantStream};
use hls_m3u8::types::{MediaType, StreamData, UFloat};
use time::OffsetDateTime;
use time::macros::format_description;

use super::packager::VideoInfo;
use super::rendition::{Msn, Rendition, Role, Segment};

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

/// What a multivariant playlist lists.
#[derive(Clone, Debug)]
pub struct Versions<'a> {
    /// The best first.
    pub pictures: Vec<(&'a Rendition, VideoInfo)>,
    pub audio: Option<&'a Rendition>,
    /// The sound can be had as AAC too.
    pub has_aac: bool,
}

/// How playlists name the AAC that is made (RFC 6381), and its bits per second.
const AAC: (&str, u64) = ("mp4a.40.2", 128_000);

/// The multivariant playlist; `query` is appended to each address. `None` where there is nothing yet.
///
/// Sound that is also to be had as AAC makes two versions of the same picture, each with its group; the first is the one
/// that costs no encoder, and it is said to need no less than the other, so that players have no reason to change.
pub fn multivariant(versions: &Versions<'_>, query: &str) -> Option<String> {
    let (pictures, audio) = (&versions.pictures, versions.audio);
    let mut sounds: Vec<(Role, &str, u64)> = Vec::new();
    if let Some(audio) = audio {
        let bitrate = if versions.has_aac {
            audio.bitrate().max(AAC.1)
        } else {
            audio.bitrate()
        };
        sounds.push((Role::Audio, audio.codecs(), bitrate));
    }
    if versions.has_aac {
        sounds.push((Role::Aac, AAC.0, AAC.1));
    }
    let mut media = Vec::new();
    let mut variants = Vec::new();
    if !pictures.is_empty() {
        for (role, _, _) in &sounds {
            media.push(group(*role, query)?);
        }
    }
    if sounds.is_empty() {
        for picture in pictures {
            variants.push(variant(*picture, None, query)?);
        }
    }
    for (role, codecs, bitrate) in sounds {
        let sound = Sound { role, codecs, bitrate };
        if pictures.is_empty() {
            variants.push(alone(sound, query)?);
        }
        for picture in pictures {
            variants.push(variant(*picture, Some(sound), query)?);
        }
    }
    // A player begins with the first one: the best.
    if variants.is_empty() {
        return None;
    }
    let playlist = MasterPlaylist::builder()
        .media(media)
        .variant_streams(variants)
        .has_independent_segments(true)
        .build();
    playlist.ok().map(|playlist| playlist.to_string())
}

/// A version of the sound.
#[derive(Clone, Copy)]
struct Sound<'a> {
    role: Role,
    codecs: &'a str,
    bitrate: u64,
}

/// The group of a version of the sound; it has the name of the rendition.
fn group(role: Role, query: &str) -> Option<ExtXMedia<'static>> {
    let sound = ExtXMedia::builder()
        .media_type(MediaType::Audio)
        .group_id(role.name())
        .name("Sound")
        .is_default(true)
        .is_autoselect(true)
        .uri(format!("{}.m3u8{query}", role.name()))
        .build();
    sound.ok()
}

fn variant<'a>(
    (video, shown): (&Rendition, VideoInfo),
    sound: Option<Sound<'a>>,
    query: &str,
) -> Option<VariantStream<'a>> {
    let bitrate = video.bitrate() + sound.as_ref().map_or(0, |sound| sound.bitrate);
    let codecs = std::iter::once(video.codecs().to_owned());
    let codecs = codecs.chain(sound.as_ref().map(|sound| sound.codecs.to_owned()));
    let rate = (shown.frame_rate * 1_000.0).round() as f32 / 1_000.0;
    Some(VariantStream::ExtXStreamInf {
        uri: format!("{}.m3u8{query}", video.role.name()).into(),
        frame_rate: (rate > 0.5).then(|| UFloat::new(rate)),
        audio: sound.map(|sound| sound.role.name().into()),
        subtitles: None,
        closed_captions: None,
        stream_data: stream_data(bitrate, codecs.collect(), shown.resolution)?,
    })
}

/// Sound without a picture.
fn alone<'a>(sound: Sound<'a>, query: &str) -> Option<VariantStream<'a>> {
    Some(VariantStream::ExtXStreamInf {
        uri: format!("{}.m3u8{query}", sound.role.name()).into(),
        frame_rate: None,
        audio: None,
        subtitles: None,
        closed_captions: None,
        stream_data: stream_data(sound.bitrate, vec![sound.codecs.to_owned()], None)?,
    })
}

fn stream_data(bitrate: u64, codecs: Vec<String>, resolution: Option<(u16, u16)>) -> Option<StreamData<'static>> {
    let mut data = StreamData::builder();
    // The peak of a live stream is not known beforehand.
    data.bandwidth((bitrate * 3 / 2).max(1))
        .average_bandwidth(bitrate.max(1))
        .codecs(codecs);
    if let Some((width, height)) = resolution {
        data.resolution((usize::from(width), usize::from(height)));
    }
    data.build().ok()
}

/// A media playlist. `others` are the renditions beside it; an `unsettled` segment is told of as one that still grows.
pub fn media(rendition: &Rendition, others: &[&Rendition], skip: bool, unsettled: Option<Msn>, query: &str) -> String {
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
    let is_complete = |segment: &Segment| segment.complete && Some(segment.msn) != unsettled;
    let known = rendition.segments();
    let segments: Vec<&Segment> = known
        .take_while(|segment| unsettled.is_none_or(|last| segment.msn <= last))
        .collect();
    let complete = segments.iter().filter(|segment| is_complete(segment)).count();
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
    let name = rendition.role.name();
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
        if age(segment) <= recent || !is_complete(segment) {
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
        if is_complete(segment) {
            let _ = writeln!(
                out,
                "#EXTINF:{:.5},\n{name}-{}.m4s{query}",
                segment.duration().as_secs_f64(),
                segment.msn
            );
        }
    }
    let (msn, part) = unsettled.map_or_else(|| rendition.next(), |last| (last + 1, 0));
    let _ = writeln!(
        out,
        "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"{name}-{msn}.{part}.m4s{query}\""
    );
    for other in others {
        let name = other.role.name();
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
